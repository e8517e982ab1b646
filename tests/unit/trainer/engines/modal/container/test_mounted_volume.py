"""Commits and reloads of a mounted Volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_contract.outcome import FailureReason
from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
from claas_trainer.errors import StoreError


class Refusing:
    """Refuses the first calls."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0
        self.slept: list[float] = []

    def __call__(self) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise RuntimeError("there are open files preventing the operation")

    def volume(self) -> MountedVolume:
        return MountedVolume("claas-adapters", Path("/nowhere"), self, self, self.slept.append)


@pytest.mark.parametrize("what", ["reload", "commit"])
@pytest.mark.parametrize(("refused", "slept"), [(0, []), (1, [0.5]), (3, [0.5, 1.0, 2.0])])
def test_what_is_refused_a_little_is_tried_again(what: str, refused: int, slept: list[float]) -> None:
    refusing = Refusing(refused)
    getattr(refusing.volume(), what)()
    assert refusing.calls == refused + 1
    assert refusing.slept == slept


@pytest.mark.parametrize("what", ["reload", "commit"])
def test_what_stays_refused_is_a_fault_that_may_pass(what: str) -> None:
    refusing = Refusing(99)
    with pytest.raises(StoreError, match=f"claas-adapters refused a {what} 4 times .*open files") as caught:
        getattr(refusing.volume(), what)()
    assert refusing.calls == 4
    assert caught.value.reason is FailureReason.STORAGE_FAILED
