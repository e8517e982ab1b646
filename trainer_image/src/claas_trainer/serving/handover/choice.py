"""The hand-over of an attempt: the one in its input, or none if the engine needs nothing of serving."""

from __future__ import annotations

from collections.abc import Sequence

from claas_contract.engine import EngineNeeds, ServingNeed
from claas_contract.input import ServingTarget
from claas_crds.v1alpha1.serving import HandoverKind
from claas_trainer.errors import InputError
from claas_trainer.messages.events import Reporter
from claas_trainer.serving.handover.base import Handover
from claas_trainer.serving.handover.none import NoHandover
from claas_trainer.serving.handover.share import ShareHandover
from claas_trainer.serving.handover.sleep import SleepHandover
from claas_trainer.serving.pods import ServingPod


def make_handover(
    serving: ServingTarget | None, needs: EngineNeeds, pods: Sequence[ServingPod], reporter: Reporter
) -> Handover:
    """Raises InputError for Auto, which only the operator can resolve."""
    if serving is None or not pods or needs.serving is ServingNeed.NOTHING:
        return NoHandover()
    match serving.handover:
        case HandoverKind.SLEEP:
            return SleepHandover(pods, serving, reporter)
        case HandoverKind.SHARE:
            return ShareHandover(pods, serving, reporter)
        case HandoverKind.NONE:
            return NoHandover()
        case HandoverKind.AUTO:
            raise InputError("serving.handover: Auto is resolved by the operator; name one of Sleep, Share and None")
