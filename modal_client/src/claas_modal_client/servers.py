"""Where a deployed server answers."""

from __future__ import annotations

from claas_bounded.waits import Deadline
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault
from claas_modal_client.faults import fault
from claas_modal_client.sdk import modal


async def server_url(connection: ModalConnection, app: str, server: str, deadline: Deadline) -> str:
    """The address of a server of a deployed app. Asking wakes no container. Raises ModalServiceError."""
    client = await connection.client(deadline)
    found = modal.Server.from_name(app, server, environment_name=connection.environment, client=client)
    asked = f"for the address of the server {server} of the app {app}"
    url = await connection.call(asked, lambda: found.get_url.aio(), deadline)
    if not url:
        raise fault(ModalFault.NOT_DEPLOYED, asked, "has none")
    return url
