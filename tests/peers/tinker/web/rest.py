"""Routes that tell of runs and checkpoints, and change checkpoints."""

import json

from starlette.responses import Response
from tinker import types

from tests.peers.tinker.calls import Operation
from tests.peers.tinker.state import State
from tests.peers.tinker.web.incoming import Incoming, Settings, Table, as_json, checkpoint_path

_CHECKPOINT = "/training_runs/{run}/checkpoints/{folder}/{name}"


class RestRoutes:
    """What RestClient asks for, and the files of exports."""

    def __init__(self, state: State, settings: Settings) -> None:
        self._state = state
        self._settings = settings
        self.table: Table = {
            Operation.WEIGHTS_INFO: ("POST", "/weights_info", self._weights_info),
            Operation.LIST_RUNS: ("GET", "/training_runs", self._list_runs),
            Operation.GET_RUN: ("GET", "/training_runs/{run}", self._get_run),
            Operation.LIST_CHECKPOINTS: ("GET", "/training_runs/{run}/checkpoints", self._list_checkpoints),
            Operation.LIST_ALL_CHECKPOINTS: ("GET", "/checkpoints", self._list_all_checkpoints),
            Operation.DELETE_CHECKPOINT: ("DELETE", _CHECKPOINT, self._delete_checkpoint),
            Operation.SET_TTL: ("PUT", f"{_CHECKPOINT}/ttl", self._set_ttl),
            Operation.EXTERNAL_URLS: ("GET", f"{_CHECKPOINT}/external_weights_urls", self._external_urls),
            Operation.EXTERNAL_FILE: ("GET", "/external_files/{token}/{file}", self._external_file),
        }

    async def _weights_info(self, incoming: Incoming) -> Response:
        checkpoint = self._state.checkpoints.get(str(json.loads(incoming.body)["tinker_path"]))
        shape = checkpoint.snapshot.lora.shape
        return as_json(
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
        return as_json(types.TrainingRunsResponse(training_runs=page, cursor=cursor))

    async def _get_run(self, incoming: Incoming) -> Response:
        return as_json(self._state.describe(self._state.known_run(incoming.request.path_params["run"])))

    async def _list_checkpoints(self, incoming: Incoming) -> Response:
        run = self._state.known_run(incoming.request.path_params["run"])
        found = [checkpoint.message() for checkpoint in self._state.checkpoints.list(run.id)]
        return as_json(types.CheckpointsListResponse(checkpoints=found))

    async def _list_all_checkpoints(self, incoming: Incoming) -> Response:
        limit = int(incoming.request.query_params.get("limit", "100"))
        offset = int(incoming.request.query_params.get("offset", "0"))
        found = [checkpoint.message() for checkpoint in reversed(self._state.checkpoints.list())]
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(found))
        return as_json(types.CheckpointsListResponse(checkpoints=found[offset : offset + limit], cursor=cursor))

    async def _delete_checkpoint(self, incoming: Incoming) -> Response:
        self._state.checkpoints.delete(checkpoint_path(incoming.request))
        return Response(status_code=204)

    async def _set_ttl(self, incoming: Incoming) -> Response:
        self._state.checkpoints.set_ttl(checkpoint_path(incoming.request), json.loads(incoming.body)["ttl_seconds"])
        return Response(status_code=204)

    async def _external_urls(self, incoming: Incoming) -> Response:
        token, expires = self._state.checkpoints.sign(checkpoint_path(incoming.request), self._settings.url_lifetime)
        root = f"{incoming.request.base_url}api/v1/external_files/{token}"
        urls = {name: f"{root}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")}
        return as_json(types.ExternalWeightsUrlsResponse(urls=urls, expires=expires))

    async def _external_file(self, incoming: Incoming) -> Response:
        parameters = incoming.request.path_params
        content = self._state.checkpoints.file(parameters["token"], parameters["file"])
        return Response(content, media_type="application/octet-stream")
