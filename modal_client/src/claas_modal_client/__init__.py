"""The Modal platform, as trainer, operator and the vLLM on Modal use it.

Importing this package sets how the SDK behaves in this process, before the SDK is imported.
"""

import logging as _logging
import os as _os
import sys as _sys

# It logs every header of a request, the token among them, in a program that logs at its finest.
_logging.getLogger("hpack").setLevel(_logging.INFO)

# Read by the SDK when needed: without a limit it waits as long as it is throttled, and it would pickle.
_os.environ["MODAL_MAX_THROTTLE_WAIT"] = _os.environ.get("MODAL_MAX_THROTTLE_WAIT") or "60"
_os.environ["MODAL_PAYLOAD_FORMAT"] = "cbor"
if "modal" not in _sys.modules:
    # Read by the SDK when imported: no file of a user's, and no warnings, which quote the service. Where it is
    # imported already, by `modal deploy` or in Modal's containers, it keeps its settings.
    _os.environ["MODAL_CONFIG_PATH"] = "/nonexistent/modal.toml"
    _os.environ["MODAL_LOGLEVEL"] = "ERROR"
