"""Records a cluster in mid-work: the operator's own process against a real API server, on the played node."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_contract.places import PROGRESS_PORT
from claas_contract.progress import Progress
from claas_crds import API_VERSION
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.meta import Manifest
from claas_kube.resources import (
    ADAPTERS,
    BATCH_JOBS,
    CLAIMS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISTILL_JOBS,
    LEASES,
    PODS,
    SECRETS,
)
from claas_operator.plan.naming import ADAPTER_UID_LABEL, COMPANION_CONFIG_MAP, JOB_UID_LABEL
from tests.cluster.kubectl import kubectl_for
from tests.cluster.light import LightCluster, light_cluster
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.control_plane import free_ports
from tests.simulation.cluster_api import NAMESPACES, text
from tests.simulation.operator_process import OPERATOR_NAMESPACE, OperatorProcess
from tests.simulation.scene import CLAIM, CONTROL_SECRET, SAMPLE, Scene, Simulation, holds, reason_of
from tests.simulation.trainer import Ending, Moment, Script

APPLIED_KINDS = ("LoraAdapter", "DistillJob", "Lease")
NAMESPACE = "recorded-namespace"
OTHER_SAMPLE: Manifest = {**SAMPLE, "system_prompt": "Be brief.", "messages": [], "response_token_ids": [1, 2]}
SETTINGS: Manifest = {"learning_rate": 1e-4, "teacher": "ema", "teacher_update_rate": 0.1, "seed": 7}
TRAINER: Manifest = {
    "resources": {"limits": {"memory": "2Gi", "cpu": 2}},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
}


def record_cluster(folder: Path, scratch: Path) -> None:
    """Write `cluster/` and `aliases/` below the folder."""
    with light_cluster() as cluster:
        kubectl = kubectl_for(cluster.kubeconfig)
        kubectl("apply", "--server-side", "-f", str(REPOSITORY_ROOT / "crds" / "manifests"))
        kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}}
        kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(system))
        simulation = Simulation(cluster, scratch)
        try:
            _record(cluster, simulation, folder)
        finally:
            simulation.close()


def _record(cluster: LightCluster, simulation: Simulation, folder: Path) -> None:
    operator = OperatorProcess(cluster, simulation.folder / "operator.log", health_port=free_ports(1)[0])
    operator.start_leading()
    scene = Scene(simulation, NAMESPACE)
    scene.set_up()
    _finished_jobs(scene)
    held = [*_a_paused_step_and_its_queue(scene), _a_step_beside_serving(scene), _one_that_prepares(scene)]
    _a_version_that_is_not_in_service(scene)
    _a_job_that_left_unaccounted(scene)
    _an_adapter_over_tls(scene)
    _wait_until_at_rest(scene)
    operator.stop()
    target = folder / "cluster"
    target.mkdir(parents=True, exist_ok=True)
    about = {"namespace": NAMESPACE, "port": simulation.port, "taken": datetime.now(UTC).isoformat()}
    (target / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    finished = {"", *(job.metadata.uid for job in scene.jobs() if job.status.phase in ("Succeeded", "Failed"))}
    before = [each for each in _everything(scene) if _trainer_of(each) not in finished]
    _write(target / "before.jsonl", before)
    _write(target / "volume.jsonl", _versions(simulation))
    for script in held:
        script.hold = False
    scene.wait("the trainers' ends", lambda: all(run.ended is not None for run in scene.runs()), 60)
    later = [each for each in _everything(scene) if each["kind"] in ("Job", "Pod") and each not in before]
    ended = [_status_of(each) for each in later if _trainer_of(each) not in finished]
    _write(target / "trainers-ended.jsonl", ended)
    _write(target / "volume-after.jsonl", _versions(simulation))
    shutil.copytree(simulation.folder / NAMESPACE / "tone-0" / "aliases", folder / "aliases", dirs_exist_ok=True)
    scene.tear_down()


def _finished_jobs(scene: Scene) -> None:
    """An adapter with a history: versions, settings of every kind, a version that vLLM refused, a failed job."""
    scene.serve("tone", persists=True)
    _adapter(scene, "tone", engine="local", training={"learning_rate": 5e-5, "max_kl": 0.5}, maxPauseSeconds=900)
    scene.apply_job("inline", samples={"inline": [SAMPLE, OTHER_SAMPLE]}, training=SETTINGS)
    scene.wait_until("inline", "Complete")
    scene.make_config_map("feedback", {"samples.json": json.dumps([SAMPLE])})
    scene.apply_job("config-map", samples={"configMapRef": {"name": "feedback"}}, completeWhen="Published")
    scene.wait_until("config-map", "Complete")
    scene.script(Script(Ending.FAIL, Moment.PUBLISHED, FailureReason.VERSION_REJECTED), "rejected")
    scene.apply_job("rejected")
    scene.wait_until("rejected", "Failed")
    for attempt in (1, 2):
        scene.script(Script(Ending.FAIL, reason=FailureReason.VLLM_UNREACHABLE), "failed", attempt)
    scene.apply_job("failed", backoffLimit=1)
    scene.wait_until("failed", "Failed", 60)
    scene.apply_job("suspended", suspend=True)
    scene.wait_until("suspended", "Suspended")


def _a_paused_step_and_its_queue(scene: Scene) -> list[Script]:
    """vLLM sleeps, and two jobs wait for the Lease."""
    script = scene.script(Script(hold=True), "paused")
    scene.apply_job("paused", samples={"inline": [OTHER_SAMPLE]}, ttlSecondsAfterFinished=86400)
    scene.wait_until_reached(script)
    (trainer,) = scene.trainer_pods(scene.job("paused").metadata.uid)
    progress = Progress(phase=JobPhase.TRAINING, detail="micro-batch 3 of 8", paused_since=datetime.now(UTC))
    with _telling(progress, trainer.status.pod_ip or ""):
        scene.wait_for_job("paused", lambda job: job.status.phase == JobPhase.TRAINING)
    scene.make_secret("private", {"samples.json": json.dumps([SAMPLE])})
    scene.apply_job("queued-secret", samples={"secretRef": {"name": "private"}})
    scene.apply_job("queued-file", samples={"file": {"claimName": CLAIM, "path": "feedback/today.jsonl"}})
    for name in ("queued-secret", "queued-file"):
        scene.wait_for_job(name, lambda job: job.status.phase == "Queued")
    return [script]


@contextmanager
def _telling(progress: Progress, address: str) -> Iterator[None]:
    """The trainer at this address tells its progress."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(progress.model_dump_json().encode())

    server = ThreadingHTTPServer((address, PROGRESS_PORT), Handler)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield
    server.shutdown()
    server.server_close()


def _a_step_beside_serving(scene: Scene) -> Script:
    """Two replicas, no engine named, the trainer's pod with settings."""
    scene.serve("pair", replicas=2)
    _adapter(scene, "pair", trainer=TRAINER, handover="Share", maxSlowdown=25, servedName="pair-of-them")
    script = scene.script(Script(hold=True), "beside")
    scene.apply_job("beside", "pair", activeDeadlineSeconds=7200)
    scene.wait_until_reached(script)
    return script


def _one_that_prepares(scene: Scene) -> Script:
    """A trainer before its pause, at its second attempt; without the companion."""
    scene.serve("early", companion=False)
    _adapter(scene, "early", lora={"rank": 8, "alpha": 16, "targetModules": ["q_proj"]}, loraId="user/early")
    scene.script(Script(Ending.DIE), "preparing")
    script = scene.script(Script(moment=Moment.PREPARING, hold=True), "preparing", 2)
    scene.apply_job("preparing", "early")
    scene.wait_until_reached(script, 60)
    return script


def _a_version_that_is_not_in_service(scene: Scene) -> None:
    """A job whose version is published, and which vLLM refuses to load."""
    (pod,) = scene.serve("swap")
    _adapter(scene, "swap")
    pod.server.app.refuses = "swap/versions/1"
    scene.script(Script(Ending.DIE, Moment.PUBLISHED), "swapping")
    scene.apply_job("swapping", "swap", backoffLimit=0)
    scene.wait_for_job("swapping", lambda job: job.status.phase == "Swapping", 60)


def _a_job_that_left_unaccounted(scene: Scene) -> None:
    """It is deleted while its trainer is through with publishing; nothing can look at the volume for now."""
    scene.serve("gone")
    _adapter(scene, "gone")
    script = scene.script(Script(Ending.DIE, Moment.PUBLISHED, hold=True), "deleted")
    scene.apply_job("deleted", "gone")
    scene.wait_until_reached(script)
    script.refused = "exceeded quota: no pods for now"
    scene.remove_job("deleted")

    def noted() -> bool:
        lease = scene.lease("gone")
        return lease is not None and bool(lease.unaccounted)

    scene.wait("the Lease's note", noted, 60)


def _an_adapter_over_tls(scene: Scene) -> None:
    """Without a server: what is kept is how it is to be asked, and where a hub's model is."""
    scene.serve("tls", replicas=0)
    scene.make_config_map("ca", {"ca.crt": scene.simulation.cluster.authority.read_text()})
    tls: Manifest = {"caConfigMapRef": {"name": "ca"}, "serverName": "vllm.example"}
    hub: Manifest = {"repository": "example/model", "revision": "main"}
    _adapter(scene, "tls", wait=False, source={"hub": hub}, scheme="https", tls=tls)
    scene.wait_for_adapter("tls", lambda adapter: bool(adapter.status.versions))
    scene.apply_job("waits", "tls")
    scene.wait_for_job("waits", lambda job: reason_of(job.status.conditions, "Admitted") != "")


def _adapter(
    scene: Scene,
    name: str,
    *,
    wait: bool = True,
    source: Manifest | None = None,
    lora: Manifest | None = None,
    loraId: str | None = None,  # noqa: N803
    engine: str | None = None,
    training: Manifest | None = None,
    trainer: Manifest | None = None,
    **serving: JsonValue,
) -> None:
    """An adapter of the Deployment of its name; `serving` are fields of spec.serving."""
    target: Manifest = {"deploymentRef": {"name": name}, "port": scene.simulation.port, "handover": "Sleep"}
    control: Manifest = {"controlTokenSecretRef": {"name": CONTROL_SECRET}}
    from_volume: Manifest = {"persistentVolumeClaim": {"claimName": "models", "path": "base/"}}
    spec: Manifest = {
        "model": {"name": "base", "source": source or from_volume},
        "serving": {**target, **control, **serving},
        "storage": {"claimName": CLAIM},
    }
    further: dict[str, JsonValue] = {
        "lora": lora, "loraId": loraId, "engine": engine, "training": training, "trainer": trainer,
    }  # fmt: skip
    spec |= {field: value for field, value in further.items() if value is not None}
    manifest: Manifest = {
        "apiVersion": API_VERSION,
        "kind": "LoraAdapter",
        "metadata": {"name": name, "namespace": scene.namespace},
        "spec": spec,
    }
    # As `kubectl apply` sends it, so that what is recorded has such an owner of its fields.
    kubectl_for(scene.simulation.cluster.kubeconfig)("apply", "-f", "-", stdin=json.dumps(manifest))
    if wait:
        scene.wait_for_adapter(name, lambda adapter: holds(adapter.status.conditions, "Ready"))


def _wait_until_at_rest(scene: Scene) -> None:
    """Wait until nothing that was asked for is still to be written."""
    scene.wait_for_job("paused", lambda job: reason_of(job.status.conditions, "Trained") == "Running")
    scene.wait_for_job("preparing", lambda job: job.status.attempts == 2)


def _everything(scene: Scene) -> list[Manifest]:
    """All objects of the namespace that the operator reads or makes, but for what is remade at once."""
    found: list[Manifest] = []
    namespace = scene.simulation.run(scene.simulation.api.list(NAMESPACES))
    found += [
        {"apiVersion": "v1", "kind": "Namespace", **each}
        for each in namespace
        if text(each, "metadata", "name") == scene.namespace
    ]
    for resource, version, kind in (
        (CLAIMS, "v1", "PersistentVolumeClaim"),
        (SECRETS, "v1", "Secret"),
        (CONFIG_MAPS, "v1", "ConfigMap"),
        (DEPLOYMENTS, "apps/v1", "Deployment"),
        (PODS, "v1", "Pod"),
        (ADAPTERS, API_VERSION, "LoraAdapter"),
        (DISTILL_JOBS, API_VERSION, "DistillJob"),
        (BATCH_JOBS, "batch/v1", "Job"),
        (LEASES, "coordination.k8s.io/v1", "Lease"),
    ):
        found += [{"apiVersion": version, "kind": kind, **each} for each in scene.objects(resource)]
    return [_plain(each) for each in found if text(each, "metadata", "name") != COMPANION_CONFIG_MAP]


def _trainer_of(manifest: Manifest) -> str | None:
    """UID of the DistillJob that a batch Job or pod takes a step for; empty when it made an initial version. Those
    of finished jobs, and of initial versions, are removed by their time to live, and so are not kept."""
    if not text(manifest, "metadata", "labels", ADAPTER_UID_LABEL):
        return None
    ended = text(manifest, "status", "completionTime") or text(manifest, "status", "phase") == "Succeeded"
    return text(manifest, "metadata", "labels", JOB_UID_LABEL) or ("" if ended else None)


def _plain(manifest: Manifest) -> Manifest:
    """The object as it is kept: Secrets as text, without what a server gives it when it stores it."""
    metadata = manifest["metadata"]
    assert isinstance(metadata, dict)
    # Who owns which field matters where the operator or a user applies what is there already.
    dropped = {"resourceVersion"} if manifest["kind"] in APPLIED_KINDS else {"resourceVersion", "managedFields"}
    kept: Manifest = {**manifest, "metadata": {key: metadata[key] for key in metadata if key not in dropped}}
    data = manifest.get("data")
    if manifest["kind"] == "Secret" and isinstance(data, dict):
        del kept["data"]
        kept["stringData"] = {key: base64.b64decode(str(value)).decode() for key, value in data.items()}
    return kept


def _status_of(manifest: Manifest) -> Manifest:
    return {
        "kind": manifest["kind"],
        "metadata": {"name": text(manifest, "metadata", "name")},
        "status": manifest["status"],
    }


def _versions(simulation: Simulation) -> list[Manifest]:
    return [
        {"folder": folder, "version": version.model_dump(mode="json")}
        for folder, versions in simulation.volume.folders(NAMESPACE)
        for version in versions
    ]


def _write(path: Path, objects: Iterable[Manifest]) -> None:
    """A line for each, so that a difference can be read."""
    path.write_text("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in objects))
