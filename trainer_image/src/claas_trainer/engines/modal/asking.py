"""Calls of the deployed class, each made once: a new attempt takes up the call that an earlier one has made.

An attempt that is ended leaves its call to the next one, since nobody tells it whether there will be one. A call that
nobody waits for any more is cancelled by the next step of the adapter, and ended by the app's own time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from claas_bounded.waits import Deadline
from claas_contract.outcome import FailureReason
from claas_modal_client.calls import DeployedClass, Document, cancel, spawn, take
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_trainer.engines.modal.calls import CallJournal
from claas_trainer.engines.modal.deployment import STEP_METHOD
from claas_trainer.engines.modal.failures import failed, service_failures
from claas_trainer.engines.modal.wire import StepAnswer, StepRequest, WireError
from claas_trainer.errors import EngineError
from claas_trainer.logs import log
from claas_trainer.store.journal import CallEnding

_CANCEL_SECONDS = 20.0
_LIVES_ON = frozenset({ModalFault.UNREACHABLE, ModalFault.RATE_LIMITED, ModalFault.CREDENTIALS_REFUSED})
"""Faults that say nothing of the call itself."""
_ENDINGS = {
    ModalFault.CALL_LOST: CallEnding.LOST,
    ModalFault.CALL_CANCELLED: CallEnding.CANCELLED,
    ModalFault.TIMED_OUT: CallEnding.CANCELLED,
}


class Asking:
    """One attempt's calls of the deployed class. All methods raise TrainerError."""

    def __init__(
        self,
        connection: ModalConnection,
        deployed: DeployedClass,
        journal: CallJournal,
        deadline: Deadline,
        tell_progress: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._deployed = deployed
        self._journal = journal
        self._deadline = deadline
        self._tell = tell_progress

    async def answer(self, request: StepRequest) -> tuple[str, StepAnswer]:
        """The call that was made for this request, in this attempt or an earlier one, and its answer."""
        with service_failures():
            await self._cancel_unwanted(request.digest)
            call = self._journal.to_take_up(request.digest)
            document = None if call is None else await self._take_up(call)
            if call is None or document is None:
                call = await self._spawn(request)
                document = await self._take(call)
        try:
            answer = StepAnswer.of(document)
        except WireError as error:
            self._journal.ended(call, CallEnding.FAILED)
            raise failed(
                FailureReason.APP_NOT_DEPLOYED,
                f"{self._deployed} answered with a {error}; deploy the app of this release with `modal deploy`",
            ) from None
        if answer.taken is None:
            self._journal.ended(call, CallEnding.FAILED)
        else:
            self._journal.ended(call, CallEnding.ANSWERED)
        return call, answer

    @contextmanager
    def using(self, call: str) -> Iterator[None]:
        """Context manager around the use of a call's answer: where what it promises is lost, the next attempt asks
        anew instead of taking up the same answer again."""
        try:
            yield
        except EngineError as error:
            if error.reason is FailureReason.CALL_LOST:
                self._journal.ended(call, CallEnding.LOST)
            raise

    async def _spawn(self, request: StepRequest) -> str:
        if self._journal.asked_in_vain(request.digest):
            log("asked-again", request=request.digest)
        self._journal.asked(request.digest)
        self._tell("calling Modal")
        call = await spawn(
            self._connection, self._deployed, STEP_METHOD, cast(Document, request.document()), self._deadline
        )
        self._journal.made(request.digest, call)
        log("called", call=call, request=request.digest)
        return call

    async def _take_up(self, call: str) -> Document | None:
        """The answer to an earlier attempt's call; None if it is lost or was cancelled, for which this attempt is not
        to blame: it asks anew."""
        log("call-taken-up", call=call)
        try:
            return await self._take(call)
        except ModalServiceError as error:
            if error.kind not in (ModalFault.CALL_LOST, ModalFault.CALL_CANCELLED):
                raise
            log("call-not-usable", call=call, why=error.message)
            return None

    async def _take(self, call: str) -> Document:
        try:
            return await take(self._connection, call, self._deadline, self._tell_waiting)
        except ModalServiceError as error:
            if error.kind is ModalFault.TIMED_OUT:
                await self._cancel(self._journal, call)
            elif error.kind not in _LIVES_ON:
                self._journal.ended(call, _ENDINGS.get(error.kind, CallEnding.FAILED))
            raise

    def _tell_waiting(self, seconds: float) -> None:
        self._tell(f"queued or running on Modal for {seconds:.0f} s")

    async def _cancel_unwanted(self, request: str) -> None:
        """They would hold up this step, as the app takes one at a time."""
        for journal, call in self._journal.unwanted(request):
            if not await self._cancel(journal, call):
                break

    async def _cancel(self, journal: CallJournal, call: str) -> bool:
        """Whether it is cancelled; if not, it may be taken up or cancelled later."""
        try:
            await cancel(self._connection, call, Deadline.after(_CANCEL_SECONDS))
        except ModalServiceError as error:
            log("call-not-cancelled", call=call, why=error.message)
            if error.kind is not ModalFault.CALL_LOST:
                return False
        else:
            log("call-cancelled", call=call)
        journal.ended(call, CallEnding.CANCELLED)
        return True
