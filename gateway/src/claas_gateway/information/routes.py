"""The routes that tell what this gateway is and whether it works, and the deletion of a user's data."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import caller_of
from claas_gateway.information.docs_page import docs_page
from claas_gateway.information.health import degradations, hindrances
from claas_gateway.services import Services


class Information(BaseModel):
    """What answers here."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str = "CLaaS API"
    """CLaaS's name, by which scripts know it."""
    status: Literal["ok"] = "ok"
    docs: str = "/docs"
    """Where the routes are described for people."""
    openapi: str = "/openapi.json"
    """Where they are described for programs."""


class Worker(BaseModel):
    """What gives answers and takes steps."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["healthy", "unhealthy"]
    error: str | None
    """What does not work."""


class HealthAnswer(BaseModel):
    """Whether everything works."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["healthy", "degraded"]
    worker: Worker


class ReadinessAnswer(BaseModel):
    """Whether requests should be sent to this replica."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    ready: bool
    reasons: list[str]
    """Why not."""


class LearnedVersion(BaseModel):
    """A version that learned from the user's feedback."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    namespace: str
    adapter: str
    """The LoraAdapter."""
    version: int


class LearningBatch(BaseModel):
    """A batch with feedback of the user's that has not come to its end."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    namespace: str
    adapter: str
    """The LoraAdapter."""
    batch_id: str
    """What its DistillJob is called, if it is made already."""


class UserDeletion(BaseModel):
    """What was deleted, and where it can't be deleted."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    rollouts: int
    """Recorded answers that were deleted."""
    items: int
    """Items of feedback that were deleted."""
    learned: list[LearnedVersion]
    """Versions that learned from the user's feedback. What they learned is in their weights: go back to an older one
    where it has to go."""
    learning: list[LearningBatch]
    """Batches that the user's feedback is in now. If the job is made already, its version may learn from it;
    another is made without it."""


def router(services: Services) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/", tags=["information"])
    async def root() -> Information:
        """What this is. Answers as soon as the gateway listens."""
        return Information()

    @routes.get("/health", tags=["information"])
    @routes.get("/v1/health", tags=["information"])
    async def health() -> HealthAnswer:
        """Whether everything works. The status is 200 also when it does not; `worker.error` says what is wrong."""
        wrong = await degradations(services)
        if not wrong:
            return HealthAnswer(status="healthy", worker=Worker(status="healthy", error=None))
        return HealthAnswer(status="degraded", worker=Worker(status="unhealthy", error="; ".join(wrong)))

    @routes.get("/livez", tags=["information"])
    async def live() -> Literal["ok"]:
        """Whether the process answers."""
        return "ok"

    @routes.get(
        "/readyz", tags=["information"], responses={503: {"model": ReadinessAnswer, "description": "Not ready."}}
    )
    async def ready(response: Response) -> ReadinessAnswer:
        """Whether requests should be sent to this replica: it has listed the adapters, and its database works."""
        reasons = await hindrances(services)
        response.status_code = 503 if reasons else 200
        return ReadinessAnswer(ready=not reasons, reasons=reasons)

    @routes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        app: FastAPI = request.app
        return HTMLResponse(docs_page(app.openapi()))

    @routes.delete("/v1/users/{user:path}/data", tags=["users"])
    async def forget(
        user: Annotated[str, Path(max_length=512, description="The end user, as requests named them in `user`.")],
        caller: Annotated[Caller, Depends(caller_of)],
    ) -> UserDeletion:
        """Delete what is stored of an end user, within what the key sees: recorded answers, and feedback on them. An
        item that is in a job already loses its texts here, and is still trained on. Repeating it is harmless."""
        gone = await services.store.forget_user(caller.namespace, caller.adapter, user)
        learned = [LearnedVersion(namespace=at, adapter=adapter, version=n) for at, adapter, n in gone.learned]
        learning = [LearningBatch(namespace=at, adapter=adapter, batch_id=b) for at, adapter, b in gone.learning]
        return UserDeletion(rollouts=gone.rollouts, items=gone.items, learned=learned, learning=learning)

    return routes
