"""The inference proxy's objects: restricted pods that see what they need and no more, and that come back."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

import pytest
from pydantic import JsonValue

from claas_contract import places
from claas_crds.v1alpha1.conditions import condition_of
from claas_crds.v1alpha1.engine import EngineSpec
from claas_crds.v1alpha1.serving import Probe
from claas_crds.v1alpha1.trainer_pod import TrainerPod
from claas_inference_proxy.__main__ import SHUTDOWN_SECONDS
from claas_inference_proxy.adapters.host import READY_ROUTE
from claas_inference_proxy.settings import read_settings
from claas_kube.api import Api
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import ADAPTERS, CLAIMS, DEPLOYMENTS, SECRETS, SERVICES, Resource
from claas_operator.act.proxy_manifests import TERMINATION_GRACE_SECONDS, proxy_deployment, proxy_service, proxy_token
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.settings import Settings
from claas_vllm.settings import read_settings as companion_settings
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE
from tests.unit.operator.act.test_manifests import at
from tests.unit.operator.plan.adapter.test_proxy import proxied

SETTINGS = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1", "CLAAS_REMOTE_TRAINER_IMAGE": "slim:1"})
NAME = "tone-tinker-proxy"
KEY = "tml-a-users-key"
ADAPTER = Key(Kind.ADAPTER, NAMESPACE, "tone")


def with_spec(found: AdapterObject, **fields: object) -> AdapterObject:
    return found.model_copy(update={"spec": found.spec.model_copy(update=fields)})


def pod_spec(deployment: Manifest) -> Manifest:
    return cast(Manifest, at(deployment, "spec", "template", "spec"))


def environment(deployment: Manifest) -> dict[str, JsonValue]:
    variables = cast("list[Manifest]", at(pod_spec(deployment), "containers", 0, "env"))
    return {str(variable["name"]): variable["value"] for variable in variables}


def test_the_proxy_knows_adapter_model_and_service_by_its_variables() -> None:
    told = environment(proxy_deployment(proxied(), SETTINGS, many_nodes=False))
    assert told == {
        "CLAAS_MODEL": places.MODEL_DIRECTORY,
        "CLAAS_MODEL_NAME": "base",
        "CLAAS_TINKER_BASE_MODEL": "base",
        "CLAAS_TINKER_KEY_FILE": places.TINKER_KEY_FILE,
        "CLAAS_SERVED_NAME": "tone",
        "CLAAS_ADAPTER_DIRECTORY": f"{places.STORAGE_DIRECTORY}/team/tone",
        "CLAAS_PROBE_PROMPT": "Hello",
        "CLAAS_PORT": "8000",
        "CLAAS_TOKEN_FILE": places.CONTROL_TOKEN_FILE,
        "CLAAS_ALIAS_DIR": "/var/lib/claas/aliases",
        "TINKER_TELEMETRY": "0",
        "HOME": "/tmp",
    }


def test_its_pods_are_restricted_and_read_the_volume_only() -> None:
    spec = pod_spec(proxy_deployment(proxied(), SETTINGS, many_nodes=True))
    container = cast(Manifest, at(spec, "containers", 0))
    assert container["image"] == "slim:1"
    assert container["command"] == ["python", "-m", "claas_inference_proxy"]
    security = cast(Manifest, container["securityContext"])
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert spec["automountServiceAccountToken"] is False
    listed = cast("list[Manifest]", container["volumeMounts"])
    mounts = {str(each["mountPath"]): each.get("readOnly") for each in listed}
    assert mounts == {
        places.STORAGE_DIRECTORY: True,
        places.MODEL_DIRECTORY: True,
        "/var/lib/claas/aliases": None,
        "/tmp": None,
        "/var/run/claas/tinker": True,
        "/var/run/claas/control": True,
    }
    volumes = {str(each["name"]): each for each in cast("list[Manifest]", spec["volumes"])}
    assert at(volumes["claas-control"], "secret", "secretName") == NAME
    assert at(volumes["claas-service-key"], "secret", "secretName") == "claas-tinker"


def test_no_pod_goes_before_another_is_ready_and_the_labels_that_select_it_never_change() -> None:
    deployment = proxy_deployment(proxied(), SETTINGS, many_nodes=True)
    assert at(deployment, "spec", "strategy", "rollingUpdate", "maxUnavailable") == 0
    selector = cast(Manifest, at(deployment, "spec", "selector", "matchLabels"))
    labels = cast(Manifest, at(deployment, "spec", "template", "metadata", "labels"))
    assert selector.items() <= labels.items()
    assert labels["claas.dev/engine"] == "tinker"
    service = proxy_service(proxied())
    assert at(service, "spec", "selector") == selector
    assert at(service, "spec", "ports", 0, "port") == 8000


def test_answers_under_way_are_waited_for_when_a_pod_goes() -> None:
    spec = pod_spec(proxy_deployment(proxied(), SETTINGS, many_nodes=True))
    before = at(spec, "containers", 0, "lifecycle", "preStop", "sleep", "seconds")
    assert isinstance(before, int)
    # The session's end may take ten seconds more.
    assert 60 < SHUTDOWN_SECONDS <= TERMINATION_GRACE_SECONDS - before - 10


def test_pods_stay_together_where_the_volume_is_on_one_node() -> None:
    one, many = (pod_spec(proxy_deployment(proxied(), SETTINGS, many_nodes=many)) for many in (False, True))
    assert "topologySpreadConstraints" not in one
    # Preferred: the first pod finds no other one.
    affinity = cast(Manifest, at(one, "affinity", "podAffinity"))
    assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    assert at(many, "topologySpreadConstraints", 0, "whenUnsatisfiable") == "ScheduleAnyway"
    assert "affinity" not in many


def test_the_users_variables_for_trainers_hold_for_the_proxy_too() -> None:
    trainer = TrainerPod.model_validate({"env": [{"name": "HTTPS_PROXY", "value": "http://out"}]})
    found = with_spec(proxied(), trainer=trainer)
    assert environment(proxy_deployment(found, SETTINGS, many_nodes=True))["HTTPS_PROXY"] == "http://out"


@dataclass
class Cluster:
    small: SmallApi
    api: Api
    reconciler: Reconciler

    async def look(self) -> list[str]:
        """A pass over the adapter; what it wrote besides status and Leases."""
        self.small.asked.clear()
        await self.reconciler.reconcile(ADAPTER)
        written = [(method, path.rsplit("/", 2)) for method, path in self.small.asked if method in ("POST", "PATCH")]
        kinds = [path[-1] if method == "POST" else path[-2] for method, path in written if path[-1] != "status"]
        return sorted(kind for kind in kinds if kind in ("secrets", "services", "deployments", "jobs"))

    def change(self, resource: Resource, **metadata: JsonValue) -> None:
        found = self.small.found(resource, NAMESPACE, NAME)
        before = cast(Manifest, found["metadata"])
        self.small.put(resource, NAMESPACE, {**found, "metadata": {**before, **metadata}})


@asynccontextmanager
async def cluster(versions: tuple[int, ...] = (0,)) -> AsyncIterator[Cluster]:
    small = SmallApi()
    plain = proxied(versions).model_dump(mode="json", by_alias=True, exclude_none=True)
    small.put(ADAPTERS, NAMESPACE, plain)
    small.put(CLAIMS, NAMESPACE, {"metadata": {"name": "adapters"}})
    key = base64.b64encode(KEY.encode()).decode()
    small.put(SECRETS, NAMESPACE, {"metadata": {"name": "claas-tinker"}, "data": {"api-key": key}})
    async with serving_api(small) as api:
        yield Cluster(small, api, reconciler_of(api))


def token(small: SmallApi) -> str:
    return str(at(small.found(SECRETS, NAMESPACE, NAME), "data", "token"))


async def test_a_new_adapter_gets_a_token_and_its_first_version_and_then_a_proxy() -> None:
    async with cluster(versions=()) as made:
        assert await made.look() == ["jobs", "secrets", "secrets"]
        chosen = token(made.small)
        assert len(base64.b64decode(chosen)) >= 32
        plain = proxied((0,)).model_dump(mode="json", by_alias=True, exclude_none=True)
        made.small.put(ADAPTERS, NAMESPACE, plain)
        assert await made.look() == ["deployments", "services"]
        assert await made.look() == []
        assert token(made.small) == chosen


@pytest.mark.parametrize(
    ("resource", "change"),
    [
        (DEPLOYMENTS, {"generation": 2}),
        (DEPLOYMENTS, {"labels": {}}),
        (DEPLOYMENTS, None),
        (SERVICES, {"labels": {}}),
        (SERVICES, None),
    ],
)
async def test_a_proxy_that_was_changed_or_deleted_is_mended_once(
    resource: Resource, change: dict[str, JsonValue] | None
) -> None:
    async with cluster() as made:
        assert await made.look() == ["deployments", "secrets", "services"]
        assert await made.look() == []
        if change is None:
            made.small.remove(resource, NAMESPACE, NAME)
        else:
            made.change(resource, **change)
        assert await made.look() == ["deployments", "services"]
        assert await made.look() == []


async def test_a_token_that_is_there_stays() -> None:
    async with cluster() as made:
        await made.look()
        chosen = token(made.small)
        made.small.remove(DEPLOYMENTS, NAMESPACE, NAME)
        await made.look()
        assert token(made.small) == chosen


@pytest.mark.parametrize("data", [{}, {"token": ""}, {"token": base64.b64encode(b"two\nlines").decode()}])
async def test_a_token_that_was_emptied_or_broken_is_chosen_anew(data: Manifest) -> None:
    async with cluster() as made:
        await made.look()
        made.small.put(SECRETS, NAMESPACE, {**made.small.found(SECRETS, NAMESPACE, NAME), "data": data})
        made.reconciler = reconciler_of(made.api)  # It asks for a token that it has seen after some seconds only.
        assert "secrets" in await made.look()
        assert len(base64.b64decode(token(made.small))) >= 32
        assert await made.look() == []


async def test_somebody_elses_secret_is_used_where_it_has_a_token_and_is_told_where_it_has_none() -> None:
    async with cluster() as made:
        theirs: Manifest = {"metadata": {"name": NAME}, "data": {"token": base64.b64encode(b"theirs").decode()}}
        made.small.put(SECRETS, NAMESPACE, theirs)
        assert await made.look() == ["deployments", "services"]
    async with cluster() as made:
        made.small.put(SECRETS, NAMESPACE, {"metadata": {"name": NAME}, "data": {"other": ""}})
        assert await made.look() == []
        found = AdapterObject.model_validate(made.small.found(ADAPTERS, NAMESPACE, "tone"))
        ready = condition_of(found.status.conditions, "Ready")
        assert ready is not None
        assert f"Secret {NAME} that is not this adapter's" in ready.message


@pytest.mark.parametrize("resource", [DEPLOYMENTS, SERVICES])
async def test_somebody_elses_object_of_that_name_is_left_alone_and_told(resource: Resource) -> None:
    async with cluster() as made:
        theirs: Manifest = {"metadata": {"name": NAME}, "spec": {"selector": {"matchLabels": {"app": "x"}}}}
        made.small.put(resource, NAMESPACE, theirs)
        assert await made.look() == ["secrets"]
        assert at(made.small.found(resource, NAMESPACE, NAME), "spec") == theirs["spec"]
        found = AdapterObject.model_validate(made.small.found(ADAPTERS, NAMESPACE, "tone"))
        ready = condition_of(found.status.conditions, "Ready")
        assert ready is not None
        assert NAME in ready.message


async def test_a_missing_key_is_told_by_secret_key_and_field() -> None:
    async with cluster(versions=()) as made:
        made.small.remove(SECRETS, NAMESPACE, "claas-tinker")
        assert await made.look() == ["secrets"]
        found = AdapterObject.model_validate(made.small.found(ADAPTERS, NAMESPACE, "tone"))
        ready = condition_of(found.status.conditions, "Ready")
        assert ready is not None
        assert ready.reason == "SecretNotFound"
        assert "claas-tinker/api-key (spec.engine.tinker.apiKeySecretRef)" in ready.message


async def test_the_key_is_in_nothing_that_is_written() -> None:
    async with cluster(versions=()) as made:
        await made.look()
        made.small.put(ADAPTERS, NAMESPACE, proxied((0,)).model_dump(mode="json", by_alias=True, exclude_none=True))
        await made.look()
        key = made.small.found(SECRETS, NAMESPACE, "claas-tinker")
        written = [found for found in made.small.objects.values() if found is not key]
        assert len(written) > 5
        said = json.dumps(written)
        assert KEY not in said
        assert base64.b64encode(KEY.encode()).decode() not in said


def test_the_chosen_token_is_its_own_secret() -> None:
    manifest = proxy_token(proxied(), "chosen")
    assert at(manifest, "metadata", "name") == NAME
    assert at(manifest, "data", "token") == base64.b64encode(b"chosen").decode()
    # It goes with the adapter.
    assert at(manifest, "metadata", "ownerReferences", 0, "uid") == "uid-of-tone"


def test_the_proxy_image_may_be_another_one() -> None:
    settings = replace(SETTINGS, proxy_image="proxy:1")
    assert at(pod_spec(proxy_deployment(proxied(), settings, many_nodes=True)), "containers", 0, "image") == "proxy:1"


def test_the_proxy_and_its_companion_read_what_the_operator_tells_them() -> None:
    found = proxied()
    tinker: Manifest = {"baseUrl": "https://tinker.example", "projectId": "p", "baseModel": "Qwen/Qwen3-8B"}
    serving = found.spec.serving.model_copy(update={"port": 9000, "probe": Probe(prompt="Costs $(HOME) and $$5?")})
    found = with_spec(found, engine=EngineSpec.model_validate({"tinker": tinker}), serving=serving)
    told = environment(proxy_deployment(found, SETTINGS, many_nodes=True))
    # As the kubelet resolves it; no other value has a dollar.
    resolved = {name: str(value).replace("$$", "$") for name, value in told.items()}
    read = read_settings(resolved)
    assert (read.model, read.model_name, read.base_model) == (places.MODEL_DIRECTORY, "base", "Qwen/Qwen3-8B")
    assert (read.base_url, read.project, read.port) == ("https://tinker.example", "p", 9000)
    assert (str(read.key_file), read.served_name) == (places.TINKER_KEY_FILE, "tone")
    assert str(read.adapter_directory) == f"{places.STORAGE_DIRECTORY}/team/tone"
    assert read.probe == "Costs $(HOME) and $$5?"
    companion = companion_settings(resolved)
    assert (str(companion.token_file), str(companion.alias_dir)) == (
        places.CONTROL_TOKEN_FILE,
        "/var/lib/claas/aliases",
    )
    container = cast(Manifest, at(pod_spec(proxy_deployment(found, SETTINGS, many_nodes=True)), "containers", 0))
    assert at(container, "readinessProbe", "httpGet", "path") == READY_ROUTE
    assert at(container, "ports", 0, "containerPort") == read.port
