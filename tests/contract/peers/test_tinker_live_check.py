"""tools/tinker-live-check against the peer: what is as assumed, what differs, and what it costs."""

from pathlib import Path

import pytest

from tests.peers.tinker.calls import Operation
from tests.peers.tinker.failures import Answer
from tests.peers.tinker.model.sampling import SamplingLimits
from tests.peers.tinker.server import TinkerPeer
from tools import tinker_live_check
from tools.tinker_live_check import main

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret-of-the-user")


def check(peer: TinkerPeer, *more: str) -> int:
    return main([peer.model_name, "--base-url", peer.url, "--yes", *more])


def test_a_service_as_the_engine_assumes_it_has_no_difference_and_keeps_nothing(
    peer: TinkerPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(peer) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert "by momentum alone" in printed
    assert "tml-secret" not in printed
    assert len(peer.called(Operation.DELETE_CHECKPOINT)) == tinker_live_check.CHECKPOINTS


def test_a_service_with_another_limit_is_told_apart(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TinkerPeer(model_folder, limits=SamplingLimits(topk=40, target_cells=50_000)) as peer:
        assert check(peer) == 1
    differing = [line for line in capsys.readouterr().out.splitlines() if "DIFFERS" in line]
    assert len(differing) == 2
    assert "most top-k entries: 21 are taken" in differing[0]
    assert "bound of target ids" in differing[1]


def test_a_model_that_is_not_offered_is_a_difference_that_names_those_that_are(
    peer: TinkerPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["some/other", "--base-url", peer.url, "--yes"]) == 1
    assert peer.model_name in capsys.readouterr().out


def test_a_part_that_fails_is_told_and_is_no_verdict(peer: TinkerPeer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.fail(Operation.SAVE_STATE, Answer(400))
    assert check(peer) == 2
    printed = capsys.readouterr().out
    assert "FAILED   training" in printed
    assert "ok       top-k of the prompt" in printed


def test_nothing_is_asked_before_the_cost_is_agreed_to(peer: TinkerPeer, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def no(question: str) -> str:
        asked.append(question)
        return "n"

    assert main([peer.model_name, "--base-url", peer.url], no) == 2
    assert asked == ["Go on? [y/N] "]
    assert "prompt tokens" in capsys.readouterr().out
    assert peer.calls == []


def test_it_makes_no_more_calls_than_it_says(peer: TinkerPeer) -> None:
    assert check(peer) == 0
    passes = [*peer.called(Operation.FORWARD_BACKWARD), *peer.called(Operation.FORWARD)]
    assert len([call for call in passes if not call.resent]) <= tinker_live_check.TRAINING_PASSES
    samples = len(peer.called(Operation.SAMPLE))
    assert samples <= tinker_live_check.SAMPLER_CALLS + len(tinker_live_check.LENGTHS) + 2
