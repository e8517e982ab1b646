"""Pausing, waking and swapping when the server does not do what it is told."""

import json
import time
from dataclasses import dataclass, field

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from claas_crds.v1alpha1.serving import SERVED_NAME_LIMIT
from claas_crds.v1alpha1.training import LORA_ID_PATTERN
from claas_vllm import aliases as companion_aliases
from claas_vllm_client import (
    DrainTimedOut,
    NotConnected,
    PauseMode,
    ProbeFailed,
    ProbeSpec,
    Refused,
    RequestFailed,
    ServerGone,
    StillPaused,
    Unreachable,
    VllmClient,
    ensure_awake,
    pause_serving,
    put_in_service,
    resume_serving,
)

URL = "http://10.0.0.7:8000"


@dataclass
class Scripted:
    """A server whose next answers to a route are scripted: a status, or an exception; then all goes well.

    It is asleep after /sleep and paused after /pause, as vLLM is.
    """

    script: dict[str, list[int | type[httpx.TransportError]]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    asleep: bool = False
    paused: bool = False
    deaf: bool = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route = request.url.path
        self.calls.append(f"{route}?{request.url.params}" if request.url.query else route)
        planned = self.script.get(route, [])
        step = planned.pop(0) if planned else 200
        if not isinstance(step, int):
            self._act(route)
            raise step("lost", request=request)
        if step != 200:
            return httpx.Response(step, json={"error": {"message": "scripted"}})
        self._act(route)
        return httpx.Response(200, json={"is_sleeping": self.asleep or self.paused, "is_paused": self.paused})

    def _act(self, route: str) -> None:
        if route == "/sleep":
            self.asleep = self.paused = True
        elif route == "/pause":
            self.paused = True
        elif self.deaf:
            return
        elif route == "/wake_up":
            self.asleep = self.paused = False
        elif route == "/resume":
            self.paused = False

    def client(self) -> VllmClient:
        return VllmClient(URL, transport=httpx.MockTransport(self))


async def test_a_drain_pauses_first_and_sleeps_without_waiting_in_the_engine() -> None:
    server = Scripted()
    await pause_serving(server.client(), mode=PauseMode.WAIT)
    assert server.calls == ["/pause?mode=wait", "/sleep?level=1&mode=keep"]


async def test_a_drain_that_times_out_is_resumed_and_checked_and_nothing_is_aborted() -> None:
    server = Scripted({"/pause": [httpx.ReadTimeout]})
    with pytest.raises(DrainTimedOut, match="none was ended"):
        await pause_serving(server.client(), mode=PauseMode.WAIT, drain_timeout_seconds=1.0)
    assert server.calls == ["/pause?mode=wait", "/resume", "/is_paused"]
    assert not server.paused


async def test_a_drain_whose_resume_does_not_take_is_said() -> None:
    server = Scripted({"/pause": [httpx.ReadTimeout]}, deaf=True)
    with pytest.raises(StillPaused, match="/wake_up"):
        await pause_serving(server.client(), mode=PauseMode.WAIT, resume_timeout_seconds=0.2)
    assert "/sleep" not in " ".join(server.calls)


async def test_a_server_that_takes_no_connection_for_long_has_ended_and_is_asleep_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("claas_vllm_client.serving._GONE_SECONDS", 0.3)
    server = Scripted({"/wake_up": [httpx.ConnectError] * 50})
    began = time.monotonic()
    with pytest.raises(ServerGone, match="has ended"):
        await resume_serving(server.client(), timeout_seconds=30)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("between", [httpx.ReadTimeout, 500], ids=["busy", "out of memory"])
async def test_a_server_that_takes_connections_now_and_then_has_not_ended(
    between: type[httpx.TransportError] | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claas_vllm_client.serving._GONE_SECONDS", 0.5)
    server = Scripted({"/wake_up": [httpx.ConnectError, httpx.ConnectError, between, httpx.ConnectError, between]})
    server.asleep = True
    await resume_serving(server.client(), timeout_seconds=30)
    assert not server.asleep


async def test_a_resume_that_fails_is_made_good_by_a_wake_up() -> None:
    server = Scripted({"/pause": [httpx.ReadTimeout], "/resume": [500]})
    with pytest.raises(DrainTimedOut):
        await pause_serving(server.client(), mode=PauseMode.WAIT)
    assert server.calls[-2:] == ["/wake_up", "/is_sleeping"]
    assert not server.paused


async def test_a_drain_that_breaks_off_leaves_the_server_unpaused() -> None:
    server = Scripted({"/pause": [httpx.RemoteProtocolError]})
    with pytest.raises(Unreachable):
        await pause_serving(server.client(), mode=PauseMode.WAIT)
    assert not server.paused


async def test_an_unreachable_server_is_reported_at_once() -> None:
    for route, mode in (("/sleep", PauseMode.KEEP), ("/pause", PauseMode.WAIT)):
        server = Scripted({route: [httpx.ConnectError] * 9})
        with pytest.raises(NotConnected):
            await pause_serving(server.client(), mode=mode)
        assert len(server.calls) == 1


@pytest.mark.parametrize("mode", list(PauseMode))
async def test_a_sleep_that_fails_leaves_the_server_awake(mode: PauseMode) -> None:
    server = Scripted({"/sleep": [500]})
    with pytest.raises(RequestFailed):
        await pause_serving(server.client(), mode=mode)
    assert not server.asleep
    assert not server.paused


async def test_a_sleep_whose_answer_is_lost_leaves_the_server_awake() -> None:
    server = Scripted({"/sleep": [httpx.ReadTimeout]})
    with pytest.raises(Exception, match="no answer within"):
        await pause_serving(server.client())
    assert not server.asleep
    assert server.calls[-2:] == ["/wake_up", "/is_sleeping"]


async def test_a_wake_that_fails_at_first_is_tried_again() -> None:
    server = Scripted({"/wake_up": [500, 500]}, asleep=True)
    assert await ensure_awake(server.client())
    assert server.calls.count("/wake_up") == 3
    assert "/resume" not in server.calls


async def test_waking_what_is_awake_asks_and_does_nothing() -> None:
    server = Scripted()
    assert not await ensure_awake(server.client())
    assert server.calls == ["/is_sleeping"]


async def test_a_server_without_sleep_routes_counts_as_awake() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"detail": "Not Found"})

    assert not await ensure_awake(VllmClient(URL, transport=httpx.MockTransport(handler)))


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (Scripted(asleep=True, deaf=True), "it says so"),
        (Scripted({"/wake_up": [500] * 99}, asleep=True), "scripted"),
        (Scripted({"/wake_up": [httpx.ConnectError] * 99}, asleep=True), "no answer"),
    ],
)
async def test_a_server_that_does_not_wake_is_given_up_within_the_timeout(server: Scripted, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(StillPaused, match=reason):
        await resume_serving(server.client(), timeout_seconds=0.3)
    assert time.monotonic() - started < 5.0


async def test_a_wrong_token_is_not_tried_again() -> None:
    server = Scripted({"/is_sleeping": [403], "/wake_up": [403]}, asleep=True)
    with pytest.raises(Refused):
        await ensure_awake(server.client())
    with pytest.raises(Refused):
        await resume_serving(server.client())
    assert server.calls == ["/is_sleeping", "/wake_up"]


@dataclass
class Swapping:
    """A server with a companion, adapters, and an answer to the probe."""

    adapters: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    conflicts: int = 0
    vanishings: int = 0
    logprob: str = "-0.5"
    loads: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route = request.url.path
        document = json.loads(request.content) if request.content else {}
        if route == "/claas/models":
            cards = [{"id": name, "root": path, "parent": "b"} for name, path in self.adapters.items()]
            return httpx.Response(200, json={"data": [{"id": "b", "root": "/b"}, *cards]})
        if route == "/v1/load_lora_adapter":
            self.loads.append(document["lora_name"])
            self.adapters[document["lora_name"]] = document["lora_path"]
        elif route == "/v1/unload_lora_adapter":
            self.adapters.pop(document["lora_name"], None)
        elif route == "/v1/completions":
            if self.vanishings:
                self.vanishings -= 1
                self.adapters.pop(document["model"], None)
                return httpx.Response(404, json={"error": {"message": "no such model"}})
            choice = f'{{"text": "a", "token_ids": [1], "logprobs": {{"token_logprobs": [{self.logprob}]}}}}'
            text = f'{{"model": "{document["model"]}", "choices": [{choice}]}}'
            return httpx.Response(200, text=text)
        elif route.startswith("/claas/aliases/"):
            if self.conflicts:
                self.conflicts -= 1
                self.adapters.pop(document["target"], None)
                return httpx.Response(409, json={"error": {"message": "not a loaded adapter"}})
            self.aliases[route.removeprefix("/claas/aliases/")] = document
        return httpx.Response(200, json=self._status())

    def _status(self) -> dict[str, object]:
        aliases = [
            {"name": name, "loaded": alias["target"] in self.adapters, **alias}
            for name, alias in self.aliases.items()
        ]
        return {
            "companion_version": "1", "vllm_version": "0.32.0", "supported_vllm_versions": ["0.32"],
            "vllm_supported": True, "aliases": aliases, "gpu_uuids": [], "persisted": True,
        }  # fmt: skip

    def client(self) -> VllmClient:
        return VllmClient(URL, transport=httpx.MockTransport(self))


PROBE = ProbeSpec("p")


async def test_a_target_unloaded_by_an_earlier_swap_is_loaded_again_before_the_flip() -> None:
    server = Swapping(conflicts=1)
    outcome = await put_in_service(server.client(), served_name="n", version=7, path="/v/7", probe=PROBE)
    assert outcome.changed
    assert server.loads == ["n@7", "n@7"]
    alias = server.aliases["n"]
    assert (alias["target"], alias["path"], alias["version"]) == ("n@7", "/v/7", 7)


async def test_a_target_unloaded_by_an_earlier_swap_is_loaded_again_before_the_probe() -> None:
    server = Swapping(vanishings=2)
    outcome = await put_in_service(server.client(), served_name="n", version=7, path="/v/7", probe=PROBE)
    assert outcome.changed
    assert server.loads == ["n@7", "n@7", "n@7"]
    with pytest.raises(ProbeFailed, match="not loaded"):
        await put_in_service(Swapping(vanishings=9).client(), served_name="n", version=7, path="/v/7", probe=PROBE)


async def test_an_alias_whose_target_was_unloaded_is_put_in_service_again() -> None:
    server = Swapping()
    client = server.client()
    await put_in_service(client, served_name="n", version=7, path="/v/7", probe=PROBE)
    server.adapters.clear()
    again = await put_in_service(client, served_name="n", version=7, path="/v/7", probe=PROBE)
    assert again.changed
    assert server.loads == ["n@7", "n@7"]


async def test_the_same_version_number_from_another_path_gets_a_name_of_its_own() -> None:
    server = Swapping()
    client = server.client()
    first = await put_in_service(client, served_name="n", version=1, path="/old/1", probe=PROBE)
    second = await put_in_service(client, served_name="n", version=1, path="/new/1", probe=PROBE)
    assert first.target == "n@1"
    assert second.target.startswith("n@1-")
    assert server.adapters[second.target] == "/new/1"


@settings(max_examples=50)
@given(
    st.from_regex(LORA_ID_PATTERN, fullmatch=True).filter(lambda name: len(name) <= SERVED_NAME_LIMIT),
    st.integers(0, 10**18 - 1),
    st.booleans(),
)
@example("a" * SERVED_NAME_LIMIT, 10**18 - 1, True)
@example("a/" * (SERVED_NAME_LIMIT // 2 - 1) + "ab", 7, False)
async def test_whatever_name_the_schema_takes_the_companion_takes_with_any_version_behind_it(
    name: str, version: int, taken: bool
) -> None:
    assert SERVED_NAME_LIMIT == companion_aliases.SERVED_NAME_LIMIT
    server = Swapping(adapters={f"{name}@{version}": "/elsewhere"} if taken else {})
    await put_in_service(server.client(), served_name=name, version=version, path="/v/x", probe=None)
    (alias,) = server.aliases.values()
    assert companion_aliases.parse_alias(name, json.dumps(alias).encode()).target == alias["target"]


async def test_a_name_loaded_before_the_companion_came_moves_to_an_alias() -> None:
    server = Swapping(adapters={"n": "/v/6"})
    outcome = await put_in_service(server.client(), served_name="n", version=6, path="/v/6", probe=PROBE)
    assert outcome.target == "n@6"
    assert server.adapters == {"n@6": "/v/6"}


@pytest.mark.parametrize("logprob", ["NaN", "Infinity", "-Infinity"])
async def test_a_version_with_broken_weights_is_unloaded_and_not_served(logprob: str) -> None:
    server = Swapping(logprob=logprob)
    with pytest.raises(ProbeFailed, match="not finite"):
        await put_in_service(server.client(), served_name="n", version=7, path="/v/7", probe=PROBE)
    assert server.aliases == {}
    assert server.adapters == {}
