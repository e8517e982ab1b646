"""How the servers make prompts is asked of the companion, else of the server itself, else nobody knows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import httpx
import pytest

from claas_contract.input import VllmPod
from claas_contract.outcome import FailureReason
from claas_trainer.errors import ServingError
from claas_trainer.samples.chat_template import ChatTemplateError, PromptOrigin, ServerChat
from claas_trainer.serving.pods import ServingPod
from claas_trainer.serving.server_chat import server_chat
from claas_vllm_client import VllmClient
from tests.unit.trainer.chat_models import KINDS, chat_model

MODEL = chat_model(KINDS["chatml"])
CHAT = ({"role": "user", "content": "hi"},)
Handler = Callable[[httpx.Request], httpx.Response]


def pod(handler: Handler) -> ServingPod:
    return ServingPod(
        VllmPod(name="vllm-0", uid="u", url="http://vllm"),
        VllmClient("http://vllm", transport=httpx.MockTransport(handler)),
    )


def companion(settings: dict[str, object] | None) -> Handler:
    status = {
        "companion_version": "1",
        "vllm_version": "1",
        "supported_vllm_versions": [],
        "vllm_supported": True,
        "aliases": [],
        "gpu_uuids": [],
        "persisted": True,
        "settings": settings,
    }

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=status) if request.url.path == "/claas/status" else httpx.Response(404)

    return answer


def tokenizing(request: httpx.Request) -> httpx.Response:
    """A server without the companion whose template refuses system prompts."""
    if request.url.path != "/tokenize":
        return httpx.Response(404)
    asked = json.loads(request.content)
    if asked["messages"][0]["role"] == "system":
        return httpx.Response(400, json={"error": {"message": f"no system: {asked['messages'][0]['content']}"}})
    renderer = MODEL.renderer(ServerChat(arguments=asked["chat_template_kwargs"]))
    text = renderer.render(asked["messages"], answer_next=asked["add_generation_prompt"])
    return httpx.Response(200, json={"tokens": MODEL.encode(text), "count": 1})


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def test_the_companion_tells_template_and_arguments() -> None:
    said: dict[str, object] = {"chat": {"template": "{{ messages }}", "template_kwargs": {"enable_thinking": False}}}
    found = asyncio.run(server_chat([pod(companion(said))]))
    assert found is not None
    assert (found.template, found.arguments, found.told) == ("{{ messages }}", {"enable_thinking": False}, True)


def test_a_server_that_renders_without_a_template_is_asked_though_it_tells_its_settings() -> None:
    async def scene() -> None:
        tells = companion({"chat": {"template": None, "template_kwargs": {}}})
        found = await server_chat([pod(lambda request: first_known(tells(request), tokenizing(request)))])
        bare = chat_model(KINDS["chatml"])
        bare.tokenizer.chat_template = None
        text = await asyncio.to_thread(bare.renderer(found).render, CHAT, answer_next=True)
        assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    asyncio.run(scene())


def first_known(*answers: httpx.Response) -> httpx.Response:
    return next((answer for answer in answers if answer.status_code != 404), answers[0])


@pytest.mark.parametrize("settings", [None, {"chat": None}])
def test_a_server_that_neither_tells_nor_tokenises_is_not_known(settings: dict[str, object] | None) -> None:
    assert asyncio.run(server_chat([pod(companion(settings))])) is None
    assert asyncio.run(server_chat([])) is None


def test_a_server_without_the_companion_is_asked_for_each_prompt_from_another_thread() -> None:
    async def scene() -> None:
        found = await server_chat([pod(tokenizing)])
        renderer = MODEL.renderer(found)
        assert renderer.origin is PromptOrigin.SERVER
        text = await asyncio.to_thread(renderer.with_thinking(False).render, CHAT, answer_next=True)
        assert text.endswith("hi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        private = ({"role": "system", "content": "private"}, *CHAT)
        with pytest.raises(ChatTemplateError, match=r"of system, user: .*no system: marker") as caught:
            await asyncio.to_thread(renderer.render, private, answer_next=True)
        assert "private" not in str(caught.value)

    asyncio.run(scene())


def test_a_server_that_is_gone_is_no_fault_of_the_template() -> None:
    async def scene() -> None:
        answers = [tokenizing, unreachable]
        found = await server_chat([pod(lambda request: answers[0](request))])
        answers.pop(0)
        with pytest.raises(ServingError) as caught:
            await asyncio.to_thread(MODEL.renderer(found).render, CHAT, answer_next=True)
        assert caught.value.reason is FailureReason.VLLM_UNREACHABLE

    asyncio.run(scene())
    with pytest.raises(ServingError):
        asyncio.run(server_chat([pod(unreachable)]))
