"""What the client makes of answers: typed values from good ones, the right exception from bad ones."""

import json
from collections.abc import Awaitable, Callable

import httpx
import pytest

from claas_vllm_client import (
    AdapterRejected,
    AliasRejected,
    AnswerTimedOut,
    LoadOutcome,
    NotConnected,
    PauseMode,
    ProbeFailed,
    Refused,
    RequestFailed,
    RouteMissing,
    SleepState,
    UnexpectedAnswer,
    Unreachable,
    VllmClient,
    VllmError,
    same_path,
    version_in_path,
)
from claas_vllm_client.wire import parse_metrics

URL = "http://10.0.0.7:8000"
Handler = Callable[[httpx.Request], httpx.Response]
Call = Callable[[VllmClient], Awaitable[object]]


def client_of(handler: Handler) -> VllmClient:
    return VllmClient(URL + "/", control_token="t", api_key="k", transport=httpx.MockTransport(handler))


def always(status: int, document: object) -> Handler:
    return lambda request: httpx.Response(status, json=document)


def failing(error: type[httpx.TransportError]) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error("the text of the library", request=request)

    return handler


CALLS: dict[str, Call] = {
    "health": lambda client: client.health(),
    "sleep": lambda client: client.sleep(),
    "wake_up": lambda client: client.wake_up(),
    "pause": lambda client: client.pause(mode=PauseMode.KEEP),
    "resume": lambda client: client.resume(),
    "is_paused": lambda client: client.is_paused(),
    "is_sleeping": lambda client: client.is_sleeping(),
    "models": lambda client: client.models(),
    "load_adapter": lambda client: client.load_adapter("n@1", "/v/1"),
    "unload_adapter": lambda client: client.unload_adapter("n@1"),
    "companion_status": lambda client: client.companion_status(),
    "set_alias": lambda client: client.set_alias("n", target="n@1", path="/v/1", version=1),
    "delete_alias": lambda client: client.delete_alias("n"),
    "load": lambda client: client.load(),
    "probe": lambda client: client.probe("n", "a private prompt"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (failing(httpx.ConnectError), NotConnected),
        (failing(httpx.ConnectTimeout), NotConnected),
        (failing(httpx.RemoteProtocolError), Unreachable),
        (failing(httpx.ReadTimeout), AnswerTimedOut),
        (always(401, {"error": "Unauthorized"}), Refused),
        (always(403, {"error": {"message": "token"}}), Refused),
    ],
)
async def test_no_answer_and_a_wrong_key_are_told_apart_for_every_call(
    name: str, handler: Handler, expected: type[VllmError]
) -> None:
    async with client_of(handler) as client:
        with pytest.raises(expected) as caught:
            await CALLS[name](client)
    assert str(caught.value).startswith(URL)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("probe",)])
async def test_a_server_error_keeps_its_status_and_message(name: str) -> None:
    async with client_of(always(500, {"error": {"message": "engine is dead", "type": "x", "code": 500}})) as client:
        with pytest.raises(RequestFailed, match="HTTP 500: engine is dead") as caught:
            await CALLS[name](client)
    assert caught.value.status == 500


@pytest.mark.parametrize("name", ["sleep", "wake_up", "pause", "resume", "is_paused", "is_sleeping"])
@pytest.mark.parametrize("document", [{"detail": "Not Found"}, {"error": {"message": "Not Found", "code": 404}}])
async def test_a_missing_control_route_says_which_setting_opens_it(name: str, document: object) -> None:
    async with client_of(always(404, document)) as client:
        with pytest.raises(RouteMissing, match="VLLM_SERVER_DEV_MODE=1"):
            await CALLS[name](client)


@pytest.mark.parametrize("name", ["models", "is_paused", "is_sleeping", "companion_status", "load", "probe"])
@pytest.mark.parametrize("body", ["", "<html>a private prompt</html>", "[]", '{"data": "a private prompt"}'])
async def test_a_success_that_can_not_be_read_names_the_address_and_quotes_nothing(name: str, body: str) -> None:
    async with client_of(lambda request: httpx.Response(200, text=body)) as client:
        with pytest.raises(UnexpectedAnswer) as caught:
            await CALLS[name](client)
    assert URL in str(caught.value)
    assert "private" not in str(caught.value)


async def test_a_server_without_companion_has_no_status_and_a_dead_engine_no_health() -> None:
    async with client_of(always(404, {"detail": "Not Found"})) as client:
        assert await client.companion_status() is None
    async with client_of(lambda request: httpx.Response(503)) as client:
        assert not await client.health()
    async with client_of(lambda request: httpx.Response(200)) as client:
        assert await client.health()


async def test_unloading_what_is_not_there_is_told_from_a_missing_route() -> None:
    absent = {"error": {"message": "The lora adapter 'n@1' cannot be found.", "type": "NotFoundError", "code": 404}}
    async with client_of(always(404, absent)) as client:
        assert not await client.unload_adapter("n@1")
        assert not await client.delete_alias("n")
    async with client_of(always(404, {"detail": "Not Found"})) as client:
        with pytest.raises(RouteMissing, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            await client.unload_adapter("n@1")
        with pytest.raises(RouteMissing, match="companion"):
            await client.delete_alias("n")


def listing(*cards: tuple[str, str]) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"id": name, "root": root, "parent": "b"} for name, root in cards]})


@pytest.mark.parametrize(
    ("before", "load", "after", "outcome"),
    [
        ([], httpx.Response(200), [("n@1", "/v/1")], LoadOutcome.LOADED),
        ([("n@1", "/v/1/")], httpx.Response(500), [], LoadOutcome.ALREADY_LOADED),
        ([], httpx.Response(400, json={"error": {"message": "x"}}), [("n@1", "/v/1")], LoadOutcome.ALREADY_LOADED),
        ([], httpx.Response(400, json={"error": {"message": "bad rank"}}), [], "bad rank"),
        ([], httpx.Response(404, json={"error": {"message": "No adapter"}}), [], "No adapter"),
        ([], httpx.Response(200), [], "not listed"),
        ([], httpx.Response(200), [("n@1", "/v/2")], "taken"),
        ([("n@1", "/v/2")], httpx.Response(200), [], "taken"),
    ],
)
async def test_a_load_counts_when_the_adapter_is_listed_with_its_path(
    before: list[tuple[str, str]], load: httpx.Response, after: list[tuple[str, str]], outcome: LoadOutcome | str
) -> None:
    listings = [listing(*after), listing(*before)]
    loads: list[object] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/claas/models":
            return listings.pop()
        loads.append(json.loads(request.content))
        return load

    async with client_of(handler) as client:
        if isinstance(outcome, LoadOutcome):
            assert await client.load_adapter("n@1", "/v/1") is outcome
        else:
            with pytest.raises(AdapterRejected, match=outcome) as caught:
                await client.load_adapter("n@1", "/v/1")
            assert (caught.value.name, caught.value.path) == ("n@1", "/v/1")
    assert loads == ([] if before else [{"lora_name": "n@1", "lora_path": "/v/1"}])


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_server_whose_service_does_not_answer_has_not_rejected_the_adapter(status: int) -> None:
    refusal = {"error": {"message": "ServiceUnreachable: a private prompt", "type": "x", "code": status}}

    def handler(request: httpx.Request) -> httpx.Response:
        return listing() if request.method == "GET" else httpx.Response(status, json=refusal)

    async with client_of(handler) as client:
        with pytest.raises(RequestFailed, match="ServiceUnreachable"):
            await client.load_adapter("n@1", "/v/1")
        with pytest.raises(RequestFailed, match=f"HTTP {status}: n@1 does not answer now") as caught:
            await client.probe("n@1", "Hello")
    assert "private" not in str(caught.value)


async def test_a_server_without_the_companion_is_asked_for_its_own_list() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return listing(("n@1", "/v/1"))
        return httpx.Response(404, json={"detail": "Not Found"})

    async with client_of(handler) as client:
        assert [model.id for model in await client.models()] == ["n@1"]


async def test_keys_are_sent_and_a_served_name_with_a_slash_is_one_route() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(409, json={"error": {"message": "n@1 is not a loaded adapter"}})

    async with client_of(handler) as client:
        with pytest.raises(AliasRejected, match="not a loaded adapter"):
            await client.set_alias("user/co der?", target="n@1", path="/v/1", version=1)
    (request,) = seen
    assert request.headers["x-claas-token"] == "t"
    assert request.headers["authorization"] == "Bearer k"
    assert request.url.raw_path == b"/claas/aliases/user/co%20der%3F"


def completion(**choice: object) -> Handler:
    return always(200, {"model": "n@1", "choices": [{"text": "ab", "finish_reason": "length", **choice}]})


async def test_a_probe_gives_token_ids_with_their_logprobs() -> None:
    handler = completion(token_ids=[5, 6], logprobs={"token_logprobs": [-0.5, -1.5], "tokens": ["a", "b"]})
    async with client_of(handler) as client:
        answer = await client.probe("n", "p")
    assert (answer.token_ids, answer.logprobs, answer.answered_by) == ((5, 6), (-0.5, -1.5), "n@1")


@pytest.mark.parametrize(
    "handler",
    [
        completion(),
        completion(token_ids=[], logprobs={"token_logprobs": []}),
        completion(token_ids=[5, 6], logprobs={"token_logprobs": [-0.5]}),
        completion(token_ids=[5], logprobs={"token_logprobs": [None]}),
        completion(token_ids=[5], logprobs=None),
        always(200, {"model": "n", "choices": []}),
        always(400, {"error": {"message": "a private prompt is bad"}}),
        always(404, {"error": {"message": "The model `n` does not exist."}}),
        always(500, {"error": {"message": "a private prompt"}}),
    ],
)
async def test_a_probe_without_a_usable_answer_fails_and_quotes_no_prompt(handler: Handler) -> None:
    async with client_of(handler) as client:
        with pytest.raises(ProbeFailed) as caught:
            await client.probe("n", "a private prompt")
    assert "private" not in str(caught.value)


METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="b"} 3.0
vllm:num_requests_running{engine="1",model_name="b"} 1.0
vllm:num_requests_waiting{engine="0",model_name="b"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 1.0
vllm:engine_sleep_state{engine="0",sleep_state="discard_all"} 0.0
"""


def test_metrics_give_requests_of_all_engines_and_the_sleep_state() -> None:
    load = parse_metrics(METRICS)
    assert (load.running, load.waiting, load.sleep_state) == (4, 2, SleepState.WEIGHTS_OFFLOADED)


def test_metrics_without_the_gauges_are_an_error_and_without_sleep_state_are_not() -> None:
    with pytest.raises(ValueError, match="num_requests"):
        parse_metrics("vllm:num_requests_running 1.0\n")
    assert parse_metrics("vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n").sleep_state is None


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v/versions/7", 7), ("/v/versions/0012/", 12), ("versions/3", 3), ("/v/versions/7/../8", 8),
        ("/v/seven", None), ("/", None), ("/v/-1", None), ("/v/1.5", None), ("/v/¹", None), ("/v/" + "9" * 30, None),
    ],
)  # fmt: skip
def test_the_version_is_the_last_component_of_the_path(path: str, version: int | None) -> None:
    assert version_in_path(path) == version


def test_paths_are_the_same_whatever_their_slashes() -> None:
    assert same_path("/v/1/", "/v//1")
    assert not same_path("/v/1", "/v/2")
    assert not same_path(None, "/v/1")
