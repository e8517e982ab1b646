"""How a server with the companion starts, or refuses to; and what its status says about GPUs and vLLM."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI

from claas_vllm import Companion, gpus
from claas_vllm.asgi import Receive, Scope, Send
from claas_vllm.gpus import narrow_to_visible, visible_gpu_uuids
from claas_vllm.vllm_release import is_supported
from tests.unit.companion.small_server import SmallServer, ask, start


def _uvicorn(app: FastAPI) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))


async def test_without_a_token_file_the_real_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAAS_TOKEN_FILE", raising=False)
    monkeypatch.delenv("CLAAS_LOCK", raising=False)
    app = FastAPI()
    app.add_middleware(Companion)
    server = _uvicorn(app)
    with pytest.raises(SystemExit) as ended:
        await server.serve()
    assert ended.value.code != 0
    assert not server.started


async def test_the_refusal_says_what_to_set_and_no_request_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAAS_TOKEN_FILE", raising=False)
    monkeypatch.delenv("CLAAS_LOCK", raising=False)
    below = SmallServer()
    app = Companion(below)
    (told,) = await start(app, below)
    assert told["type"] == "lifespan.startup.failed"
    assert "CLAAS_TOKEN_FILE" in told["message"]
    assert "CLAAS_LOCK=off" in told["message"]
    for path in ("/sleep", "/v1/models", "/health"):
        assert (await ask(app, "GET", path)).status == 503
    assert below.reached == []


async def test_with_a_token_file_the_real_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("x")
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(tmp_path / "token"))
    app = FastAPI()
    app.add_middleware(Companion)
    server = _uvicorn(app)
    running = asyncio.ensure_future(server.serve())
    for _ in range(500):
        if server.started:
            break
        await asyncio.sleep(0.01)
    assert server.started
    server.should_exit = True
    await asyncio.wait_for(running, 10.0)


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.32.0", True), ("0.33.0", True), ("0.33.1rc1+cpu", True), ("0.31.2", False), ("0.34.0", False),
        ("0.320.0", False), ("1.32.0", False), (None, False),
    ],
)  # fmt: skip
def test_status_says_which_vllm_releases_are_supported(version: str | None, supported: bool) -> None:
    assert is_supported(version) is supported


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa1", "GPU-ab2", "GPU-c3"]),
        ("", []),
        ("1", ["GPU-ab2"]),
        ("2,0", ["GPU-c3", "GPU-aa1"]),
        ("GPU-c", ["GPU-c3"]),
        ("GPU-c3, 0", ["GPU-c3", "GPU-aa1"]),
        ("0,7,1", ["GPU-aa1"]),
        ("-1", []),
        ("GPU-a", []),
    ],
)
def test_cuda_visible_devices_narrows_the_gpus_as_cuda_does(visible: str | None, expected: list[str]) -> None:
    assert narrow_to_visible(["GPU-aa1", "GPU-ab2", "GPU-c3"], visible) == expected


def test_without_a_driver_there_are_no_gpus() -> None:
    class NVMLError(Exception):
        pass

    def fail() -> None:
        raise NVMLError("Driver Not Loaded")

    absent = SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpus, "_import_nvml", lambda: absent)
        assert visible_gpu_uuids({}) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpus, "_import_nvml", lambda: None)
        assert visible_gpu_uuids({}) == []


class _Nvml:
    """Two GPUs as NVML shows them; the second is cut into two MIG slices, of which one may be used."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.open = False

    def nvmlInit(self) -> None:  # noqa: N802
        self.open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return ("GPU-whole", "GPU-cut")[index]

    def nvmlDeviceGetMigMode(self, device: str) -> list[int]:  # noqa: N802
        if device == "GPU-whole":
            raise self.NVMLError("Not Supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: str, number: int) -> str:  # noqa: N802
        if number != 3:
            raise self.NVMLError("Not Found")
        return "MIG-three"

    def nvmlDeviceGetUUID(self, device: str) -> bytes:  # noqa: N802
        return device.encode()


def test_gpus_are_named_by_uuid_and_a_cut_one_by_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _Nvml()
    monkeypatch.setattr(gpus, "_import_nvml", lambda: nvml)
    assert visible_gpu_uuids({}) == ["GPU-whole", "MIG-three"]
    assert visible_gpu_uuids({"CUDA_VISIBLE_DEVICES": "MIG-three"}) == ["MIG-three"]
    assert visible_gpu_uuids({"CUDA_VISIBLE_DEVICES": "0"}) == ["GPU-whole"]
    assert not nvml.open


@pytest.fixture
def unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAAS_LOCK", "off")
    monkeypatch.setenv("CLAAS_ALIAS_DIR", str(tmp_path / "aliases"))


def with_sleep_mode(server: SmallServer, enabled: bool) -> SmallServer:
    server.state.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=enabled))
    return server


@pytest.mark.usefixtures("unlocked")
async def test_a_server_with_sleep_mode_sleeps_once_before_it_is_ready() -> None:
    server = with_sleep_mode(SmallServer(), enabled=True)
    (told,) = await start(Companion(server), server)
    assert told["type"] == "lifespan.startup.complete"
    assert server.reached == ["/sleep", "/wake_up"]
    assert server.asleep is False


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("server", [SmallServer(), with_sleep_mode(SmallServer(), enabled=False)])
async def test_a_server_without_sleep_mode_is_not_put_to_sleep(server: SmallServer) -> None:
    (told,) = await start(Companion(server), server)
    assert told["type"] == "lifespan.startup.complete"
    assert server.reached == []


@pytest.mark.usefixtures("unlocked")
async def test_a_server_that_can_not_wake_does_not_start_and_says_why() -> None:
    server = with_sleep_mode(SmallServer(wakes=False), enabled=True)
    (told,) = await start(Companion(server), server)
    assert told["type"] == "lifespan.startup.failed"
    assert "out of memory" in told["message"]


class Breaking(SmallServer):
    """Its engine dies of the sleep."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/sleep":
            raise RuntimeError("engine dead")
        await super().__call__(scope, receive, send)


@pytest.mark.usefixtures("unlocked")
async def test_a_server_that_breaks_at_its_first_sleep_does_not_start_as_if_nothing_had_happened() -> None:
    server = with_sleep_mode(Breaking(), enabled=True)
    (told,) = await start(Companion(server), server)
    assert told["type"] == "lifespan.startup.failed"
    assert "the first sleep: RuntimeError" in told["message"]
