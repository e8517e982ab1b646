"""Makes version 0 of an adapter, which has no effect yet. Reads only the base model's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from claas_contract.input import TrainerInput
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.attempt.foreign import refuse_foreign
from claas_trainer.attempt.head_fit import base_name, check_fit, config_digest
from claas_trainer.engines.registry import chosen_engine, initial_version
from claas_trainer.errors import InputError
from claas_trainer.libraries import library_versions
from claas_trainer.logs import log
from claas_trainer.messages.events import Published, Reporter
from claas_trainer.model.source import find_model
from claas_trainer.paths import Paths
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.verdict import VERDICT_FILE
from claas_trainer.store.versions import StoredVersion, VersionStore

_SEEDS = 2**31


def initialise(document: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Make version 0 where the folder holds no version; the result names that, or the head that was found.

    Raises TrainerError.
    """
    reporter.phase(JobPhase.PREPARING, "looking for versions")
    store = VersionStore(paths.adapter_folder(document.storage_path))
    engine = chosen_engine(document)
    head = store.head()
    already = head is not None
    if head is not None:
        check_fit(engine, document, head, paths, lambda: _layers(engine, document, paths))
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
        head = _make(engine, document, paths, store, reporter)
    published = head.published(paths.below_volume(head.folder))
    reporter.send(Published(version=published))
    return TrainerResult(succeeded=True, version=published, already_published=already)


def _make(
    engine: EngineName, document: TrainerInput, paths: Paths, store: VersionStore, reporter: Reporter
) -> StoredVersion:
    folder = find_model(document.model, paths, weights=False)
    seed = initial_seed(document.adapter.lora_id)
    made = initial_version(engine, document, folder, seed, paths)
    owner = document.adapter.uid
    store.prepare(owner=owner, attempt=1, needed_bytes=made.size_bytes)
    reporter.phase(JobPhase.PUBLISHING, "the initial version")
    weights = made.upload() if made.upload is not None else None
    record = VersionRecord(
        number=0,
        lora_id=document.adapter.lora_id,
        created=datetime.now(UTC),
        engine=engine.value,
        base_model=base_name(document.model),
        base_config=config_digest(folder),
        lora=document.lora,
        seed=seed,
        weights=weights,
        libraries=library_versions(),
    )
    publication = store.publish(record, made.files, owner=owner)
    log("initialised", version=0, layers=" ".join(made.layers), created=publication.created)
    return publication.version


def _layers(engine: EngineName, document: TrainerInput, paths: Paths) -> Sequence[str]:
    """The layers that the adapter means on its base model."""
    folder = find_model(document.model, paths, weights=False)
    return initial_version(engine, document, folder, initial_seed(document.adapter.lora_id), paths).layers


def initial_seed(lora_id: str) -> int:
    """The seed of an adapter's initial weights: the same identifier starts from the same weights."""
    digest = hashlib.sha256(lora_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SEEDS
