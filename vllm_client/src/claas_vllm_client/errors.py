# ruff: noqa: N818  (named by what happened, as the conditions that report them are)
"""Every error this package raises. Messages name the address asked and what to do; none quotes a prompt."""


class VllmError(Exception):
    """Base of all errors of this package.

    `url` is the address that was asked, `message` what was wrong with it and what to do.
    """

    def __init__(self, url: str, message: str) -> None:
        super().__init__(f"{url}: {message}")
        self.url = url
        self.message = message


class Unreachable(VllmError):
    """No answer: the connection failed, broke off, or no answer came in time."""


class NotConnected(Unreachable):
    """No connection came about, so the server has not seen the request."""


class ServerGone(Unreachable):
    """For long no connection came about: the server's process has ended, and is asleep no more. What starts in its
    place is awake."""


class AnswerTimedOut(Unreachable):
    """The server accepted the request and did not answer in time; whether it acted on it is not known."""


class TlsFailed(VllmError):
    """Something listens there, and the two sides do not agree on TLS: scheme, certificate, or a mesh between them."""


class UnexpectedAnswer(VllmError):
    """A success whose body is not what vLLM or the companion says."""


class RequestFailed(VllmError):
    """The server answered with an error. `status` is the HTTP status."""

    def __init__(self, url: str, status: int, message: str) -> None:
        super().__init__(url, f"HTTP {status}: {message}")
        self.status = status


class Refused(RequestFailed):
    """401 or 403: the API key or the control token is missing or wrong."""


class RouteMissing(RequestFailed):
    """404 of a control route: the server was started without the setting that opens it."""


class AdapterRejected(VllmError):
    """vLLM did not load an adapter, or says it did and does not list it. `name` and `path` say which."""

    def __init__(self, url: str, name: str, path: str, message: str) -> None:
        super().__init__(url, f"adapter {name} from {path}: {message}")
        self.name = name
        self.path = path


class AliasRejected(RequestFailed):
    """The companion did not point a served name at its target (409)."""


class ProbeFailed(VllmError):
    """A loaded adapter does not answer the probe, or answers with unusable log-probabilities."""


class ProbedNothing(ProbeFailed):
    """The adapter to probe was not loaded (404): somebody unloaded it meanwhile."""


class AdapterNotApplied(VllmError):
    """A version is loaded, and the base answers in its place; loading it again did not help."""


class DrainTimedOut(VllmError):
    """Running requests did not end within the drain timeout. Serving was resumed; none was aborted."""


class StillPaused(VllmError):
    """The server still says it is asleep or paused after everything that should have woken it."""
