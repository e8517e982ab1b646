"""Served names: rewriting, counting, the flip, unloading, and what outlives a restart."""

# ruff: noqa: ASYNC240  (the files are tiny and local, and nothing else runs on the loop)

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_vllm import Companion
from claas_vllm.alias_folder import AliasFolder
from claas_vllm.aliases import SERVED_NAME_LIMIT, TARGET_LIMIT, Alias, AliasTable
from tests.unit.companion.small_server import API_KEY, Reply, SmallServer, ask, start

TOKEN = "control"
NAME = "user123/coder-v1"
HEADERS = {"X-Claas-Token": TOKEN}


@pytest.fixture
def alias_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("CLAAS_ALIAS_DIR", str(tmp_path / "aliases"))
    monkeypatch.delenv("CLAAS_LOCK", raising=False)
    return tmp_path / "aliases"


@pytest.fixture
def server() -> SmallServer:
    server = SmallServer(adapters={f"{NAME}@{number}": f"/v/{number}" for number in (1, 2, 3)})
    server.gate.set()
    return server


async def point(app: Companion, server: SmallServer, version: int, name: str = NAME) -> Reply:
    body = {"target": f"{NAME}@{version}", "path": f"/v/{version}", "version": version}
    return await control(app, server, "PUT", f"/claas/aliases/{name}", json.dumps(body).encode())


async def control(app: Companion, server: SmallServer, method: str, path: str, body: bytes = b"") -> Reply:
    return await ask(app, method, path, body, headers=HEADERS, application=server)


async def complete(
    app: Companion, server: SmallServer, document: object, path: str = "/v1/completions", chunk_bytes: int = 1 << 16
) -> Reply:
    return await ask(app, "POST", path, json.dumps(document).encode(), application=server, chunk_bytes=chunk_bytes)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
async def test_a_request_for_the_served_name_reaches_its_target_and_the_answer_says_so(
    alias_dir: Path, server: SmallServer, path: str
) -> None:
    app = Companion(server)
    assert (await point(app, server, 1)).status == 200
    document = {"prompt": "Grüße \U0001f600 \ud800", "model": NAME, "n": 12345678901234567890, "t": 0.1}
    reply = await complete(app, server, document, path)

    assert (reply.status, reply.body) == (200, b"first last")
    assert reply.headers["x-claas-version"] == f"{NAME}@1"
    assert json.loads(server.seen[0]) == {**document, "model": f"{NAME}@1"}


async def test_a_body_in_many_pieces_is_rewritten_whole(alias_dir: Path, server: SmallServer) -> None:
    app = Companion(server)
    await point(app, server, 1)
    document = {"prompt": "x" * 3_000_000, "model": NAME}
    assert (await complete(app, server, document, chunk_bytes=60_000)).status == 200
    assert json.loads(server.seen[0]) == {**document, "model": f"{NAME}@1"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "base",  "prompt": "x"}', b'{"prompt": "x"}', b'{"model": 7}', b'["user123/coder-v1"]', b"", b"{",
        b'{"model": null}', b"\xff\xfe", b"[" * 100_000,
    ],
)  # fmt: skip
async def test_a_body_that_names_no_alias_passes_byte_for_byte(
    alias_dir: Path, server: SmallServer, body: bytes
) -> None:
    app = Companion(server)
    await point(app, server, 1)
    reply = await ask(app, "POST", "/v1/completions", body, application=server)
    assert server.seen == [body]
    assert "x-claas-version" not in reply.headers


async def test_a_body_that_is_not_json_is_not_touched(alias_dir: Path, server: SmallServer) -> None:
    app = Companion(server)
    await point(app, server, 1)
    body = json.dumps({"model": NAME}).encode()
    await ask(app, "POST", "/v1/completions", body, application=server, headers={"content-type": "text/plain"})
    assert server.seen == [body]


async def test_a_caller_whom_vllm_turns_away_does_not_learn_the_version(alias_dir: Path, server: SmallServer) -> None:
    app = Companion(server)
    await point(app, server, 1)
    body = json.dumps({"model": NAME}).encode()
    reply = await ask(app, "POST", "/v1/completions", body, headers={"authorization": "Bearer no"})
    assert reply.status == 401
    assert "x-claas-version" not in reply.headers


async def test_a_request_in_flight_keeps_its_version_loaded_until_it_ends(
    alias_dir: Path, server: SmallServer
) -> None:
    app = Companion(server)
    await point(app, server, 1)
    server.gate.clear()
    running = asyncio.ensure_future(complete(app, server, {"model": NAME}))
    await settle()
    status = (await point(app, server, 2)).json()
    await settle()

    assert status["aliases"] == [
        {
            "name": NAME, "target": f"{NAME}@2", "path": "/v/2", "version": 2, "loaded": True,
            "probe": None, "verified": False, "in_flight": {f"{NAME}@2": 0, f"{NAME}@1": 1},
        }
    ]  # fmt: skip
    assert f"{NAME}@1" in server.adapters
    server.gate.set()
    assert (await running).headers["x-claas-version"] == f"{NAME}@1"
    await settle()
    assert f"{NAME}@1" not in server.adapters
    assert (await complete(app, server, {"model": NAME})).headers["x-claas-version"] == f"{NAME}@2"


async def test_a_request_that_breaks_off_is_counted_out(alias_dir: Path, server: SmallServer) -> None:
    app = Companion(server)
    await point(app, server, 1)
    server.gate.clear()
    running = asyncio.ensure_future(complete(app, server, {"model": NAME}))
    await settle()
    running.cancel()
    await settle()
    await point(app, server, 2)
    await settle()
    assert f"{NAME}@1" not in server.adapters


async def test_a_version_that_comes_back_before_it_was_unloaded_stays_loaded(
    alias_dir: Path, server: SmallServer
) -> None:
    app = Companion(server)
    await point(app, server, 1)
    server.gate.clear()
    running = asyncio.ensure_future(complete(app, server, {"model": NAME}))
    await settle()
    await point(app, server, 2)
    await point(app, server, 1)
    server.gate.set()
    await running
    await settle()
    assert f"{NAME}@1" in server.adapters
    assert f"{NAME}@2" not in server.adapters


async def test_a_target_that_two_names_share_is_unloaded_when_both_have_left_it(
    alias_dir: Path, server: SmallServer
) -> None:
    app = Companion(server)
    await point(app, server, 1)
    await point(app, server, 1, name="other")
    await point(app, server, 2)
    await settle()
    assert f"{NAME}@1" in server.adapters
    assert (await control(app, server, "DELETE", "/claas/aliases/other")).status == 200
    await settle()
    assert f"{NAME}@1" not in server.adapters
    assert (await control(app, server, "DELETE", "/claas/aliases/other")).status == 404


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        (NAME, b"{", 400, "not JSON"),
        (NAME, b"[]", 400, "an object"),
        (NAME, b'{"target": "x@1", "path": "/v/1"}', 400, "version"),
        (NAME, b'{"target": "x@1", "path": "/v/1", "version": true}', 400, "version"),
        (NAME, b'{"target": "x@1", "path": "/v/1", "version": -1}', 400, "version"),
        (NAME, b'{"target": "x@1", "path": "", "version": 1}', 400, "path"),
        (NAME, b'{"target": "user123/coder-v1", "path": "/v", "version": 1}', 400, "another name"),
        (NAME, b'{"target": "x\\ny", "path": "/v/1", "version": 1}', 400, "target"),
        ("../up", b'{"target": "x@1", "path": "/v/1", "version": 1}', 400, "served name"),
        (NAME, b'{"target": "x@1", "path": "/v/1", "version": 1}', 409, "not a loaded adapter"),
        (NAME, b'{"target": "base", "path": "/models/base", "version": 1}', 409, "not a loaded adapter"),
        (NAME, b'{"target": "user123/coder-v1@1", "path": "/v/2", "version": 1}', 409, "loaded from /v/1"),
        ("base", b'{"target": "user123/coder-v1@1", "path": "/v/1", "version": 1}', 409, "base model"),
        (NAME, b" " * 70_000, 413, "exceeds"),
    ],
)
async def test_an_alias_that_can_not_be_is_refused_and_changes_nothing(
    alias_dir: Path, server: SmallServer, name: str, body: bytes, status: int, message: str
) -> None:
    app = Companion(server)
    await point(app, server, 2)
    reply = await control(app, server, "PUT", f"/claas/aliases/{name}", body)
    error = reply.json()["error"]
    assert isinstance(error, dict)
    assert (reply.status, error["code"]) == (status, status)
    assert message in str(error["message"])
    served = await complete(app, server, {"model": NAME})
    assert served.headers["x-claas-version"] == f"{NAME}@2"


async def test_the_model_list_names_a_served_name_once_and_no_version_behind_it(
    alias_dir: Path, server: SmallServer
) -> None:
    app = Companion(server)
    server.adapters |= {"other@1": "/o/1", f"{NAME}@4-0123abcd": "/v/4"}
    await point(app, server, 3)
    reply = await ask(app, "GET", "/v1/models", application=server)
    base = {"id": "base", "root": "/models/base", "parent": None}
    other = {"id": "other@1", "root": "/o/1", "parent": "base"}
    assert reply.json()["data"] == [base, other, {"id": NAME, "root": "/v/3", "parent": "base"}]
    assert int(reply.headers["content-length"]) == len(reply.body)
    del server.adapters[f"{NAME}@3"]
    cards = (await ask(app, "GET", "/v1/models", application=server)).json()["data"]
    assert isinstance(cards, list)
    assert NAME not in [card["id"] for card in cards]


async def test_who_has_the_token_is_told_of_every_version(alias_dir: Path, server: SmallServer) -> None:
    app = Companion(server)
    await point(app, server, 3)
    cards = (await control(app, server, "GET", "/claas/models")).json()["data"]
    assert isinstance(cards, list)
    assert [card["id"] for card in cards] == ["base", *(f"{NAME}@{number}" for number in (1, 2, 3)), NAME]
    assert (await ask(app, "GET", "/claas/models", application=server)).status == 403


@pytest.mark.parametrize("waking", ["/wake_up", "/resume"])
async def test_what_a_version_answered_is_kept_and_has_to_be_seen_anew_after_a_wake_or_a_restart(
    alias_dir: Path, server: SmallServer, waking: str
) -> None:
    async def told(app: Companion) -> tuple[object, object]:
        aliases = (await control(app, server, "GET", "/claas/status")).json()["aliases"]
        assert isinstance(aliases, list)
        return aliases[0]["probe"], aliases[0]["verified"]

    app = Companion(server)
    probe = {"adapter": [[1, -0.5]]}
    body = json.dumps({"target": f"{NAME}@1", "path": "/v/1", "version": 1, "probe": probe}).encode()
    await point(app, server, 1)
    assert await told(app) == (None, False)
    await control(app, server, "PUT", f"/claas/aliases/{NAME}", body)
    assert await told(app) == (probe, True)
    await control(app, server, "POST", waking)
    assert await told(app) == (probe, False)
    await control(app, server, "PUT", f"/claas/aliases/{NAME}", body)
    assert await told(app) == (probe, True)
    restarted = Companion(server)
    await start(restarted, server)
    assert await told(restarted) == (probe, False)


async def test_the_longest_served_name_can_be_served_and_outlives_a_restart(
    alias_dir: Path, server: SmallServer
) -> None:
    name = "a/" * (SERVED_NAME_LIMIT // 2 - 1) + "ab"
    target = f"{name}@{10**18 - 1}-0123abcd"
    assert (len(name), len(target)) == (SERVED_NAME_LIMIT, TARGET_LIMIT)
    server.adapters[target] = "/v/1"
    app = Companion(server)
    body = json.dumps({"target": target, "path": "/v/1", "version": 10**18 - 1}).encode()
    assert (await control(app, server, "PUT", f"/claas/aliases/{name}", body)).json()["persisted"] is True
    restarted = Companion(server)
    await start(restarted, server)
    assert (await complete(restarted, server, {"model": name})).headers["x-claas-version"] == target
    assert (await control(app, server, "PUT", f"/claas/aliases/{name}a", body)).status == 400


async def test_status_says_when_a_target_was_unloaded_behind_the_companions_back(
    alias_dir: Path, server: SmallServer
) -> None:
    app = Companion(server)
    await point(app, server, 3)
    del server.adapters[f"{NAME}@3"]
    aliases = (await control(app, server, "GET", "/claas/status")).json()["aliases"]
    assert isinstance(aliases, list)
    assert aliases[0]["loaded"] is False


async def test_aliases_are_back_before_the_server_says_it_is_ready(alias_dir: Path, server: SmallServer) -> None:
    first = Companion(server)
    await point(first, server, 2)
    restarted = SmallServer()
    restarted.gate.set()
    app = Companion(restarted)
    told = await start(app, restarted)

    assert [message["type"] for message in told] == ["lifespan.startup.complete"]
    assert restarted.reached == ["/v1/load_lora_adapter"]
    reply = await complete(app, restarted, {"model": NAME})
    assert reply.headers["x-claas-version"] == f"{NAME}@2"
    status = (await control(app, restarted, "GET", "/claas/status")).json()
    assert status["persisted"] is True


async def test_a_restart_skips_what_is_missing_or_broken_and_serves_the_rest(
    alias_dir: Path, server: SmallServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = Companion(server)
    await point(first, server, 1)
    await point(first, server, 2, name="good")
    (alias_dir / "broken.json").write_text("{")
    (alias_dir / "list.json").write_text("[1]")
    (alias_dir / "renamed.json").write_bytes((alias_dir / "good.json").read_bytes())
    restarted = SmallServer(missing_paths={"/v/1"})
    restarted.gate.set()
    app = Companion(restarted)
    with caplog.at_level("WARNING"):
        assert (await start(app, restarted))[0]["type"] == "lifespan.startup.complete"

    status = (await control(app, restarted, "GET", "/claas/status")).json()
    aliases = status["aliases"]
    assert isinstance(aliases, list)
    assert [alias["name"] for alias in aliases] == ["good"]
    for skipped in (NAME, "broken.json", "list.json", "renamed.json"):
        assert skipped in caplog.text
    reply = await complete(app, restarted, {"model": NAME})
    assert "x-claas-version" not in reply.headers


async def test_a_deleted_alias_does_not_come_back(alias_dir: Path, server: SmallServer) -> None:
    app = Companion(server)
    await point(app, server, 1)
    assert [file.name for file in alias_dir.iterdir()] == ["user123%2Fcoder-v1.json"]
    await control(app, server, "DELETE", f"/claas/aliases/{NAME}")
    assert list(alias_dir.iterdir()) == []


async def test_a_folder_that_can_not_be_written_is_said_and_does_not_stop_serving(
    alias_dir: Path, server: SmallServer
) -> None:
    app = Companion(server)
    await point(app, server, 1)
    (alias_dir / "user123%2Fcoder-v1.json").unlink()
    alias_dir.rmdir()
    alias_dir.write_text("a file where the folder was")
    assert (await point(app, server, 2)).json()["persisted"] is False
    assert (await complete(app, server, {"model": NAME})).headers["x-claas-version"] == f"{NAME}@2"
    alias_dir.unlink()
    alias_dir.mkdir()
    assert (await point(app, server, 2)).json()["persisted"] is True


async def test_without_a_folder_aliases_work_and_are_said_not_to_persist(
    alias_dir: Path, server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLAAS_ALIAS_DIR")
    app = Companion(server)
    assert (await start(app, server))[0]["type"] == "lifespan.startup.complete"
    assert (await point(app, server, 1)).json()["persisted"] is False


async def test_the_api_key_of_the_environment_serves_when_no_argument_gives_one(
    alias_dir: Path, server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Companion(server)
    server.state.args.api_key = None
    assert (await point(app, server, 1)).status == 500
    monkeypatch.setenv("VLLM_API_KEY", API_KEY)
    assert (await point(app, server, 1)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/claas/status", 404),
        ("GET", "/claas", 404),
        ("GET", "/claas/aliases/", 404),
        ("PUT", "/claas/aliases", 404),
        ("GET", "/claas/aliases/x", 405),
    ],
)
async def test_the_companion_says_which_routes_it_has(
    alias_dir: Path, server: SmallServer, method: str, path: str, status: int
) -> None:
    reply = await control(Companion(server), server, method, path)
    assert reply.status == status
    assert server.reached == []


async def test_no_text_of_a_request_is_logged(
    alias_dir: Path, server: SmallServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = Companion(server)
    with caplog.at_level("DEBUG"):
        await point(app, server, 1)
        await complete(app, server, {"model": NAME, "prompt": "a private prompt"})
        await ask(app, "POST", "/v1/completions", b'{"model": "a private prompt', application=server)
        await control(app, server, "PUT", f"/claas/aliases/{NAME}", b'{"target": "a private prompt"}')
    assert "is served by" in caplog.text
    assert "private" not in caplog.text


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans()), max_size=30))
def test_no_target_is_idle_while_a_name_or_a_request_uses_it(steps: list[tuple[str, int, bool]]) -> None:
    table = AliasTable()
    running: list[str] = []
    for name, version, begins in steps:
        table.put(Alias(name, f"t@{version}", f"/v/{version}", version))
        if begins:
            target = table.begin(name)
            assert target == f"t@{version}"
            running.append(target)
        elif running:
            table.end(running.pop(0))
        used = {alias.target for alias in table} | set(running)
        assert used.isdisjoint(table.idle_retired())
    for target in running:
        table.end(target)
    served = {alias.target for alias in table}
    assert set(table.idle_retired()) == {f"t@{version}" for _, version, _ in steps} - served


def test_a_crash_while_writing_leaves_the_old_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = AliasFolder(tmp_path)
    old = Alias("name", "name@1", "/v/1", 1)
    folder.save(old)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    folder.save(Alias("name", "name@2", "/v/2", 2))
    assert not folder.persisted
    assert AliasFolder(tmp_path).read() == [old]
    assert [file.name for file in tmp_path.iterdir()] == ["name.json"]
