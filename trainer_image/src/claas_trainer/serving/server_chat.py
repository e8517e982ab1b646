"""Finds out how the servers render conversations to prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_trainer.logs import log
from claas_trainer.samples.chat_template import ServerChat
from claas_trainer.samples.prompt_turns import Chat
from claas_trainer.serving.pods import ServingPod, serving_error
from claas_vllm_client import RequestFailed, UnexpectedAnswer, VllmError

_QUESTION = {"role": "user", "content": "marker"}


async def server_chat(pods: Sequence[ServingPod]) -> ServerChat | None:
    """How the servers render prompts, from the first pod that answers; None without pods. Raises TrainerError.

    All pods of a Deployment are alike, so one is enough.
    """
    for pod in pods:
        try:
            status = await pod.client.companion_status()
            settings = status.settings.chat if status and status.settings else None
            if settings is not None:
                log("server-chat", pod=pod.pod.name, own_template=settings.template is None)
                return ServerChat(settings.template, settings.template_kwargs, ask=_Asking(pod))
            await pod.client.tokenize_chat([_QUESTION])
        except (RequestFailed, UnexpectedAnswer) as error:
            log("server-chat-unknown", pod=pod.pod.name, error=type(error).__name__)
        except VllmError as error:
            raise serving_error(pod.pod, error, FailureReason.VLLM_UNREACHABLE) from error
        else:
            return ServerChat(told=False, ask=_Asking(pod))
    return None


class _Asking:
    """Asks one pod for tokens, from a thread other than the event loop's."""

    def __init__(self, pod: ServingPod) -> None:
        self._pod = pod
        self._loop = asyncio.get_running_loop()

    def __call__(self, chat: Chat, answer_next: bool, arguments: Mapping[str, JsonValue]) -> Sequence[int]:
        messages = [cast(Mapping[str, JsonValue], turn) for turn in chat]
        asked = self._pod.client.tokenize_chat(messages, answer_next=answer_next, template_arguments=arguments)
        try:
            return asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        except RequestFailed:
            # The template refused; the caller names the conversation.
            raise
        except VllmError as error:
            raise serving_error(self._pod.pod, error, FailureReason.VLLM_UNREACHABLE) from error
