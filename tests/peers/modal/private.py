"""The one place that names what the Modal client keeps private; it is pinned exactly because of these.

The peer needs the generated messages and the list of RPCs, the module that Modal starts in a container, and the
encoding of details of an error, by which a server asks the client to try again later.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from grpclib.const import Handler
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

ENTRYPOINT = "modal._container_entrypoint"
IMAGE_BUILDER_VERSION = "2025.06"
STATUS_DETAILS_CODEC = custom_detail_codec
RETRY_POLICY = api_pb2.RPCRetryPolicy
"""A detail of an error; the client waits `retry_after_secs` and tries again, up to MODAL_MAX_THROTTLE_WAIT."""

__all__ = [
    "ENTRYPOINT",
    "IMAGE_BUILDER_VERSION",
    "RETRY_POLICY",
    "STATUS_DETAILS_CODEC",
    "api_pb2",
    "copied",
    "handlers",
    "rpc_names",
]


class _Names:
    """Gives each RPC's name where the generated mapping expects its method."""

    def __getattr__(self, name: str) -> str:
        return name


def handlers(method: Callable[[str], Callable[[Any], Any]]) -> Mapping[str, Handler]:
    """The mapping of all RPCs that grpclib serves, each by the function that `method` gives for its name."""
    named = ModalClientBase.__mapping__(cast(ModalClientBase, _Names()))
    return {path: handler._replace(func=method(cast(str, handler.func))) for path, handler in named.items()}


def rpc_names() -> frozenset[str]:
    named = ModalClientBase.__mapping__(cast(ModalClientBase, _Names()))
    return frozenset(cast(str, handler.func) for handler in named.values())


M = TypeVar("M", bound=Message)


def copied(message: M) -> M:
    """A copy of a message."""
    twin = type(message)()
    twin.CopyFrom(message)
    return cast(M, twin)
