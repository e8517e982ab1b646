"""What a step costs in a container of Modal, on this machine and without Modal: a folder stands for each Volume.

    python bench/modal_step.py --shape qwen3-8b --gpu H100      # on a CUDA GPU
    python bench/modal_step.py --shape small --work 4,64,16,64  # on the CPU

Weights and tokens are random; nothing is downloaded. Prints the seconds that a container says of its steps, the first
one and those after it, and what they cost at a price of a second. Reading the base weights is told apart: after the
first starts a snapshot of memory holds them.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names.
sys.path.pop(0)

import argparse
import hashlib
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), *(str(path) for path in ROOT.glob("*/src"))]

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from bench.compute.shapes import SHAPES, THETAS
from bench.compute.work import Work
from bench.serving.model_folder import write_model
from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.deployment import NO_GPU
from claas_modal_client.manifest import MANIFEST_FILE, Manifest
from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
from claas_trainer.engines.modal.container.step_server import StepServer
from claas_trainer.engines.modal.deployment import TrainerDeployment
from claas_trainer.engines.modal.wire import FolderRef, StepAnswer, StepRequest, TakenStep
from claas_trainer.model.config import read_config
from claas_trainer.model.lora import LoraShape, config_file, new_adapter
from claas_trainer.store.content import Bytes, digest_of, write_files
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from claas_trainer.store.tensors import Tensors

MODEL = "bench/model"
ADAPTER = "adapter"


def nothing() -> None:
    """A folder needs neither reload nor commit."""


def samples(work: Work, vocabulary: int) -> tuple[TokenisedSample, ...]:
    """Random tokens."""
    return tuple(
        TokenisedSample(
            student_prompt_ids=made.student_prompt_ids,
            teacher_prompt_ids=made.teacher_prompt_ids,
            response_ids=made.response_ids,
        )
        for made in work.made(vocabulary)
    )


def first_version(volume: MountedVolume, model: Path, lora: LoraSpec) -> FolderRef:
    """Version 0, as a trainer's pod would upload it."""
    folder = f"adapters/{ADAPTER}/0-first"
    adapter = new_adapter(model, LoraShape(lora.rank, lora.alpha, ()), 0)
    (volume.root / folder).mkdir(parents=True)
    files = {
        ADAPTER_CONFIG_FILE: Bytes(config_file(adapter.shape)),
        ADAPTER_WEIGHTS_FILE: Tensors(adapter.tensors, {"format": "pt"}, read_config(model).dtype),
    }
    written = write_files(volume.root / folder, files)
    content = Manifest(files=written).to_bytes()
    (volume.root / folder / MANIFEST_FILE).write_bytes(content)
    address = VolumeAddress(volume.name, folder, hashlib.sha256(content).hexdigest())
    return FolderRef(number=0, address=str(address), digest=digest_of(written))


def take(
    server: StepServer, number: int, parent: FolderRef, work: Work, vocabulary: int, lora: LoraSpec
) -> TakenStep:
    """One step, as the deployed class takes it."""
    payload = DistillBatchRequestPayload(
        lora_id="bench/adapter", training=TrainingConfig(seed=number), samples=samples(work, vocabulary)
    )
    request = StepRequest(
        adapter_uid=ADAPTER, version=number, base_model=MODEL, lora=lora, payload=payload, parent=parent
    )
    answer = StepAnswer.of(server.step(request.document()))
    if answer.taken is None:
        raise SystemExit(f"no step: {answer.failure or answer.missing}")
    return answer.taken


def child(number: int, taken: TakenStep, root: Path) -> FolderRef:
    """The version that a step made, as the parent of the next one."""
    manifest = Manifest.model_validate_json(
        (root / VolumeAddress.parse(taken.state).folder / MANIFEST_FILE).read_bytes()
    )
    return FolderRef(
        number=number,
        address=taken.state,
        digest=digest_of(manifest.files),
        optimizer=True,
        provenance=taken.provenance,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--work", default="16,512,128,512")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--gpu", default="", help="name of the GPU as Modal calls it; empty: the CPU")
    options = parser.parse_args()
    count, prompt, feedback, response = map(int, options.work.split(","))
    work = Work(count, prompt, feedback, response)
    lora, shape = LoraSpec(rank=options.rank), SHAPES[options.shape]
    device = torch.device("cuda", 0) if options.gpu else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        versions = MountedVolume("adapters", Path(folder) / "adapters", nothing, nothing)
        weights = MountedVolume("weights", Path(folder) / "weights", nothing, nothing)
        dtype = torch.bfloat16 if options.gpu else torch.float32
        write_model(weights.root / MODEL, shape, THETAS[options.shape], device, dtype)
        versions.root.mkdir()
        settings = {"CLAAS_MODAL_MODEL": MODEL, "CLAAS_MODAL_GPU": options.gpu or NO_GPU}
        server = StepServer(TrainerDeployment.of(settings).common, versions, weights, nothing)
        server.load()
        server.resume(restored=False)
        parent = first_version(versions, weights.root / MODEL, lora)
        print(f"{'step':>5} {'start':>8} {'load':>8} {'step':>8} {'commit':>8}  answer, MB")
        for number in range(1, options.steps + 1):
            taken = take(server, number, parent, work, shape.vocabulary, lora)
            said, size = taken.seconds, sum(map(len, taken.adapter.values())) / 1e6
            print(f"{number:>5} {said.start:8.3f} {said.load:8.3f} {said.step:8.3f} {said.commit:8.3f}  {size:.1f}")
            parent = child(number, taken, versions.root)


if __name__ == "__main__":
    main()
