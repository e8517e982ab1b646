"""A small app for tests of the client: `modal deploy` of this file."""

import os
import time

import modal

app = modal.App("claas-echo")
image = modal.Image.debian_slim().add_local_python_source("claas_bounded", "claas_modal_client")


class _TrapError(ValueError):
    """An exception, or a result, that makes a folder where it is unpickled."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (self.path,)


@app.cls(image=image, max_containers=1, timeout=60)
class Echo:
    @modal.method()
    def answer(self, request: dict[str, object]) -> dict[str, object]:
        return {"got": request, "process": os.getpid()}

    @modal.method()
    def numbers(self, request: dict[str, object]) -> list[int]:
        return [1, 2, 3]

    @modal.method()
    def large(self, request: dict[str, int]) -> dict[str, bytes]:
        return {"data": b"x" * request["bytes"]}

    @modal.method()
    def slow(self, request: dict[str, float]) -> dict[str, float]:
        time.sleep(request["seconds"])
        return {"slept": request["seconds"]}

    @modal.method()
    def fail(self, request: dict[str, str]) -> dict[str, object]:
        raise LookupError(f"no answer to {request['prompt']}")

    @modal.method()
    def trap(self, request: dict[str, str]) -> object:
        if request["how"] == "raise":
            raise _TrapError(request["path"])
        return _TrapError(request["path"])

    @modal.method()
    async def look(self, request: dict[str, str]) -> dict[str, object]:
        """What a container finds in a file of the Volume, as itself and with no token."""
        from claas_bounded.waits import Deadline
        from claas_modal_client.connection import ModalConnection
        from claas_modal_client.volume import ModalVolume

        content = await ModalVolume(ModalConnection.container(), "claas-echo").read(
            request["path"], Deadline.after(20)
        )
        return {"content": content}


@app.server(image=image, port=8000, unauthenticated=False)
class Web:
    @modal.enter()
    def start(self) -> None:
        raise RuntimeError("nobody should start this")
