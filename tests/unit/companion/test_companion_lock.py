"""The lock: which routes need the token, whatever way they are written."""

# ruff: noqa: ASYNC240  (the files are tiny and local, and nothing else runs on the loop)

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_vllm import Companion
from claas_vllm.errors import ConfigurationError
from claas_vllm.lock import CONTROL_TREES, OPEN_ROUTES, OPEN_TREES, needs_token, route_path
from claas_vllm.settings import read_settings
from tests.unit.companion.small_server import SmallServer, ask

TOKEN = "rotated-now-and-then"


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(file))
    monkeypatch.delenv("CLAAS_LOCK", raising=False)
    return file


@pytest.mark.parametrize("path", sorted(OPEN_ROUTES | set(OPEN_TREES)))
def test_a_clients_route_needs_no_token(path: str) -> None:
    assert not needs_token(path)
    assert not needs_token(path + "/")


@pytest.mark.parametrize("path", CONTROL_TREES)
def test_a_control_route_needs_the_token_and_can_not_be_opened(path: str) -> None:
    assert needs_token(path)
    assert needs_token(path, (path, "/v1"))


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "*", "sleep", "//sleep", "/sleep/", "/sleep//", "/./sleep", "/v1/../sleep", "/v1/chat/../../sleep",
        "/v1/models/../load_lora_adapter", "/v1//load_lora_adapter", "/v1/load_lora_adapter/", "/SLEEP", "/Sleep",
        "/%73leep", "/sleep%2f", "/sleep\n", "/sleep\x00", "/health\n", "/health;/../sleep", "\\sleep",
        "/v1/chat\\..\\..\\sleep", "/v1/models/%2e%2e/load_lora_adapter", "/claas", "/claas/status",
        "/claas/aliases/x", "/adapters", "/adapters/x", "/abort_requests", "/inference/v1/abort_requests",
        "/never_heard_of", "/v1/never_heard_of", "/v1", "/v1/", "/v1/modelsx", "/healthz", "http://host/sleep",
        "/v1/chat/./x",
    ],
)  # fmt: skip
def test_unknown_routes_and_other_ways_to_write_a_control_route_are_locked(path: str) -> None:
    assert needs_token(path)


@given(
    control=st.sampled_from(CONTROL_TREES),
    before=st.lists(st.sampled_from(["/", "//", "/.", "/..", "/v1", "/health", "/v1/chat", "%2f", "\\"]), max_size=4),
    after=st.lists(st.sampled_from(["/", "//", "/.", "/..", "/x", "?", "%00", "\n", ";x"]), max_size=3),
)
def test_no_decoration_opens_a_path_that_leads_to_a_control_route(
    control: str, before: list[str], after: list[str]
) -> None:
    path = "".join(before) + control + "".join(after)
    # The tree /v1/chat is open with everything plainly below it; vLLM has no control route there.
    if not needs_token(path):
        assert "//" not in path
        assert "/." not in path
        assert path.startswith("/v1/chat/")


@given(st.text(max_size=30))
def test_whatever_is_open_is_written_plainly_below_a_known_route(path: str) -> None:
    if not needs_token(path):
        plain = path.rstrip("/")
        assert any(plain == known or plain.startswith(f"{known}/") for known in {*OPEN_ROUTES, *OPEN_TREES})
        assert quote(plain, safe="/~:@+") == plain


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/sleep", "", "/sleep"),
        ("/prefix/sleep", "/prefix", "/sleep"),
        ("/prefix", "/prefix", ""),
        ("/prefixed/sleep", "/prefix", "/prefixed/sleep"),
        ("/v1/sleep", "/v1", "/sleep"),
        ("/sleep", "/prefix", "/sleep"),
    ],
)
def test_the_route_is_what_the_router_makes_of_path_and_root_path(path: str, root: str, expected: str) -> None:
    starlette = pytest.importorskip("starlette._utils")
    scope = {"path": path, "root_path": root}
    assert route_path(scope) == expected == starlette.get_route_path(scope)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "BREW"])
@pytest.mark.parametrize("root_path", ["", "/v1", "/health"])
async def test_no_method_and_no_root_path_gets_round_the_lock(token_file: Path, method: str, root_path: str) -> None:
    server = SmallServer()
    reply = await ask(Companion(server), method, f"{root_path}/sleep", root_path=root_path)
    assert reply.status == 403
    assert server.reached == []
    error = reply.json()["error"]
    assert isinstance(error, dict)
    assert error["type"] == "PermissionDeniedError"
    assert "X-Claas-Token" in str(error["message"])
    assert TOKEN not in str(error)


async def test_a_websocket_to_a_control_route_is_closed_and_a_clients_is_handed_on(token_file: Path) -> None:
    server = SmallServer()
    assert (await ask(Companion(server), "GET", "/sleep", kind="websocket")).status == 0
    assert (await ask(Companion(server), "GET", "/v1/realtime", kind="websocket")).status == 1
    assert server.reached == ["/v1/realtime"]


@pytest.mark.parametrize(
    ("given_token", "status"),
    [(TOKEN, 200), (TOKEN + "x", 403), (TOKEN[:-1], 403), ("", 403), ("Bearer " + TOKEN, 403)],
)
async def test_only_the_token_opens_a_control_route(token_file: Path, given_token: str, status: int) -> None:
    reply = await ask(Companion(SmallServer()), "POST", "/sleep", headers={"X-Claas-Token": given_token})
    assert reply.status == status


@pytest.mark.parametrize("token", [b"a\nb", "schl\u00fcssel".encode(), b"\xff\x00\x80", b"a\tb", b" \n"])
async def test_a_token_that_no_header_can_carry_locks_all_and_is_said(
    token_file: Path, token: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    token_file.write_bytes(token)
    reply = await ask(Companion(SmallServer()), "POST", "/sleep", headers={"X-Claas-Token": token.decode("latin-1")})
    assert reply.status == 403
    assert str(token_file) in caplog.text
    assert "all is locked" in caplog.text


async def test_a_rotated_token_counts_at_once_and_a_lost_or_empty_one_locks_all(token_file: Path) -> None:
    app = Companion(SmallServer())

    async def status(token: str) -> int:
        return (await ask(app, "POST", "/wake_up", headers={"x-claas-token": token})).status

    assert await status(TOKEN) == 200
    token_file.write_text("the-next-one")
    assert (await status(TOKEN), await status("the-next-one")) == (403, 200)
    token_file.write_text(" \n")
    assert (await status(""), await status("the-next-one")) == (403, 403)
    token_file.unlink()
    assert (await status(""), await status("the-next-one")) == (403, 403)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "CLAAS_TOKEN_FILE is not set"),
        ({"CLAAS_TOKEN_FILE": " "}, "CLAAS_TOKEN_FILE is not set"),
        ({"CLAAS_LOCK": "yes", "CLAAS_TOKEN_FILE": "/t"}, "must be on or off"),
        ({"CLAAS_TOKEN_FILE": "/t", "CLAAS_OPEN_PATHS": "/"}, "CLAAS_OPEN_PATHS"),
        ({"CLAAS_TOKEN_FILE": "/t", "CLAAS_OPEN_PATHS": "/a,b"}, "CLAAS_OPEN_PATHS"),
    ],
)
def test_settings_that_are_not_safe_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_settings(environment)


async def test_the_lock_is_off_only_when_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAAS_TOKEN_FILE", raising=False)
    monkeypatch.setenv("CLAAS_LOCK", "off")
    assert (await ask(Companion(SmallServer()), "POST", "/sleep")).status == 200


async def test_a_plugins_route_is_opened_by_name(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await ask(Companion(SmallServer()), "POST", "/plugin/route")).status == 403
    monkeypatch.setenv("CLAAS_OPEN_PATHS", "/plugin")
    assert (await ask(Companion(SmallServer()), "POST", "/plugin/route")).status == 200
