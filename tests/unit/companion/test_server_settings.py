"""What the companion says of the server that it runs in: its own parsed settings, or that they are not known."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import APIRouter, FastAPI

from claas_vllm import Companion
from claas_vllm.server_settings import server_settings
from claas_vllm_client import CompanionStatus
from tests.unit.companion.small_server import SmallServer, ask


def application(*, routes: tuple[str, ...] = (), **args: object) -> FastAPI:
    """An app with the state that vLLM gives its own."""
    app = FastAPI()
    router = APIRouter()
    for path in routes:
        router.add_api_route(path, lambda: None, methods=["POST"])
    app.include_router(router)
    app.state.args = SimpleNamespace(
        **{
            "model": "/models/qwen",
            "served_model_name": ["base", "other"],
            "disable_log_stats": False,
            "root_path": None,
            "ssl_certfile": None,
            **args,
        }
    )
    app.state.vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(model="/models/qwen", enable_sleep_mode=True),
        device_config=SimpleNamespace(device_type="cuda"),
        parallel_config=SimpleNamespace(worker_extension_cls="claas_vllm.WeightExport"),
        lora_config=SimpleNamespace(max_lora_rank=64, max_loras=3, target_modules=["o_proj"]),
    )
    app.state.serving_tokenization = SimpleNamespace(
        chat_template="{{ messages }}",
        default_chat_template_kwargs={"enable_thinking": False},
    )
    return app


def test_they_are_taken_from_what_the_server_parsed_itself() -> None:
    app = application(routes=("/sleep", "/v1/load_lora_adapter"), root_path="/llm", ssl_certfile="/tls.crt")
    assert server_settings(app) == {
        "served_model_names": ["base", "other"],
        "device_type": "cuda",
        "sleep_mode": True,
        "worker_extension": "claas_vllm.WeightExport",
        "lora": {"enabled": True, "max_rank": 64, "max_loras": 3, "target_modules": ["o_proj"]},
        "loads_adapters": True,
        "can_pause": True,
        "log_stats": True,
        "root_path": "/llm",
        "tls": True,
        "chat": {
            "template": "{{ messages }}",
            "template_kwargs": {"enable_thinking": False},
        },
    }


def test_routes_that_were_not_opened_and_statistics_that_are_off_are_said_to_be_so() -> None:
    settings = server_settings(application(disable_log_stats=True))
    assert settings is not None
    assert (settings["loads_adapters"], settings["can_pause"], settings["log_stats"]) == (False, False, False)


def test_a_server_without_adapters_says_so() -> None:
    app = application()
    app.state.vllm_config.lora_config = None
    settings = server_settings(app)
    assert settings is not None
    assert settings["lora"]["enabled"] is False


@pytest.mark.parametrize("app", [None, SimpleNamespace(), SimpleNamespace(state=SimpleNamespace(args=object()))])
def test_before_the_server_has_any_nothing_is_said(app: object) -> None:
    assert server_settings(app) is None


def test_a_setting_that_a_release_keeps_elsewhere_is_not_known_rather_than_off() -> None:
    bare = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(), vllm_config=SimpleNamespace()))
    settings = server_settings(bare)
    assert settings is not None
    assert {name for name, value in settings.items() if value} == set()
    assert settings["sleep_mode"] is settings["lora"] is settings["log_stats"] is settings["tls"] is None
    assert settings["loads_adapters"] is settings["can_pause"] is settings["chat"] is None


async def test_they_stand_in_the_status_behind_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(tmp_path / "token"))
    below, app = SmallServer(), application()
    below.state = SimpleNamespace(**{**vars(below.state), **app.state._state})
    below.state.args.api_key = ["key-of-vllm"]
    companion = Companion(below)
    assert (await ask(companion, "GET", "/claas/status", application=below)).status == 403
    reply = await ask(companion, "GET", "/claas/status", application=below, headers={"x-claas-token": "secret"})
    status = CompanionStatus.model_validate_json(reply.body)
    assert status.settings is not None
    assert status.settings.lora is not None
    assert (status.settings.sleep_mode, status.settings.lora.max_rank) == (True, 64)
    assert status.settings.chat is not None
    assert status.settings.chat.template_kwargs == {"enable_thinking": False}
