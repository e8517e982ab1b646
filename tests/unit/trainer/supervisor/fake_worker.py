"""A stand-in for the worker process: tells events, pauses a server, and then ends in the way that is asked for."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.request
from datetime import UTC, datetime

from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.messages.events import (
    Awake,
    Finished,
    PauseAnnounced,
    PauseConfirmed,
    Published,
    Reporter,
    SharingBegan,
    SharingEnded,
)

VERSION = PublishedVersion(number=3, path="a/versions/3", digest="d", created=datetime(2026, 1, 1, tzinfo=UTC))


def _post(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10).close()


def main() -> None:
    script, url = sys.argv[1:3]
    reporter = Reporter(int(os.environ["CLAAS_REPORT_TO"]))
    for step in script.split(","):
        match step:
            case "announce":
                reporter.phase(JobPhase.PAUSING)
                reporter.send(PauseAnnounced(pod="vllm-0", url=url, at=datetime.now(UTC)))
            case "sleep":
                _post(f"{url}/sleep?level=1&mode=keep")
            case "confirm":
                reporter.send(PauseConfirmed(url=url))
                reporter.phase(JobPhase.TRAINING, "micro-batch 3 of 8")
            case "wake":
                _post(f"{url}/wake_up")
                reporter.send(Awake(url=url))
            case "share":
                reporter.phase(JobPhase.TRAINING, "micro-batch 3 of 8")
                reporter.send(SharingBegan(pod="vllm-0", url=url))
            case "unshare":
                reporter.send(SharingEnded(url=url))
            case "publish":
                reporter.send(Published(version=VERSION))
            case "refused":
                reporter.send(Published(version=VERSION.model_copy(update={"verdict": VersionVerdict.REJECTED})))
            case "finish":
                reporter.send(
                    Finished(result=TrainerResult(succeeded=True, version=VERSION, swapped_pods=["vllm-0"]))
                )
            case "linger":
                time.sleep(1.3)
            case "hang":
                time.sleep(60)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "endless-line":
                os.write(int(os.environ["CLAAS_REPORT_TO"]), b"x" * 3_000_000 + b"\n")
            case "half-a-line":
                os.write(int(os.environ["CLAAS_REPORT_TO"]), b'{"kind": "finis')
            case _:
                raise ValueError(step)


main()
