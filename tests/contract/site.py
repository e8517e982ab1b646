"""The one vLLM server that the contract tests share: a random tiny Qwen3 with the companion, and versions for it."""

from dataclasses import dataclass
from pathlib import Path

from tests.contract.vllm_server import CompanionSetup, VllmServer

TOKEN = "a-control-token"
API_KEY = "an-api-key"
VERSIONS = 50
# Parsers that look for words, which every tokenizer has. An answer without these words passes as it is.
PARSERS = (
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "granite",
    "--structured-outputs-config", '{"enable_in_reasoning": true}',
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A running server, what its companion was given, and the versions it can see."""

    server: VllmServer
    companion: CompanionSetup
    versions: list[Path]
    root: Path

    def path(self, version: int) -> str:
        return str(self.versions[version - 1])
