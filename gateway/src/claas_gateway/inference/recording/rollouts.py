"""Rollouts of one request: its answers, with what is known of their tokens."""

from __future__ import annotations

from datetime import datetime

from claas_gateway.directory.models import Adapter, Target
from claas_gateway.identifiers import Prefix, new_identifier
from claas_gateway.inference.recording.answers import Answers, Said
from claas_gateway.inference.recording.record import NOTHING, Record, Sampled
from claas_gateway.inference.recording.texts import system_prompt, user_prompt
from claas_gateway.inference.request import Asked
from claas_gateway.records import Evidence, Rollout
from claas_gateway.rollouts.hashing import answer_hash, prompt_hash
from claas_gateway.rollouts.visible import visible_text

DISCONNECTED = "ClientDisconnected"
SERVER_LOST = "ServerLost"
SERVER_FAILED = "ServerFailed"
NO_RECORD = "NoRecord"
COUNTS_DIFFER = "CountsDiffer"
NOT_FINISHED = "NotFinished"
_CUT_SHORT = (None, "abort", "error")


def rollouts_of(
    asked: Asked,
    target: Target,
    first_id: str,
    answers: Answers,
    record: Record | None,
    created: datetime,
    *,
    broken: str | None = None,
) -> list[Rollout]:
    """The rollouts of one request.

    `first_id` is the identifier of choice 0, and of the request; `record` None: there should have been one. `broken`:
    why the answer did not come to its end.
    """
    document = asked.document()
    known = record or NOTHING
    counted = sum(len(each.token_ids) for each in known.answers.values())
    differs = answers.completion_tokens is not None and counted != answers.completion_tokens
    system = system_prompt(document)
    made = []
    for choice in sorted(answers.said.keys() | known.answers.keys()) or [0]:
        said = answers.said.get(choice, Said())
        sampled = known.answers.get(choice, Sampled())
        prompt = user_prompt(document, choice // asked.answers)
        answer = visible_text(said.text)
        incomplete = broken or _incomplete(answers, said, sampled, differs=differs, recorded=record is not None)
        made.append(
            Rollout(
                id=first_id if choice == 0 else new_identifier(Prefix.ROLLOUT),
                namespace=target.servers.namespace,
                adapter=target.name if isinstance(target, Adapter) else None,
                request_id=first_id,
                choice=choice,
                kind=asked.kind,
                created=created,
                version=known.version if isinstance(target, Adapter) else None,
                user=asked.user,
                request=document,
                system_prompt=system,
                user_prompt=prompt,
                answer=answer,
                answer_hash=answer_hash(answer),
                prompt_hash=prompt_hash(prompt),
                evidence=known.evidence if sampled.token_ids else Evidence.NONE,
                prompt_token_ids=sampled.prompt_token_ids,
                response_token_ids=sampled.token_ids,
                response_logprobs=sampled.logprobs if len(sampled.logprobs) == len(sampled.token_ids) else (),
                sampling=sampled.sampling,
                finish_reason=said.finish_reason or sampled.finish_reason,
                incomplete=incomplete,
            )
        )
    return made


def _incomplete(answers: Answers, said: Said, sampled: Sampled, *, differs: bool, recorded: bool) -> str | None:
    """Why an answer that came to its end is not surely whole."""
    if answers.failed:
        return SERVER_FAILED
    if not recorded or not sampled.token_ids or not sampled.prompt_token_ids:
        return NO_RECORD
    if differs:
        return COUNTS_DIFFER
    if not sampled.finished or (said.finish_reason or sampled.finish_reason) in _CUT_SHORT:
        return NOT_FINISHED
    return None
