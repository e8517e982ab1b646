"""The vLLM servers of an adapter, and how they are treated."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from claas_crds.base import OBJECT_NAME, ResourceModel
from claas_crds.v1alpha1.engine import MODAL_APP_NAME, MODAL_NAME, SecretReference
from claas_crds.v1alpha1.tls import TLS_RULES, Scheme, ServingTls
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_crds.v1alpha1.training import LORA_ID_PATTERN

SERVED_NAME_LIMIT = 200
"""Longest served name, in characters. The companion has the same limit, plus room for a version suffix."""


class PauseMode(StrEnum):
    """How running requests are treated when serving pauses (vLLM's `mode`)."""

    KEEP = "Keep"
    """They freeze and resume after the step: none fails, and the pause does not wait for long answers."""
    WAIT = "Wait"
    """They are completed first, within `drainTimeoutSeconds`."""
    ABORT = "Abort"
    """They are aborted with an error."""


class HandoverKind(StrEnum):
    """What happens to serving while a step is taken (docs/handover.md)."""

    AUTO = "Auto"
    """The operator chooses by the Deployment's flags. `status.handover` names the choice, `status.handoverMessage`
    the reason."""
    SLEEP = "Sleep"
    """vLLM freezes its requests and frees its GPU memory for the step."""
    SHARE = "Share"
    """vLLM goes on serving during the step. On a GPU the step uses the weights in vLLM's memory, on a CPU it maps the
    model's files."""
    NONE = "None"
    """vLLM goes on serving, and the trainer uses a GPU of its own, or the CPU, with its own copy of the weights."""


class DeploymentReference(ResourceModel):
    """A Deployment in the same namespace."""

    name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Its name."""


class Probe(ResourceModel):
    """The request that checks a loaded version: it must answer, and not as the base model does."""

    prompt: str = Field(default="Hello", min_length=1, max_length=4096)
    """A fixed prompt, asked at temperature 0. Choose one whose answer your feedback changes."""
    max_tokens: int = Field(default=8, ge=1, le=256)
    """Length of the answer, in tokens."""


class TinkerProxy(ResourceModel):
    """The inference proxy, which answers by the version's checkpoint in the Tinker service; the operator makes its
    Deployment."""

    replicas: int = Field(default=1, ge=1, le=50)
    """Number of its pods."""


class ModalApp(ResourceModel):
    """A vLLM that is deployed on the Modal platform (docs/modal.md)."""

    app: str = Field(default="claas-vllm", min_length=1, max_length=64, json_schema_extra={"pattern": MODAL_APP_NAME})
    """The deployed app. It has one base model."""
    server: str = Field(default="Vllm", min_length=1, max_length=64, json_schema_extra={"pattern": MODAL_NAME})
    """The server in it: the name of its class."""
    proxy_token_secret_ref: SecretReference = SecretReference(name="claas-modal-proxy")
    """The proxy token that Modal asks of each request, in the keys `key` and `secret` of a Secret."""


class Serving(ResourceModel):
    """The servers of the adapter: vLLM, the inference proxy of the Tinker service, or a vLLM on Modal."""

    deployment_ref: DeploymentReference | None = None
    """The Deployment whose pods run vLLM."""
    tinker_proxy: TinkerProxy | None = None
    """The inference proxy, in place of vLLM; for `engine.tinker` only. The operator makes Deployment and Service
    `<adapter>-tinker-proxy`, and a control token where `controlTokenSecretRef` names none. Such an adapter can't
    change to `deploymentRef` later."""
    modal_app: ModalApp | None = None
    """A vLLM on the Modal platform, in place of one in the cluster; for `engine.modal` only. `controlTokenSecretRef`
    holds the control token that it was deployed with. Such an adapter can't change to another kind of servers
    later."""
    container: str | None = None
    """The container that runs vLLM; the first one of the Deployment's template when left out."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The servers' port."""
    scheme: Scheme = Scheme.HTTP
    """Protocol on that port: `https` when vLLM runs with `--ssl-certfile`."""
    tls: ServingTls | None = Field(default=None, json_schema_extra={"x-kubernetes-validations": TLS_RULES})
    """How the server's certificate is verified; only with `scheme: https`."""
    served_name: str | None = Field(
        default=None, min_length=1, max_length=SERVED_NAME_LIMIT, json_schema_extra={"pattern": LORA_ID_PATTERN}
    )
    """The model name clients ask for; the adapter's name when left out."""
    control_token_secret_ref: SecretKeyRef | None = None
    """The control token, which the companion's lock asks for. Without it the server's control routes must be open."""
    api_key_secret_ref: SecretKeyRef | None = None
    """vLLM's own `--api-key`, if it has one."""
    handover: HandoverKind = HandoverKind.AUTO
    """What happens to serving while a step is taken."""
    max_slowdown: int = Field(default=40, ge=1, le=90)
    """How much of its tokens per second serving may lose during a step, in percent; `Share` only."""
    pause: PauseMode = PauseMode.KEEP
    """How running requests are treated when serving pauses for a step; `Sleep` only."""
    drain_timeout_seconds: int = Field(default=30, ge=1, le=3600)
    """Seconds that `pause: Wait` waits for running requests before the attempt fails."""
    max_pause_seconds: int = Field(default=120, ge=1, le=3600)
    """Longest pause of serving, in seconds. A step that would certainly take longer, judged by its parent's step, is
    not started; one that does take longer is ended, and serving is woken."""
    probe: Probe = Probe()
    """How a version is checked before it goes into service."""
