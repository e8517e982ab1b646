# ruff: noqa: N818 (named after what happened, like the conditions that report them)
"""All exceptions of this package. Messages name the address and a remedy; none quotes a prompt."""


class VllmError(Exception):
    """Base of all exceptions of this package. `url` is the requested address, `message` says what was wrong and what
    to do.
    """

    def __init__(self, url: str, message: str) -> None:
        super().__init__(f"{url}: {message}")
        self.url = url
        self.message = message


class Unreachable(VllmError):
    """No answer: the connection failed or was lost, or the request timed out."""


class NotConnected(Unreachable):
    """The connection failed, so the server has not seen the request."""


class ServerGone(Unreachable):
    """Connections have failed for a long time: the server's process has ended. A process that replaces it starts
    awake."""


class AnswerTimedOut(Unreachable):
    """The request timed out after the server had accepted it; it may have taken effect."""


class TlsFailed(VllmError):
    """The server listens, but TLS failed: wrong scheme, a certificate, or a mesh in between."""


class UnexpectedAnswer(VllmError):
    """A success whose body does not have the expected form."""


class RequestFailed(VllmError):
    """The server answered with an error. `status` is the HTTP status."""

    def __init__(self, url: str, status: int, message: str) -> None:
        super().__init__(url, f"HTTP {status}: {message}")
        self.status = status


class Refused(RequestFailed):
    """401 or 403: the API key or the control token is missing or wrong."""


class RouteMissing(RequestFailed):
    """404 of a control route: the server runs without the setting that opens it."""


class AdapterRejected(VllmError):
    """vLLM did not load an adapter, or reports success but does not list it. `name` and `path` identify the
    adapter."""

    def __init__(self, url: str, name: str, path: str, message: str) -> None:
        super().__init__(url, f"adapter {name} from {path}: {message}")
        self.name = name
        self.path = path


class AliasRejected(RequestFailed):
    """The companion did not point a served name at its target (409)."""


class ProbeFailed(VllmError):
    """A loaded adapter does not answer the probe, or its log-probabilities are unusable."""


class ProbedNothing(ProbeFailed):
    """The adapter to probe is not loaded (404): it was unloaded meanwhile."""


class AdapterNotApplied(VllmError):
    """A version is loaded, but answers as the base model does, also after it was loaded again."""


class DrainTimedOut(VllmError):
    """Running requests did not end within the drain time-out. Serving was resumed; none was aborted."""


class StillPaused(VllmError):
    """The server still reports that it is asleep or paused after all attempts to wake it."""
