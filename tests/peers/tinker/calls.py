"""What can be called, and the record of what was called."""

from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic


class Operation(StrEnum):
    """One value for each thing a client can ask for; forward_only requests are FORWARD."""

    CLIENT_CONFIG = "client_config"
    DYNAMIC_CONFIG = "dynamic_config"
    CAPABILITIES = "get_server_capabilities"
    CREATE_SESSION = "create_session"
    HEARTBEAT = "session_heartbeat"
    FINISH_SESSION = "finish_session"
    GET_SESSION = "get_session"
    CREATE_MODEL = "create_model"
    LOAD_WEIGHTS = "load_weights"
    GET_INFO = "get_info"
    FORWARD = "forward"
    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE_STATE = "save_state"
    SAVE_FOR_SAMPLER = "save_weights_for_sampler"
    SAVE_EXTERNAL = "save_weights_external"
    CREATE_SAMPLER = "create_sampling_session"
    GET_SAMPLER = "get_sampler"
    SAMPLE = "asample"
    RETRIEVE = "retrieve_future"
    CANCEL = "cancel_future"
    WEIGHTS_INFO = "weights_info"
    LIST_RUNS = "list_training_runs"
    GET_RUN = "get_training_run"
    LIST_CHECKPOINTS = "list_checkpoints"
    LIST_ALL_CHECKPOINTS = "list_user_checkpoints"
    DELETE_CHECKPOINT = "delete_checkpoint"
    SET_TTL = "set_checkpoint_ttl"
    EXTERNAL_URLS = "external_weights_urls"
    EXTERNAL_FILE = "external_file"
    TELEMETRY = "telemetry"
    HEALTH = "healthz"


OPEN = frozenset({Operation.EXTERNAL_FILE, Operation.HEALTH})
"""What needs no key."""

BILLED = frozenset(
    {
        Operation.CAPABILITIES,
        Operation.CREATE_MODEL,
        Operation.LOAD_WEIGHTS,
        Operation.FORWARD,
        Operation.FORWARD_BACKWARD,
        Operation.OPTIM_STEP,
        Operation.SAVE_STATE,
        Operation.SAVE_FOR_SAMPLER,
        Operation.SAVE_EXTERNAL,
        Operation.SAMPLE,
    }
)
"""What an account without billing gets 402 for."""


@dataclass
class Call:
    """One request as it arrived."""

    operation: Operation
    run: str | None = None
    """The training run (model id) or sampler that it names."""
    seq: int | None = None
    """Sequence number within the run or sampler."""
    checkpoint: str | None = None
    """The path that it names, or for a save the name."""
    of: Operation | None = None
    """For RETRIEVE: the operation whose result is asked for."""
    request_id: str | None = None
    resent: bool = False
    """The same run and sequence number came before: nothing ran again."""
    status: int | None = None
    """HTTP status of the answer; None while there is none, or when the connection was cut."""
    at: float = field(default_factory=monotonic)
