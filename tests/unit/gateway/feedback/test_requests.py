"""Requests for feedback: waited for or not, repeated, bad in part, too large, and cut off."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from pydantic import JsonValue

from claas_gateway.access.callers import Caller
from claas_gateway.errors import NotNow
from claas_gateway.feedback import intake
from claas_gateway.feedback.act.submission import Submission
from claas_gateway.feedback.act.volumes import SampleVolumes
from claas_gateway.feedback.intake import Sent
from claas_gateway.feedback.passes import Passes
from claas_gateway.feedback.plan.checks import sample_size
from claas_gateway.feedback.waiters import Waiters
from claas_gateway.feedback.wire import FeedbackRequestBody
from claas_gateway.records import Evidence, FeedbackItem, ItemState, RequestMode, Rollout, VersionSeen
from claas_kube.resources import ADAPTERS, DISTILL_JOBS
from tests.builders.front import NAMESPACE
from tests.builders.gateway_records import START, build_batch, build_rollout
from tests.builders.whole_gateway import WholeGateway, fails, never, succeeds, whole_gateway

FEEDBACK = "/v1/feedback"
SHORT_WINDOW: dict[str, dict[str, JsonValue]] = {"coder": {"feedback": {"windowSeconds": 1}}}


def item(rollout: str = "ro-1", feedback: str = "Shorter.", **more: JsonValue) -> dict[str, JsonValue]:
    return {"lora_id": "coder", "rollout_id": rollout, "feedback": feedback, **more}


def body(*items: JsonValue) -> JsonValue:
    return {"requests": list(items) or [item()]}


async def knows(whole: WholeGateway, *rollouts: Rollout) -> None:
    """Have answers recorded."""
    await whole.store.rollouts.add(rollouts or [build_rollout("ro-1", namespace=NAMESPACE)])


async def ended(whole: WholeGateway, item_id: str) -> ItemState:
    """The state of an item that has come to its end, 5 s from now at most."""
    async with asyncio.timeout(5):
        while True:
            found = await whole.store.feedback.item(item_id)
            assert found is not None
            if found.state in (ItemState.IN_VERSION, ItemState.REFUSED):
                return found.state
            await asyncio.sleep(0.01)


def ids(told: object) -> list[str]:
    return [each["id"] for each in cast("dict[str, list[dict[str, str]]]", told)["items"]]


async def test_a_step_that_takes_longer_than_a_request_waits_is_answered_in_the_same_shape(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, FEEDBACK_WAIT_SECONDS="0.2") as whole:
        await knows(whole)
        whole.ending = never
        status, told, headers = await whole.send("POST", FEEDBACK, body())
        assert (status, told["status"], told["distill_result"], told["batch_size"]) == (202, "accepted", None, 1)
        assert headers["Location"] == told["status_url"] == f"{FEEDBACK}/{told['request_id']}"
        await whole.small.until(lambda: bool(whole.jobs()))
        whole.ending = succeeds(8)
        (job,) = whole.jobs()
        whole.finish(job)
        assert await ended(whole, ids(told)[0]) is ItemState.IN_VERSION
        status, told, _ = await whole.send("GET", str(told["status_url"]))
        assert (status, told["status"]) == (200, "ok")


async def test_feedback_that_nobody_waits_for_is_gathered_for_a_window(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, names=SHORT_WINDOW) as whole:
        await knows(whole)
        answers = [await whole.send("POST", FEEDBACK, body(), Prefer='respond-async, wait="10"') for _ in range(3)]
        assert {status for status, _, _ in answers} == {202}
        assert {headers["Preference-Applied"] for _, _, headers in answers} == {"respond-async"}
        assert whole.jobs() == []
        for _, told, _ in answers:
            assert await ended(whole, ids(told)[0]) is ItemState.IN_VERSION
        (job,) = whole.jobs()
        assert [sample["id"] for sample in whole.samples[job]] == [ids(told)[0] for _, told, _ in answers]


async def test_items_with_other_settings_have_a_batch_of_their_own(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, names=SHORT_WINDOW) as whole:
        await knows(whole)
        trained: list[JsonValue] = [{}, {"alpha": 0.25}, {"alpha": 0.25, "unknown": 3}, {}]
        sent = [
            await whole.send("POST", FEEDBACK, body(item(training=training)), Prefer="respond-async")
            for training in trained
        ]
        for _, told, _ in sent:
            await ended(whole, ids(told)[0])
        specs = [whole.small.found(DISTILL_JOBS, NAMESPACE, job)["spec"] for job in whole.jobs()]
        trainings = [cast("dict[str, JsonValue]", spec).get("training") for spec in specs]
        assert sorted(map(str, trainings)) == ["None", "{'alpha': 0.25}"]


async def test_an_identical_request_is_another_one_unless_its_key_says_so(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        first = await whole.send("POST", FEEDBACK, body())
        second = await whole.send("POST", FEEDBACK, body())
        assert first[1]["request_id"] != second[1]["request_id"]
        assert len(whole.jobs()) == 2
        keyed = [await whole.send("POST", FEEDBACK, body(), Idempotency_Key="k1") for _ in range(2)]
        assert keyed[0][:2] == keyed[1][:2]
        assert len(whole.jobs()) == 3
        status, told, _ = await whole.send("POST", FEEDBACK, body(item(feedback="Longer.")), Idempotency_Key="k1")
        assert status == 409
        assert "Idempotency-Key" in str(told["detail"])


async def test_a_repetition_waits_for_the_first_one_s_step(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        whole.ending = never
        both = [asyncio.create_task(whole.send("POST", FEEDBACK, body(), Idempotency_Key="k1")) for _ in range(2)]
        await whole.small.until(lambda: bool(whole.jobs()))
        await asyncio.sleep(0.1)
        whole.ending = succeeds(8)
        (job,) = whole.jobs()
        whole.finish(job)
        first, second = await asyncio.gather(*both)
        assert first[0] == 200
        assert first[:2] == second[:2]
        assert whole.jobs() == [job]


async def test_one_bad_item_refuses_itself_and_the_rest_train(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        status, told, _ = await whole.send("POST", FEEDBACK, body(item("ro-none"), item(), item(feedback="\u200b")))
        assert (status, told["status"], told["batch_size"]) == (200, "ok", 1)
        items = cast("list[dict[str, JsonValue]]", told["items"])
        assert [each["state"] for each in items] == ["refused", "in-version", "refused"]
        assert [each["reason"] for each in items] == ["NoRollout", None, "InvalidSample"]
        (job,) = whole.jobs()
        assert [sample["id"] for sample in whole.samples[job]] == [items[1]["id"]]
        status, told, _ = await whole.send("GET", f"{FEEDBACK}/{items[0]['id']}")
        assert (status, told["state"], told["reason"]) == (200, "refused", "NoRollout")


async def test_items_that_the_trainer_finds_invalid_are_refused_alone(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        invalid = fails("InvalidSample", "1 of 2", invalidSamples=[{"index": 0, "message": "response: too long"}])
        whole.ending = lambda job: invalid(job) if len(whole.jobs()) == 1 else succeeds(8)(job)
        status, told, _ = await whole.send("POST", FEEDBACK, body(item(), item(feedback="In verse.")))
        assert (status, told["batch_size"]) == (200, 1)
        items = cast("list[dict[str, JsonValue]]", told["items"])
        assert [(each["state"], each["message"]) for each in items] == [
            ("refused", "response: too long"),
            ("in-version", None),
        ]
        whole.ending = invalid
        status, told, _ = await whole.send("POST", FEEDBACK, body())
        assert status == 422
        assert "InvalidSample" in str(told["detail"])


async def test_a_client_that_goes_away_loses_nothing(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        whole.ending = never
        waits = aiohttp.ClientTimeout(total=2.0)
        with pytest.raises(asyncio.TimeoutError):
            await whole.http.post(f"{whole.url}{FEEDBACK}", json=body(), timeout=waits)
        whole.ending = succeeds(8)
        (job,) = whole.jobs()
        whole.finish(job)
        page = await whole.store.feedback.page(None, None, 1, 10)
        assert await ended(whole, page.items[0].id) is ItemState.IN_VERSION


async def test_who_waits_when_the_gateway_stops_is_answered(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        whole.ending = never
        waiting = asyncio.create_task(whole.send("POST", FEEDBACK, body()))
        await whole.small.until(lambda: bool(whole.jobs()))
        whole.application.end()
        assert (await asyncio.wait_for(waiting, 5))[0] == 202
        assert (await whole.send("GET", "/readyz"))[0] == 503


def _long(name: str) -> Rollout:
    return build_rollout(name, namespace=NAMESPACE, answer=f"{name} {'long ' * 80_000}")


async def test_a_batch_that_no_secret_holds_is_refused_or_cut(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, names={"coder": {"feedback": {"windowSeconds": 0}}}) as whole:
        await knows(whole, *(_long(f"ro-{number}") for number in range(3)))
        long = [item(f"ro-{number}") for number in range(3)]
        status, told, _ = await whole.send("POST", FEEDBACK, body(*long))
        assert status == 413
        assert "respond-async" in str(told["detail"])
        assert (await whole.store.feedback.page(None, None, 1, 10)).total == 0
        status, told, _ = await whole.send("POST", FEEDBACK, body(*long), Prefer="respond-async")
        assert status == 202
        assert {await ended(whole, each) for each in ids(told)} == {ItemState.IN_VERSION}
        assert sorted(len(samples) for samples in whole.samples.values()) == [1, 2]


async def test_a_large_batch_goes_to_the_adapter_s_volume_and_leaves_it_when_it_is_accounted_for(
    tmp_path: Path,
) -> None:
    claim = tmp_path / "volumes" / "adapters"
    claim.mkdir(parents=True)
    async with whole_gateway(tmp_path, SAMPLE_VOLUMES=str(tmp_path / "volumes")) as whole:
        await knows(whole, *(_long(f"ro-{number}") for number in range(3)))
        whole.ending = never
        sending = asyncio.create_task(
            whole.send("POST", FEEDBACK, body(*(item(f"ro-{number}") for number in range(3))))
        )
        await whole.small.until(lambda: bool(whole.jobs()))
        (job,) = whole.jobs()
        spec = cast("dict[str, JsonValue]", whole.small.found(DISTILL_JOBS, NAMESPACE, job)["spec"])
        place = f".claas-gateway-samples/{job}.jsonl"
        assert spec["samples"] == {"file": {"claimName": "adapters", "path": place}}
        lines = (claim / place).read_text().splitlines()
        assert [json.loads(line)["feedback"] for line in lines] == ["Shorter."] * 3
        assert whole.secrets() == []
        whole.ending = succeeds(8)
        whole.finish(job)
        assert (await sending)[0] == 200
        await whole.small.until(lambda: not (claim / place).exists())


async def test_a_correction_will_do_and_samples_say_what_was_recorded(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        status, told, _ = await whole.send(
            "POST",
            FEEDBACK,
            body(item(feedback="", correction="A lease ends.", rating=0.5, tags=["law"], author="me")),
        )
        assert status == 200
        (job,) = whole.jobs()
        (sample,) = whole.samples[job]
        assert (sample["correction"], sample["id"], sample["version"]) == ("A lease ends.", ids(told)[0], 3)
        assert (sample["prompt_token_ids"], sample["response_token_ids"]) == ([1, 2, 3], [7, 151_643, 4_294_967_295])
        _, told, _ = await whole.send("GET", f"{FEEDBACK}/{ids(told)[0]}")
        assert (told["rating"], told["tags"], told["author"]) == (0.5, ["law"], "me")


async def test_an_adapter_may_train_on_answers_whose_tokens_are_not_known(tmp_path: Path) -> None:
    unknown = replace(
        build_rollout("ro-1", namespace=NAMESPACE),
        evidence=Evidence.NONE,
        version=None,
        prompt_token_ids=(),
        response_token_ids=(),
        response_logprobs=(),
    )
    names: dict[str, dict[str, JsonValue]] = {"coder": {}, "lax": {"feedback": {"allowReconstructed": True}}}
    async with whole_gateway(tmp_path, names=names) as whole:
        await knows(whole, unknown, replace(unknown, id="ro-2", adapter="lax"))
        status, told, _ = await whole.send("POST", FEEDBACK, body())
        assert (status, "no logprobs" in str(told["detail"])) == (422, True)
        status, told, _ = await whole.send("POST", FEEDBACK, body(item("ro-2", lora_id="lax")))
        assert status == 200
        (job,) = whole.jobs()
        assert "response_token_ids" not in whole.samples[job][0]


async def test_items_of_a_deleted_adapter_and_of_a_deleted_answer_come_to_an_end(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, names={"coder": {"feedback": {"windowSeconds": 1}}}) as whole:
        mine = build_rollout("ro-1", namespace=NAMESPACE, user="u1")
        await knows(whole, mine)
        _, told, _ = await whole.send("POST", FEEDBACK, body(), Prefer="respond-async")
        whole.small.remove(ADAPTERS, NAMESPACE, "coder")
        assert await ended(whole, ids(told)[0]) is ItemState.REFUSED
        found = await whole.store.feedback.item(ids(told)[0])
        assert found is not None
        assert found.reason == "AdapterNotFound"


async def test_a_score_needs_its_version(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        place = "/v1/versions/coder/3/probes/no emoji"
        assert (await whole.send("PUT", place, {"value": 0.75}))[0] == 404
        seen = VersionSeen(NAMESPACE, "coder", 3, "sha256:3", START, 2, None, None, {}, "Served")
        await whole.store.history.saw_versions([seen])
        assert (await whole.send("PUT", place, {"value": 0.5}))[0] == 204
        assert (await whole.send("PUT", place, {"value": 0.75}))[0] == 204
        scores = await whole.store.history.scores(NAMESPACE, "coder")
        assert [score.value for score in scores["no emoji"]] == [0.75]


async def test_versions_and_what_was_served_are_written_down_and_outlive_status(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        for versions, served in (([0, 1], 0), ([0, 1], 1), ([1, 2], 2), ([2], 1)):
            adapter = whole.small.found(ADAPTERS, NAMESPACE, "coder")
            status: JsonValue = {"servedVersion": served, "versions": [_version(number) for number in versions]}
            whole.small.put(ADAPTERS, NAMESPACE, {**adapter, "status": status})
            await _until_served(whole, served)
        changes = await whole.store.history.changes(NAMESPACE, "coder")
        assert [(change.previous, change.version, change.is_rollback) for change in changes] == [
            (None, 0, False),
            (0, 1, False),
            (1, 2, False),
            (2, 1, True),
        ]
        assert [seen.number for seen in await whole.store.history.versions(NAMESPACE, "coder")] == [0, 1, 2]


async def _until_served(whole: WholeGateway, version: int) -> None:
    """Wait until that version is written down as the one that is served."""
    async with asyncio.timeout(5):
        while True:
            changes = await whole.store.history.changes(NAMESPACE, "coder")
            if changes and changes[-1].version == version:
                return
            await asyncio.sleep(0.01)


def _version(number: int) -> JsonValue:
    digest = base64.b16encode(bytes([number])).decode()
    return {"number": number, "path": f"v/{number}", "digest": digest, "created": "2026-11-27T07:00:00Z"}


@pytest.mark.parametrize("read", ["request", "batch"])
async def test_what_is_stored_is_answered_with_202_though_it_can_not_be_looked_at_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    async def away(identifier: str) -> None:
        raise NotNow("the database fails; try again")

    async with whole_gateway(tmp_path, FEEDBACK_WAIT_SECONDS="0.3") as whole:
        await knows(whole)
        if read == "request":
            monkeypatch.setattr(whole.store.feedback, "request", away)
        else:
            monkeypatch.setattr(whole.store.batches, "get", away)
        status, told, headers = await whole.send("POST", FEEDBACK, body())
        assert (status, told["status"], told["distill_result"]) == (202, "accepted", None)
        assert headers["Location"] == told["status_url"]
        assert await ended(whole, ids(told)[0]) is ItemState.IN_VERSION
        monkeypatch.undo()
        status, told, _ = await whole.send("GET", str(told["status_url"]))
        assert (status, told["status"]) == (200, "ok")


async def test_samples_are_checked_in_a_thread_so_that_streams_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(item: FeedbackItem, rollout: Rollout, most_bytes: int | None) -> object:
        threads.append(threading.current_thread())
        return sample_size(item, rollout, most_bytes)

    monkeypatch.setattr(intake, "sample_size", noted)
    async with whole_gateway(tmp_path) as whole:
        await knows(whole)
        status, _, _ = await whole.send("POST", FEEDBACK, body())
        assert status == 200
    assert threads
    assert threading.main_thread() not in threads


async def test_nothing_is_remembered_of_items_that_another_replica_took(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, works=False) as whole:
        await knows(whole)
        _, told, _ = await whole.send("POST", FEEDBACK, body(), Prefer="respond-async")
        volumes = SampleVolumes(None, NAMESPACE)
        services = whole.services
        passes = Passes(services, Submission(services.api, volumes), Waiters(), lambda adapter, version, items: None)
        await passes.run(NAMESPACE, "coder")
        assert list(passes._sizes[NAMESPACE, "coder"]) == ids(told)
        assert await whole.store.batches.form(
            replace(build_batch("bt-other", namespace=NAMESPACE), training={}), ids(told)
        )
        await passes.run(NAMESPACE, "coder")
        assert passes._sizes == {}


def test_keys_of_one_name_in_the_secrets_of_several_adapters_have_idempotency_keys_of_their_own() -> None:
    parsed = FeedbackRequestBody.model_validate(body())
    callers = [Caller("shop", "team"), Caller("shop", "team", "coder"), Caller("shop", "team", "writer")]
    owners = {Sent(caller, parsed, body(), RequestMode.SYNC, "k1").owner for caller in callers}
    assert len(owners) == len(callers)


async def test_an_answer_of_an_earlier_adapter_of_that_name_is_not_held_against_this_ones_versions(
    tmp_path: Path,
) -> None:
    async with whole_gateway(tmp_path) as whole:
        (adapter,) = (each for each in whole.services.directory.adapters(None) if each.name == "coder")
        assert adapter.created is not None
        before = adapter.created - timedelta(days=1)
        recorded = build_rollout("ro-1", namespace=NAMESPACE, created=adapter.created)
        own = replace(recorded, response_logprobs=())
        await knows(
            whole,
            own,
            replace(own, id="ro-2", created=before),
            replace(recorded, id="ro-3", created=before),
        )
        status, told, _ = await whole.send("POST", FEEDBACK, body(item("ro-1"), item("ro-2"), item("ro-3")))
        assert (status, told["batch_size"]) == (200, 2)
        (job,) = whole.jobs()
        assert [sample.get("version") for sample in whole.samples[job]] == [3, None]
