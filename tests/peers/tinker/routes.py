"""The service's routes: from a request to an operation, and from its result to an answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel as Message
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tinker import types
from tinker.types.try_again_response import TryAgainResponse

from tests.peers.tinker.calls import Call, Operation
from tests.peers.tinker.checkpoints import RefusedError
from tests.peers.tinker.jobs import Job
from tests.peers.tinker.model.wire import TrainRequest
from tests.peers.tinker.service import Order, Service

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Incoming:
    """A request that was read: its call, its body, and what was ordered for it."""

    call: Call
    request: Request
    body: bytes
    train: TrainRequest | None
    order: Order

    @property
    def checkpoint_path(self) -> str:
        """The checkpoint that the address names, as a tinker path."""
        parameters = self.request.path_params
        return f"tinker://{parameters['run']}/{parameters['folder']}/{parameters['name']}"


Handler = Callable[[Incoming], Awaitable[Response]]


@dataclass(frozen=True)
class Settings:
    """How the wire behaves."""

    compress: bool
    """Whether clients are told to send forward_backward compressed."""
    datums_per_request: int
    """Clients split longer lists of datums."""
    long_poll_s: float
    url_lifetime: timedelta


class Routes:
    """Handlers by operation."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._state = service.state
        self._settings = settings
        self.table: dict[Operation, tuple[str, str, Handler]] = {
            Operation.CLIENT_CONFIG: ("POST", "/client/config", self._client_config),
            Operation.DYNAMIC_CONFIG: ("POST", "/client/dynamic_config", self._dynamic_config),
            Operation.CAPABILITIES: ("GET", "/get_server_capabilities", self._capabilities),
            Operation.CREATE_SESSION: ("POST", "/create_session", self._create_session),
            Operation.HEARTBEAT: ("POST", "/session_heartbeat", self._heartbeat),
            Operation.FINISH_SESSION: ("POST", "/sessions/{session}/finish", self._finish_session),
            Operation.GET_SESSION: ("GET", "/sessions/{session}", self._get_session),
            Operation.CREATE_MODEL: ("POST", "/create_model", self._create_model),
            Operation.LOAD_WEIGHTS: ("POST", "/load_weights", self._load_weights),
            Operation.GET_INFO: ("POST", "/get_info", self._get_info),
            Operation.FORWARD_BACKWARD: ("POST", "/forward_backward", self._train),
            Operation.OPTIM_STEP: ("POST", "/optim_step", self._optim_step),
            Operation.SAVE_STATE: ("POST", "/save_weights", self._save_state),
            Operation.SAVE_FOR_SAMPLER: ("POST", "/save_weights_for_sampler", self._save_for_sampler),
            Operation.SAVE_EXTERNAL: ("POST", "/save_weights_external", self._save_external),
            Operation.CREATE_SAMPLER: ("POST", "/create_sampling_session", self._create_sampler),
            Operation.GET_SAMPLER: ("GET", "/samplers/{sampler}", self._get_sampler),
            Operation.SAMPLE: ("POST", "/asample", self._sample),
            Operation.RETRIEVE: ("POST", "/retrieve_future", self._retrieve),
            Operation.CANCEL: ("POST", "/cancel_future", self._nothing),
            Operation.WEIGHTS_INFO: ("POST", "/weights_info", self._weights_info),
            Operation.LIST_RUNS: ("GET", "/training_runs", self._list_runs),
            Operation.GET_RUN: ("GET", "/training_runs/{run}", self._get_run),
            Operation.LIST_CHECKPOINTS: ("GET", "/training_runs/{run}/checkpoints", self._list_checkpoints),
            Operation.LIST_ALL_CHECKPOINTS: ("GET", "/checkpoints", self._list_all_checkpoints),
            Operation.DELETE_CHECKPOINT: ("DELETE", _CHECKPOINT, self._delete_checkpoint),
            Operation.SET_TTL: ("PUT", f"{_CHECKPOINT}/ttl", self._set_ttl),
            Operation.EXTERNAL_URLS: ("GET", f"{_CHECKPOINT}/external_weights_urls", self._external_urls),
            Operation.EXTERNAL_FILE: ("GET", "/external_files/{token}/{file}", self._external_file),
            Operation.TELEMETRY: ("POST", "/telemetry", self._telemetry),
            Operation.HEALTH: ("GET", "/healthz", self._health),
        }

    async def _client_config(self, incoming: Incoming) -> Response:
        return _json(
            types.ClientConfigResponse(
                proto_compress_fwdbwd=self._settings.compress,
                fwdbwd_max_chunk_len=self._settings.datums_per_request,
            )
        )

    async def _dynamic_config(self, incoming: Incoming) -> Response:
        return _json(types.ClientDynamicConfigResponse())

    async def _capabilities(self, incoming: Incoming) -> Response:
        return _json(types.GetServerCapabilitiesResponse(supported_models=list(self._service.models.values())))

    async def _telemetry(self, incoming: Incoming) -> Response:
        return JSONResponse({"status": "accepted"})

    async def _health(self, incoming: Incoming) -> Response:
        return JSONResponse({"status": "ok"})

    async def _create_session(self, incoming: Incoming) -> Response:
        request = types.CreateSessionRequest.model_validate_json(incoming.body)
        session = self._state.new_session(request.user_metadata or {})
        incoming.call.run = session.id
        return _json(types.CreateSessionResponse(session_id=session.id))

    async def _heartbeat(self, incoming: Incoming) -> Response:
        self._state.heartbeat(types.SessionHeartbeatRequest.model_validate_json(incoming.body).session_id)
        return _json(types.SessionHeartbeatResponse())

    async def _finish_session(self, incoming: Incoming) -> Response:
        self._state.live_session(incoming.request.path_params["session"]).finished = True
        return Response(status_code=204)

    async def _get_session(self, incoming: Incoming) -> Response:
        session = self._state.sessions.get(incoming.request.path_params["session"])
        if session is None:
            raise RefusedError(404, "no such session")
        runs = [run.id for run in self._state.runs.values() if run.session is session]
        samplers = [sampler.id for sampler in self._state.samplers.values() if sampler.session is session]
        return JSONResponse(
            {"training_run_ids": runs, "sampler_ids": samplers, "user_metadata": session.user_metadata}
        )

    async def _create_model(self, incoming: Incoming) -> Response:
        request = types.CreateModelRequest.model_validate_json(incoming.body)
        return _accepted(self._service.create_model(request, incoming.call, incoming.order))

    async def _load_weights(self, incoming: Incoming) -> Response:
        request = types.LoadWeightsRequest.model_validate_json(incoming.body)
        return _accepted(self._service.load_weights(request, incoming.call, incoming.order))

    async def _get_info(self, incoming: Incoming) -> Response:
        return _json(self._service.info(types.GetInfoRequest.model_validate_json(incoming.body).model_id))

    async def _train(self, incoming: Incoming) -> Response:
        if incoming.train is None:
            raise RefusedError(400, "the body must be a protobuf message")
        return _accepted(self._service.train(incoming.train, incoming.call, incoming.order))

    async def _optim_step(self, incoming: Incoming) -> Response:
        request = types.OptimStepRequest.model_validate_json(incoming.body)
        return _accepted(self._service.optim_step(request, incoming.call, incoming.order))

    async def _save_state(self, incoming: Incoming) -> Response:
        request = types.SaveWeightsRequest.model_validate_json(incoming.body)
        return _accepted(self._service.save_state(request, incoming.call, incoming.order))

    async def _save_for_sampler(self, incoming: Incoming) -> Response:
        request = types.SaveWeightsForSamplerRequest.model_validate_json(incoming.body)
        return _accepted(self._service.save_for_sampler(request, incoming.call, incoming.order))

    async def _save_external(self, incoming: Incoming) -> Response:
        request = types.SaveWeightsExternalRequest.model_validate_json(incoming.body)
        return _accepted(self._service.save_external(request, incoming.call, incoming.order))

    async def _create_sampler(self, incoming: Incoming) -> Response:
        request = types.CreateSamplingSessionRequest.model_validate_json(incoming.body)
        return _json(types.CreateSamplingSessionResponse(sampling_session_id=self._service.create_sampler(request)))

    async def _get_sampler(self, incoming: Incoming) -> Response:
        sampler = self._state.samplers.get(incoming.request.path_params["sampler"])
        if sampler is None:
            raise RefusedError(404, "no such sampler")
        path = sampler.checkpoint.path if sampler.checkpoint else None
        return _json(types.GetSamplerResponse(sampler_id=sampler.id, base_model=sampler.base_model, model_path=path))

    async def _sample(self, incoming: Incoming) -> Response:
        request = types.SampleRequest.model_validate_json(incoming.body)
        job = self._service.sample(request, incoming.call, incoming.order)
        sequences = [f"{job.request_id}:{number}" for number in range(request.num_samples)]
        return _json(types.UntypedAPIFuture(request_id=job.request_id, sample_sequence_ids=sequences))

    async def _retrieve(self, incoming: Incoming) -> Response:
        """Wait for a result as long as a long poll lasts, then ask to come again."""
        request = types.FutureRetrieveRequest.model_validate_json(incoming.body)
        job = self._state.jobs.get(request.request_id)
        if job is None:
            raise RefusedError(404, f"no request {request.request_id}")
        waiting = asyncio.shield(asyncio.wrap_future(job.result))
        try:
            result = await asyncio.wait_for(waiting, self._settings.long_poll_s)
        except TimeoutError:
            return _json(TryAgainResponse(request_id=job.request_id, queue_state="active"))
        if isinstance(result, bytes):
            return Response(result, media_type=PROTOBUF)
        return _json(result)

    async def _weights_info(self, incoming: Incoming) -> Response:
        checkpoint = self._state.checkpoints.get(str(json.loads(incoming.body)["tinker_path"]))
        shape = checkpoint.snapshot.lora.shape
        return _json(
            types.WeightsInfoResponse(
                base_model=checkpoint.base_model,
                is_lora=True,
                lora_rank=shape.rank,
                train_unembed=shape.train_unembed,
                train_mlp=shape.train_mlp,
                train_attn=shape.train_attn,
            )
        )

    async def _list_runs(self, incoming: Incoming) -> Response:
        limit = int(incoming.request.query_params.get("limit", "20"))
        offset = int(incoming.request.query_params.get("offset", "0"))
        runs = list(reversed(self._state.runs))
        page = [self._state.describe(self._state.known_run(run)) for run in runs[offset : offset + limit]]
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(runs))
        return _json(types.TrainingRunsResponse(training_runs=page, cursor=cursor))

    async def _get_run(self, incoming: Incoming) -> Response:
        return _json(self._state.describe(self._state.known_run(incoming.request.path_params["run"])))

    async def _list_checkpoints(self, incoming: Incoming) -> Response:
        run = self._state.known_run(incoming.request.path_params["run"])
        found = [checkpoint.message() for checkpoint in self._state.checkpoints.list(run.id)]
        return _json(types.CheckpointsListResponse(checkpoints=found))

    async def _list_all_checkpoints(self, incoming: Incoming) -> Response:
        limit = int(incoming.request.query_params.get("limit", "100"))
        offset = int(incoming.request.query_params.get("offset", "0"))
        found = [checkpoint.message() for checkpoint in reversed(self._state.checkpoints.list())]
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(found))
        return _json(types.CheckpointsListResponse(checkpoints=found[offset : offset + limit], cursor=cursor))

    async def _delete_checkpoint(self, incoming: Incoming) -> Response:
        self._state.checkpoints.delete(incoming.checkpoint_path)
        return Response(status_code=204)

    async def _set_ttl(self, incoming: Incoming) -> Response:
        self._state.checkpoints.set_ttl(incoming.checkpoint_path, json.loads(incoming.body)["ttl_seconds"])
        return Response(status_code=204)

    async def _external_urls(self, incoming: Incoming) -> Response:
        token, expires = self._state.checkpoints.sign(incoming.checkpoint_path, self._settings.url_lifetime)
        root = f"{incoming.request.base_url}api/v1/external_files/{token}"
        urls = {name: f"{root}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")}
        return _json(types.ExternalWeightsUrlsResponse(urls=urls, expires=expires))

    async def _external_file(self, incoming: Incoming) -> Response:
        parameters = incoming.request.path_params
        content = self._state.checkpoints.file(parameters["token"], parameters["file"])
        return Response(content, media_type="application/octet-stream")

    async def _nothing(self, incoming: Incoming) -> Response:
        return Response(status_code=204)


_CHECKPOINT = "/training_runs/{run}/checkpoints/{folder}/{name}"


def _json(message: Message) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _accepted(job: Job) -> Response:
    return _json(types.UntypedAPIFuture(request_id=job.request_id))


def refusal(error: RefusedError | ValidationError | ValueError) -> Response:
    """The answer to a request that is wrong."""
    status = error.status if isinstance(error, RefusedError) else 422 if isinstance(error, ValidationError) else 400
    return JSONResponse({"detail": str(error)}, status_code=status)
