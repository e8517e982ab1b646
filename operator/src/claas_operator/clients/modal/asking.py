"""Which version answers at the address of a server on Modal, by the header of a small completion."""

from __future__ import annotations

from claas_operator.clients.modal.service import ModalError
from claas_operator.plan.modal.pointer import ServedPointer
from claas_operator.plan.modal.state import ModalTrouble
from claas_vllm_client import ProbedNothing, ProbeFailed, Refused, RequestFailed, VllmClient, VllmError

ANSWER_SECONDS = 300.0
"""Longest time of a request: Modal may hold it until a container has started."""


async def ask_version(url: str, pointer: ServedPointer, proxy_key: str, proxy_secret: str) -> None:
    """Return if the version of the pointer answers. Raises ModalError. Starts a container if there is none."""
    headers = {"Modal-Key": proxy_key, "Modal-Secret": proxy_secret}
    try:
        async with VllmClient(url, headers=headers, timeout_seconds=ANSWER_SECONDS) as client:
            answer = await client.probe(
                pointer.served_name, pointer.prompt, max_tokens=1, timeout_seconds=ANSWER_SECONDS
            )
    except Refused as error:
        said = (
            f"{url}: Modal's proxy refuses the proxy token (HTTP {error.status}): check the Secret of"
            " spec.serving.modalApp.proxyTokenSecretRef"
        )
        raise ModalError(ModalTrouble.CREDENTIALS_REFUSED, said) from None
    except ProbedNothing:
        said = f"{url}: {pointer.served_name} is not known there yet"
        raise ModalError(ModalTrouble.NOT_YET, said) from None
    except RequestFailed as error:
        said = (
            f"{url}: no container answers yet (HTTP {error.status}); one may take minutes to start, and"
            " `modal app logs` tells if it fails"
        )
        raise ModalError(ModalTrouble.NOT_YET, said) from None
    except ProbeFailed as error:
        raise ModalError(ModalTrouble.SERVER_UNREACHABLE, str(error)) from None
    except VllmError as error:
        raise ModalError(ModalTrouble.SERVER_UNREACHABLE, str(error)) from None
    if not _is_of(answer.answered_by, pointer):
        said = f"{url}: the version is awaited; {answer.answered_by} answers"
        raise ModalError(ModalTrouble.NOT_YET, said)


def _is_of(answered_by: str, pointer: ServedPointer) -> bool:
    """Whether a model is the pointer's version, by the name that `put_in_service` gives it."""
    name = f"{pointer.served_name}@{pointer.version}"
    return answered_by == name or answered_by.startswith(f"{name}-")
