"""Files and ports of a trainer pod."""

from __future__ import annotations

INPUT_DIRECTORY = "/var/run/claas/input"
INPUT_FILE = f"{INPUT_DIRECTORY}/input.json"
SAMPLES_DIRECTORY = "/var/run/claas/samples"
CONTROL_TOKEN_FILE = "/var/run/claas/control/token"
API_KEY_FILE = "/var/run/claas/api-key/token"
SERVING_CA_FILE = "/var/run/claas/serving-ca/ca.crt"
HUB_TOKEN_FILE = "/var/run/claas/hub-token/token"
TINKER_KEY_FILE = "/var/run/claas/tinker/api-key"
MODAL_TOKEN_DIRECTORY = "/var/run/claas/modal"
MODAL_TOKEN_ID = "token-id"
MODAL_TOKEN_SECRET = "token-secret"
STORAGE_DIRECTORY = "/var/lib/claas/storage"
MODEL_DIRECTORY = "/var/lib/claas/model"
HUB_CACHE_DIRECTORY = "/var/lib/claas/hub-cache"
SCRATCH_DIRECTORY = "/tmp"
TERMINATION_MESSAGE_FILE = "/dev/termination-log"
PROGRESS_PORT = 8080
PROGRESS_PATH = "/progress"
EXECUTION_MODE_VARIABLE = "CLAAS_DISTILL_EXECUTION_MODE"
