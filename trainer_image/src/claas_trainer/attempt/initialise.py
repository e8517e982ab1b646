"""Makes version 0 of an adapter: a LoRA without effect. Reads only the base model's configuration."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from claas_contract.input import TrainerInput
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.attempt.foreign import refuse_foreign
from claas_trainer.attempt.head_fit import base_name, check_fit, config_digest
from claas_trainer.errors import InputError, not_found
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.libraries import library_versions
from claas_trainer.logs import log
from claas_trainer.messages.events import Published, Reporter
from claas_trainer.model.source import find_model
from claas_trainer.paths import Paths
from claas_trainer.store.content import Bytes
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, VersionRecord
from claas_trainer.store.verdict import VERDICT_FILE
from claas_trainer.store.versions import StoredVersion, VersionStore

if TYPE_CHECKING:
    from claas_trainer.model.lora import AdapterWeights

_SEEDS = 2**31


def initialise(document: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Make version 0 where the folder holds no version; the result names that, or the head that was found.

    Raises TrainerError.
    """
    reporter.phase(JobPhase.PREPARING, "looking for versions")
    store = VersionStore(paths.adapter_folder(document.storage_path))
    head = store.head()
    already = head is not None
    if head is not None:
        check_fit(document, head, paths, lambda: _adapter(document, paths)[0].shape.target_modules)
    else:
        refuse_foreign(store.root)
        taken = store.numbers()
        if taken:
            raise InputError(
                f"storage.path: {store.versions} holds versions {taken[:5]}, and none is whole that serving did not"
                f" refuse, nor a version that it descends from; restore one from a backup, remove {VERDICT_FILE} from"
                " one that serving is to try again, or give spec.storage.path another folder"
            )
    # Checked now rather than at the first step: a read-only volume can't hold an adapter.
    store.prepare(owner=document.adapter.uid, attempt=1, needed_bytes=0)
    if head is None:
        head = _make(document, paths, store, reporter)
    published = head.published(paths.below_volume(head.folder))
    reporter.send(Published(version=published))
    return TrainerResult(succeeded=True, version=published, already_published=already)


def _adapter(document: TrainerInput, paths: Paths) -> tuple[AdapterWeights, Path]:
    """An adapter without effect, and the base model's folder. Raises InputError."""
    # Imported here, because an adapter that has a version usually does not need them.
    with first_import_of("claas_trainer.model.lora"):
        from claas_trainer.model.lora import LoraShape, new_adapter
        from claas_trainer.sdpo.errors import AdapterError, WeightsError

    folder = find_model(document.model, paths, weights=False)
    lora = document.lora
    seed = initial_seed(document.adapter.lora_id)
    try:
        return new_adapter(folder, LoraShape(lora.rank, lora.alpha, _targets(lora)), seed), folder
    except AdapterError as error:
        raise InputError(f"lora.targetModules: {error}") from error
    except WeightsError as error:
        raise not_found(f"model: {error}") from error


def _make(document: TrainerInput, paths: Paths, store: VersionStore, reporter: Reporter) -> StoredVersion:
    adapter, folder = _adapter(document, paths)
    from claas_trainer.model.config import read_config
    from claas_trainer.model.lora import config_file
    from claas_trainer.store.tensors import Tensors

    owner = document.adapter.uid
    weights = Tensors(adapter.tensors, {"format": "pt"}, read_config(folder).dtype)
    store.prepare(owner=owner, attempt=1, needed_bytes=weights.size_bytes)
    reporter.phase(JobPhase.PUBLISHING, "the initial version")
    record = VersionRecord(
        number=0,
        lora_id=document.adapter.lora_id,
        created=datetime.now(UTC),
        engine=document.engine.name.value,
        base_model=base_name(document.model),
        base_config=config_digest(folder),
        lora=document.lora,
        seed=initial_seed(document.adapter.lora_id),
        libraries=library_versions(),
    )
    publication = store.publish(
        record, {ADAPTER_CONFIG_FILE: Bytes(config_file(adapter.shape)), ADAPTER_WEIGHTS_FILE: weights}, owner=owner
    )
    log("initialised", version=0, targets=" ".join(adapter.shape.target_modules), created=publication.created)
    return publication.version


def initial_seed(lora_id: str) -> int:
    """The seed of an adapter's initial weights: the same identifier starts from the same weights."""
    digest = hashlib.sha256(lora_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SEEDS


def _targets(lora: LoraSpec) -> tuple[str, ...] | str:
    wanted = lora.target_modules
    return wanted if isinstance(wanted, str) else tuple(wanted or ())
