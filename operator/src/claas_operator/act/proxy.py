"""Makes and mends inference proxies."""

from __future__ import annotations

import logging
import secrets

from claas_kube.api import Api
from claas_kube.objects.meta import ObjectMeta
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import DEPLOYMENTS, SECRETS, SERVICES
from claas_operator.act.proxy_manifests import proxy_deployment, proxy_service, proxy_token
from claas_operator.clients.proxies import Proxies
from claas_operator.clients.reader import Reader
from claas_operator.settings import Settings

log = logging.getLogger(__name__)

_TOKEN_BYTES = 32


class ProxyMaker:
    """Writes their objects."""

    def __init__(self, api: Api, read: Reader, proxies: Proxies, settings: Settings) -> None:
        self._api = api
        self._read = read
        self._proxies = proxies
        self._settings = settings

    async def create_token(self, adapter: AdapterObject) -> None:
        """Choose a control token, also where its Secret is there and holds none."""
        manifest = proxy_token(adapter, secrets.token_urlsafe(_TOKEN_BYTES))
        await self._api.apply(SECRETS, adapter.metadata.namespace, manifest)

    async def apply(self, adapter: AdapterObject) -> None:
        """Make its Deployment and Service as they should be; what others added to them stays."""
        namespace = adapter.metadata.namespace
        many_nodes = await self._read.claim_on_many_nodes(namespace, adapter.spec.storage.claim_name)
        manifest = proxy_deployment(adapter, self._settings, many_nodes=many_nodes)
        deployment = await self._api.apply(DEPLOYMENTS, namespace, manifest)
        service = await self._api.apply(SERVICES, namespace, proxy_service(adapter))
        log.info("applied the inference proxy %s/%s", namespace, adapter.deployment_name)
        self._proxies.note(
            adapter, ObjectMeta.model_validate(deployment["metadata"]), ObjectMeta.model_validate(service["metadata"])
        )
