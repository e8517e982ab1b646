"""What the service does for each operation."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from tinker import types
from tinker.types.get_server_capabilities_response import SupportedModel

from tests.peers.tinker.calls import Call
from tests.peers.tinker.checkpoints import Checkpoint, RefusedError, check_save
from tests.peers.tinker.failures import Fails
from tests.peers.tinker.jobs import Job, RequestFailedError, Result
from tests.peers.tinker.model import sampling, training
from tests.peers.tinker.model.lora import BaseModel, LoraShape
from tests.peers.tinker.model.sampling import SamplingLimits
from tests.peers.tinker.model.training import Trainee
from tests.peers.tinker.model.wire import TrainRequest, training_output
from tests.peers.tinker.state import Run, State, trainee_of

WORKERS = 2
"""Forward passes at the same time."""


@dataclass(frozen=True)
class Order:
    """What was ordered for this request before it was handled."""

    never: bool = False
    fails: Fails | None = None


class Service:
    """One base model, its runs and samplers. Methods answer at once; work goes on in threads."""

    def __init__(self, model: BaseModel, state: State, *, limits: SamplingLimits, max_rank: int) -> None:
        self.model = model
        self.state = state
        self.limits = limits
        self.max_rank = max_rank
        self.restores_optimizer = True
        self.models: dict[str, SupportedModel] = {}
        self._slots = threading.Semaphore(WORKERS)

    def create_model(self, request: types.CreateModelRequest, call: Call, order: Order) -> Job:
        session = self.state.live_session(request.session_id)
        self._check_trainable(request.base_model)
        config = request.lora_config or types.LoraConfig(rank=32)
        if not 1 <= config.rank <= self.max_rank:
            raise RefusedError(400, f"lora_config.rank must lie between 1 and {self.max_rank}")
        shape = LoraShape(config.rank, config.seed, config.train_mlp, config.train_attn, config.train_unembed)
        run = self.state.add_run(session, request.model_seq_id, request.base_model, shape, request.user_metadata)

        def work() -> Result:
            run.trainee = Trainee(self.model, self.model.new_lora(shape))
            return types.CreateModelResponse(model_id=run.id)

        return self._accept(run, 0, call, order, work)

    def load_weights(self, request: types.LoadWeightsRequest, call: Call, order: Order) -> Job:
        """As a run's first request, or the legacy load right after create_model."""
        if request.session_id is None or request.model_seq_id is None:
            if request.model_id is None or request.seq_id is None:
                raise RefusedError(400, "session_id and model_seq_id are needed, or model_id and seq_id")
            run, seq = self.state.live_run(request.model_id), request.seq_id
            if seq != 1:
                raise RefusedError(400, "weights can be loaded into a fresh training run only")
            checkpoint = self._loadable(request.path)
        else:
            session = self.state.live_session(request.session_id)
            checkpoint, seq = self._loadable(request.path), 0
            base_model = request.base_model or checkpoint.base_model
            shape = checkpoint.snapshot.lora.shape
            run = self.state.add_run(session, request.model_seq_id, base_model, shape, request.user_metadata)
        with_optimizer = request.optimizer and self.restores_optimizer

        def work() -> Result:
            run.trainee = Trainee.from_snapshot(self.model, checkpoint.snapshot, with_optimizer=with_optimizer)
            return types.LoadWeightsResponse(path=request.path, model_id=run.id)

        return self._accept(run, seq, call, order, work)

    def train(self, request: TrainRequest, call: Call, order: Order) -> Job:
        run = self.state.live_run(request.run)

        def work() -> Result:
            try:
                training.check(request, self.model.context_length, self.model.vocabulary)
            except ValueError as error:
                raise RequestFailedError(str(error)) from None
            return training_output(*trainee_of(run).run(request))

        return self._accept(run, request.seq, call, order, work)

    def optim_step(self, request: types.OptimStepRequest, call: Call, order: Order) -> Job:
        run, params = self.state.live_run(request.model_id), request.optim_params
        if not isinstance(params, types.AdamParams):
            raise RefusedError(400, "only Adam is known here")
        return self._accept(
            run,
            _seq(request.seq_id),
            call,
            order,
            lambda: types.OptimStepResponse(metrics=trainee_of(run).step(params)),
        )

    def save_state(self, request: types.SaveWeightsRequest, call: Call, order: Order) -> Job:
        run = self.state.live_run(request.model_id)
        check_save(request.path, request.ttl_seconds)

        def work() -> Result:
            saved = self.state.checkpoints.save(
                run.id,
                "training",
                request.path,
                run.base_model,
                trainee_of(run).snapshot(with_optimizer=True),
                ttl_seconds=request.ttl_seconds,
                user_metadata=request.user_metadata,
                overwrite=request.overwrite,
            )
            return types.SaveWeightsResponse(path=saved.path)

        return self._accept(run, _seq(request.seq_id), call, order, work)

    def save_for_sampler(self, request: types.SaveWeightsForSamplerRequest, call: Call, order: Order) -> Job:
        run = self.state.live_run(request.model_id)
        check_save(request.path, request.ttl_seconds)

        def work() -> Result:
            saved = self.state.checkpoints.save(
                run.id,
                "sampler",
                request.path,
                run.base_model,
                trainee_of(run).snapshot(with_optimizer=False),
                ttl_seconds=request.ttl_seconds,
                user_metadata=request.user_metadata,
            )
            if request.sampling_session_seq_id is None:
                return types.SaveWeightsForSamplerResponseInternal(path=saved.path)
            number = request.sampling_session_seq_id
            sampler = self.state.add_sampler(run.session, number, run.base_model, saved)
            return types.SaveWeightsForSamplerResponseInternal(sampling_session_id=sampler.id)

        return self._accept(run, _seq(request.seq_id), call, order, work)

    def save_external(self, request: types.SaveWeightsExternalRequest, call: Call, order: Order) -> Job:
        run = self.state.live_run(request.model_id)
        check_save(request.path, request.ttl_seconds)
        if request.age_encryption_recipients:
            raise RefusedError(400, "age_encryption_recipients are not supported here")

        def work() -> Result:
            saved = self.state.checkpoints.save(
                run.id,
                "external",
                request.path,
                run.base_model,
                trainee_of(run).snapshot(with_optimizer=False),
                ttl_seconds=request.ttl_seconds,
            )
            return types.SaveWeightsExternalResponseInternal(path=saved.path)

        return self._accept(run, _seq(request.seq_id), call, order, work)

    def create_sampler(self, request: types.CreateSamplingSessionRequest) -> str:
        session = self.state.live_session(request.session_id)
        checkpoint = None
        if request.model_path is not None:
            checkpoint = self.state.checkpoints.get(request.model_path, "sampler", "training")
        base_model = checkpoint.base_model if checkpoint else request.base_model
        if base_model is None:
            raise RefusedError(400, "base_model or model_path is needed")
        supported = self.models.get(base_model)
        if supported is None or not supported.sampleable:
            raise RefusedError(400, f"base_model {base_model} can't be sampled from")
        return self.state.add_sampler(session, request.sampling_session_seq_id, base_model, checkpoint).id

    def sample(self, request: types.SampleRequest, call: Call, order: Order) -> Job:
        sampler = self.state.samplers.get(request.sampling_session_id or "")
        if sampler is None:
            raise RefusedError(404, f"no sampler {request.sampling_session_id}")
        self.state.live_session(sampler.session.id)
        if sampler.checkpoint is not None:
            self.state.checkpoints.get(sampler.checkpoint.path)
        try:
            sampling.check(request, self.model, self.limits)
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
        lora = sampler.checkpoint.snapshot.lora if sampler.checkpoint else None

        def work() -> Result:
            with self._slots:
                return sampling.sample(request, self.model, lora)

        return self.state.accept(
            f"{sampler.id}:{_seq(request.seq_id)}", call, _or_fail(work, order), never=order.never
        )

    def info(self, run_id: str) -> types.GetInfoResponse:
        run = self.state.live_run(run_id)
        return types.GetInfoResponse(
            model_id=run.id,
            model_data=types.ModelData(arch="qwen3", model_name=run.base_model),
            is_lora=True,
            lora_rank=run.shape.rank,
            model_name=run.base_model,
        )

    def _check_trainable(self, base_model: str) -> None:
        supported = self.models.get(base_model)
        if supported is None or not supported.trainable:
            raise RefusedError(400, f"base_model {base_model} can't be trained")

    def _loadable(self, path: str) -> Checkpoint:
        checkpoint = self.state.checkpoints.get(path, "training")
        self._check_trainable(checkpoint.base_model)
        return checkpoint

    def _accept(self, run: Run, seq: int, call: Call, order: Order, work: Callable[[], Result]) -> Job:
        def in_slot() -> Result:
            with self._slots:
                return work()

        return self.state.accept_for_run(run, seq, call, _or_fail(in_slot, order), never=order.never)


def _or_fail(work: Callable[[], Result], order: Order) -> Callable[[], Result]:
    fails = order.fails
    if fails is None:
        return work

    def fail() -> Result:
        raise RequestFailedError(fails.message, fails.category)

    return fail


def _seq(seq: int | None) -> int:
    if seq is None:
        raise RefusedError(400, "seq_id is needed")
    return seq
