"""The record travels with the answer: as a last comment of an event stream, or as the tail of a JSON body."""

from claas_vllm.asgi import Headers, Message, Send, is_event_stream, is_json, with_length
from claas_vllm.recording import AnswerRecorder

RECORDED_ROUTES = ("/v1/chat/completions", "/v1/completions")


def wanted_recorder(headers: Headers) -> AnswerRecorder | None:
    """A recorder as the header `X-Claas-Record` asks for it (`ids`, or `ids, logprobs`); None if it does not."""
    given = [value for name, value in headers if name.lower() == b"x-claas-record"]
    parts = {part.strip().lower() for value in given for part in value.split(b",")}
    return AnswerRecorder(logprobs=b"logprobs" in parts) if b"ids" in parts else None


class AnswerWithRecord:
    """A `send` that adds the record to a successful answer; the header `X-Claas-Record` says how."""

    def __init__(self, send: Send, recorder: AnswerRecorder) -> None:
        self._send = send
        self._recorder = recorder
        self._streamed = False
        self._tail = b""

    async def __call__(self, message: Message) -> None:
        """Pass on one message; the last one of the body with the record behind."""
        if message["type"] == "http.response.start" and message["status"] < 400:
            message = self._begin(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            tail = b": claas-record " + self._recorder.line() + b"\n\n" if self._streamed else self._tail
            message = {**message, "body": message.get("body", b"") + tail}
        await self._send(message)

    def _begin(self, start: Message) -> Message:
        headers: Headers = list(start.get("headers", []))
        if is_event_stream(headers):
            self._streamed = True
            return {**start, "headers": [*headers, (b"x-claas-record", b"comment")]}
        lengths = [value for name, value in headers if name.lower() == b"content-length"]
        if not is_json(headers) or len(lengths) != 1:
            return start
        # A JSON answer begins when the engine has answered all.
        self._tail = self._recorder.line()
        headers = with_length(headers, int(lengths[0]) + len(self._tail))
        return {**start, "headers": [*headers, (b"x-claas-record", b"tail=%d" % len(self._tail))]}
