"""Routes of sessions, training and sampling: from a request to an operation, and from its result to an answer."""

import asyncio

from starlette.responses import JSONResponse, Response
from tinker import types
from tinker.types.try_again_response import TryAgainResponse

from tests.peers.tinker.calls import Operation
from tests.peers.tinker.checkpoints import RefusedError
from tests.peers.tinker.jobs import Job
from tests.peers.tinker.service import Service
from tests.peers.tinker.web.incoming import Incoming, Settings, Table, as_json

PROTOBUF = "application/x-protobuf"


class Routes:
    """They answer at once, but for a result that is waited for."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._state = service.state
        self._settings = settings
        self.table: Table = {
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
            Operation.TELEMETRY: ("POST", "/telemetry", self._telemetry),
            Operation.HEALTH: ("GET", "/healthz", self._health),
        }

    async def _client_config(self, incoming: Incoming) -> Response:
        return as_json(
            types.ClientConfigResponse(
                proto_compress_fwdbwd=self._settings.compress,
                fwdbwd_max_chunk_len=self._settings.datums_per_request,
            )
        )

    async def _dynamic_config(self, incoming: Incoming) -> Response:
        return as_json(types.ClientDynamicConfigResponse())

    async def _capabilities(self, incoming: Incoming) -> Response:
        return as_json(types.GetServerCapabilitiesResponse(supported_models=list(self._service.models.values())))

    async def _telemetry(self, incoming: Incoming) -> Response:
        return JSONResponse({"status": "accepted"})

    async def _health(self, incoming: Incoming) -> Response:
        return JSONResponse({"status": "ok"})

    async def _create_session(self, incoming: Incoming) -> Response:
        request = types.CreateSessionRequest.model_validate_json(incoming.body)
        session = self._state.new_session(request.user_metadata or {})
        incoming.call.run = session.id
        return as_json(types.CreateSessionResponse(session_id=session.id))

    async def _heartbeat(self, incoming: Incoming) -> Response:
        self._state.heartbeat(types.SessionHeartbeatRequest.model_validate_json(incoming.body).session_id)
        return as_json(types.SessionHeartbeatResponse())

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
        return as_json(self._service.info(types.GetInfoRequest.model_validate_json(incoming.body).model_id))

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
        return as_json(types.CreateSamplingSessionResponse(sampling_session_id=self._service.create_sampler(request)))

    async def _get_sampler(self, incoming: Incoming) -> Response:
        sampler = self._state.samplers.get(incoming.request.path_params["sampler"])
        if sampler is None:
            raise RefusedError(404, "no such sampler")
        path = sampler.checkpoint.path if sampler.checkpoint else None
        return as_json(
            types.GetSamplerResponse(sampler_id=sampler.id, base_model=sampler.base_model, model_path=path)
        )

    async def _sample(self, incoming: Incoming) -> Response:
        request = types.SampleRequest.model_validate_json(incoming.body)
        job = self._service.sample(request, incoming.call, incoming.order)
        sequences = [f"{job.request_id}:{number}" for number in range(request.num_samples)]
        return as_json(types.UntypedAPIFuture(request_id=job.request_id, sample_sequence_ids=sequences))

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
            return as_json(TryAgainResponse(request_id=job.request_id, queue_state="active"))
        if isinstance(result, bytes):
            return Response(result, media_type=PROTOBUF)
        return as_json(result)

    async def _nothing(self, incoming: Incoming) -> Response:
        return Response(status_code=204)


def _accepted(job: Job) -> Response:
    return as_json(types.UntypedAPIFuture(request_id=job.request_id))
