"""Cuts a vLLM event stream into what the client gets at once, and its end, which waits until the rollout is stored.

Nothing here parses JSON: a chunk of whole events goes through as it came.
"""

from __future__ import annotations

_END = b"\n\n"
_DONE = b"data: [DONE]"
_COMMENT = b": claas-record "


class EventCutter:
    """Takes a stream's bytes, however they are cut, and gives whole events."""

    def __init__(self) -> None:
        self._begun = b""
        self._tail = b""
        self.ended = False
        """Whether `data: [DONE]` has come."""

    def feed(self, data: bytes) -> bytes:
        """The whole events before the end that these bytes complete; often all of them, or none."""
        if self.ended:
            self._tail += data
            return b""
        if self._begun:
            data = self._begun + data
            self._begun = b""
        if not data.endswith(_END):
            cut = data.rfind(_END) + len(_END)
            if cut < len(_END):
                self._begun = data
                return b""
            self._begun, data = data[cut:], data[:cut]
        if _DONE in data and (at := _line_at(data, _DONE)) >= 0:
            self.ended = True
            self._tail = data[at:] + self._begun
            self._begun = b""
            return data[:at]
        if _COMMENT in data and (at := _line_at(data, _COMMENT)) >= 0:
            # A stream without an end may have a record all the same, which is not the client's.
            return data[:at]
        return data

    @property
    def last(self) -> bytes:
        """What the client gets at the end: `data: [DONE]` without the record; or the beginning of an event."""
        if not self.ended:
            return self._begun
        at = _line_at(self._tail, _COMMENT)
        return self._tail if at < 0 else self._tail[:at]

    @property
    def record(self) -> bytes | None:
        """The companion's record, if it came whole."""
        at = _line_at(self._tail, _COMMENT)
        if at < 0 or not self._tail.endswith(_END):
            return None
        return self._tail[at + len(_COMMENT) :].strip()


def _line_at(data: bytes, beginning: bytes) -> int:
    """Where a line begins so; -1: nowhere. Inside a JSON string there are no line breaks."""
    if data.startswith(beginning):
        return 0
    at = data.find(b"\n" + beginning)
    return at + 1 if at >= 0 else -1
