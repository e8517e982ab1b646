"""Samples are looked at as soon as they can be read, wherever they lie; what was read is not kept."""

from __future__ import annotations

import base64
import codecs
import json

import pytest
from pydantic import JsonValue

from claas_crds.samples.documents import read_document
from claas_crds.v1alpha1.distill_job import DistillJobStatus, KeyReference, SamplesSource
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import JobObject
from claas_kube.resources import CONFIG_MAPS, SECRETS
from claas_operator.clients.reader import Reader
from claas_operator.observe import samples as observe_samples
from claas_operator.observe.samples import SamplesObserver, SamplesSeen
from claas_operator.plan import samples as plan_samples
from claas_operator.plan.samples import check_inline
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.world import NAMESPACE, ago, job

TEXT = "xyzzy-prompt-of-a-user"
GOOD: Manifest = {"user_prompt": TEXT, "response": "Yes.", "feedback": "in one word"}
WRONG: Manifest = {**GOOD, "feedback": "\u200b\ufeff"}


def text(*samples: JsonValue) -> str:
    return json.dumps(list(samples))


def by_config_map(**status: object) -> JobObject:
    reference = KeyReference(name="feedback")
    return job(samples=SamplesSource(config_map_ref=reference), status=DistillJobStatus.model_validate(status))


async def look(small: SmallApi, *jobs: JobObject) -> list[SamplesSeen]:
    async with serving_api(small) as api:
        observer = SamplesObserver(Reader(api))
        seen = [await observer.look(each, check_inline(each.spec.samples)) for each in jobs]
        assert TEXT not in repr(vars(observer))
        return seen


CONTENT: list[tuple[str, Manifest, str | None]] = [
    ("good", {"data": {"samples.json": text(GOOD)}}, None),
    ("lines", {"data": {"samples.json": f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n"}}, None),
    ("with a byte order mark", {"data": {"samples.json": "\ufeff" + text(GOOD)}}, None),
    (
        "binary, UTF-16",
        {
            "binaryData": {
                "samples.json": base64.b64encode(codecs.BOM_UTF16_LE + text(GOOD).encode("utf-16-le")).decode()
            }
        },
        None,
    ),
    ("blank feedback", {"data": {"samples.json": text(GOOD, WRONG)}}, "samples[1].feedback"),
    ("a comma too many", {"data": {"samples.json": text(GOOD)[:-1] + ",]"}}, "not JSON at line 1"),
    ("empty", {"data": {"samples.json": ""}}, "samples"),
]


@pytest.mark.parametrize(("content", "said"), [row[1:] for row in CONTENT], ids=[row[0] for row in CONTENT])
async def test_a_config_map_is_read_at_once(content: Manifest, said: str | None) -> None:
    small = SmallApi()
    small.put(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "feedback"}, **content})
    (seen,) = await look(small, by_config_map())
    assert (seen.missing, seen.too_large) == (None, None)
    if said is None:
        assert seen.invalid is None
    else:
        assert seen.invalid is not None
        assert said in seen.invalid.message
        assert seen.invalid.message.endswith("(ConfigMap feedback, key samples.json)")
        assert TEXT not in str(seen.invalid)


async def test_a_secret_is_read_at_once() -> None:
    small = SmallApi()
    encoded = base64.b64encode(text(WRONG).encode()).decode()
    small.put(SECRETS, NAMESPACE, {"metadata": {"name": "feedback"}, "data": {"samples.json": encoded}})
    (seen,) = await look(small, job(samples=SamplesSource(secret_ref=KeyReference(name="feedback"))))
    assert seen.invalid is not None
    assert seen.invalid.message.startswith("samples[0].feedback")


async def test_inline_samples_are_looked_at_without_a_request() -> None:
    small = SmallApi()
    wrong = job(samples=SamplesSource(inline=[DistillBatchItem.model_validate(WRONG)]))
    (seen,) = await look(small, wrong)
    assert seen.invalid is not None
    assert seen.invalid.message.startswith("samples[0].feedback")
    assert small.asked == []


async def test_samples_are_the_trainers_once_the_job_was_admitted() -> None:
    small = SmallApi()
    small.put(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "feedback"}, "data": {"samples.json": text(WRONG)}})
    assert await look(small, by_config_map(start_time=ago(5))) == [SamplesSeen()]


async def test_samples_are_checked_again_only_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []

    def counted(data: bytes) -> list[DistillBatchItem]:
        checked.append(data)
        return read_document(data)

    monkeypatch.setattr(plan_samples, "read_document", counted)
    monkeypatch.setattr(observe_samples, "REMEMBERED", 2)
    small = SmallApi()
    small.put(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "feedback"}, "data": {"samples.json": text(GOOD)}})
    async with serving_api(small) as api:
        observer = SamplesObserver(Reader(api))
        for _ in range(3):
            assert await observer.look(by_config_map(), None) == SamplesSeen()
        assert len(checked) == 1
        for number in range(5):
            wrong: Manifest = {"samples.json": text(*[WRONG] * number)}
            small.put(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "feedback"}, "data": wrong})
            assert (await observer.look(by_config_map(), None)).invalid is not None
        assert len(observer._verdicts) == 2
