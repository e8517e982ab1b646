"""What `modal deploy` asks for: environments, apps, images, sources, Secrets, functions and classes."""

import asyncio
from collections.abc import AsyncIterator, Callable

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.private import IMAGE_BUILDER_VERSION, api_pb2
from tests.peers.modal.state.apps import App, Apps, Function, Image
from tests.peers.modal.state.blobs import Blobs
from tests.peers.modal.wire.dispatch import Asker, Table

LONGEST_POLL_S = 55.0
BUILT = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
OVERWRITE = api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
UNSPECIFIED = api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED
UNNAMED = {api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP, api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL}


class Deploying:
    def __init__(
        self,
        apps: Apps,
        blobs: Blobs,
        server_url: Callable[[App, str], str],
        changed: Callable[[App], None],
    ) -> None:
        """`server_url` gives a Server's address; `changed` is called when an app is deployed or stopped."""
        self._apps = apps
        self._blobs = blobs
        self._server_url = server_url
        self._changed = changed

    @property
    def table(self) -> Table:
        return {
            "ClientHello": self.client_hello,
            "EnvironmentGetOrCreate": self.environment,
            "AppGetByDeploymentName": self.app_by_name,
            "AppCreate": self.app_create,
            "AppGetLayout": self.app_layout,
            "AppHeartbeat": self.nothing,
            "AppPublish": self.app_publish,
            "AppClientDisconnect": self.app_disconnect,
            "AppStop": self.app_stop,
            "AppGetLogs": self.app_logs,
            "SecretGetOrCreate": self.secret,
            "MountBatchedCheckExistence": self.sources_missing,
            "MountPutFile": self.source_put,
            "MountGetOrCreate": self.mount,
            "ImageGetOrCreate": self.image,
            "ImageJoinStreaming": self.image_join,
            "FunctionPrecreate": self.function_precreate,
            "FunctionCreate": self.function_create,
            "ClassCreate": self.class_create,
        }

    async def client_hello(self, request: Empty, asker: Asker) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse()

    async def nothing(self, request: object, asker: Asker) -> Empty:
        return Empty()

    async def environment(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, asker: Asker
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        if request.object_creation_type != UNSPECIFIED and request.deployment_name not in self._apps.environments:
            self._apps.environments.append(request.deployment_name)
        name = self._apps.environment(request.deployment_name)
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        metadata = api_pb2.EnvironmentMetadata(name=name, settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id=f"en-{name}", metadata=metadata)

    async def app_by_name(
        self, request: api_pb2.AppGetByDeploymentNameRequest, asker: Asker
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        app = self._apps.app_by_name(request.environment_name, request.name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app.id if app else "")

    async def app_create(self, request: api_pb2.AppCreateRequest, asker: Asker) -> api_pb2.AppCreateResponse:
        environment = self._apps.environment(request.environment_name)
        app = App(self._apps.new_id("ap"), environment, request.description)
        self._apps.apps[app.id] = app
        page = f"http://localhost/apps/{app.id}"
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=page, app_logs_url=page)

    async def app_layout(self, request: api_pb2.AppGetLayoutRequest, asker: Asker) -> api_pb2.AppGetLayoutResponse:
        app = self._apps.app(request.app_id)
        layout = api_pb2.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        return api_pb2.AppGetLayoutResponse(app_layout=layout)

    async def app_publish(self, request: api_pb2.AppPublishRequest, asker: Asker) -> api_pb2.AppPublishResponse:
        app = self._apps.app(request.app_id)
        at = self._apps.publish(app, request.name, dict(request.function_ids), dict(request.class_ids))
        app.deployed = request.app_state == api_pb2.APP_STATE_DEPLOYED
        self._changed(app)
        return api_pb2.AppPublishResponse(url=f"http://localhost/apps/{app.id}", deployed_at=at)

    async def app_disconnect(self, request: api_pb2.AppClientDisconnectRequest, asker: Asker) -> Empty:
        app = self._apps.app(request.app_id)
        if not app.deployed:
            self._stop(app)
        return Empty()

    async def app_stop(self, request: api_pb2.AppStopRequest, asker: Asker) -> Empty:
        self._stop(self._apps.app(request.app_id))
        return Empty()

    async def app_logs(
        self, request: api_pb2.AppGetLogsRequest, asker: Asker
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """No logs: only that the app has ended, once it has."""
        try:
            async with asyncio.timeout(min(request.timeout, LONGEST_POLL_S)):
                await self._apps.app(request.app_id).ended.wait()
        except TimeoutError:
            return
        yield api_pb2.TaskLogsBatch(app_done=True)

    def _stop(self, app: App) -> None:
        app.ended.set()
        self._changed(app)

    async def secret(
        self, request: api_pb2.SecretGetOrCreateRequest, asker: Asker
    ) -> api_pb2.SecretGetOrCreateResponse:
        kind, values = request.object_creation_type, dict(request.env_dict)
        if kind == UNSPECIFIED:
            found = self._apps.secret_by_name(
                request.environment_name, request.deployment_name, list(request.required_keys)
            )
        else:
            name = "" if kind in UNNAMED else request.deployment_name
            found = self._apps.add_secret(request.environment_name, name, values, overwrite=kind == OVERWRITE)
        metadata = api_pb2.SecretMetadata(name=found.name, keys=sorted(found.values))
        return api_pb2.SecretGetOrCreateResponse(secret_id=found.id, metadata=metadata)

    async def sources_missing(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, asker: Asker
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if not (self._apps.sources / digest).exists()]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def source_put(self, request: api_pb2.MountPutFileRequest, asker: Asker) -> api_pb2.MountPutFileResponse:
        if not (len(request.sha256_hex) == 64 and request.sha256_hex.isalnum()):
            raise GRPCError(Status.INVALID_ARGUMENT, "not a sha256")
        data = self._blobs.path(request.data_blob_id).read_bytes() if request.data_blob_id else request.data
        (self._apps.sources / request.sha256_hex).write_bytes(data)
        return api_pb2.MountPutFileResponse(exists=True)

    async def mount(self, request: api_pb2.MountGetOrCreateRequest, asker: Asker) -> api_pb2.MountGetOrCreateResponse:
        """Sources as uploaded; Modal's own (the client, Python builds) are there under any name, without files."""
        mount = self._apps.add_mount(list(request.files))
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount.digest)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount.id, handle_metadata=metadata)

    async def image(self, request: api_pb2.ImageGetOrCreateRequest, asker: Asker) -> api_pb2.ImageGetOrCreateResponse:
        """Every image is built at once: nothing is installed, commands are kept for tests to read."""
        for known in self._apps.images.values():
            if known.definition == request.image:
                break
        else:
            known = Image(self._apps.new_id("im"), request.image)
            self._apps.images[known.id] = known
        metadata = api_pb2.ImageMetadata(image_builder_version=request.builder_version)
        return api_pb2.ImageGetOrCreateResponse(image_id=known.id, result=BUILT, metadata=metadata)

    async def image_join(
        self, request: api_pb2.ImageJoinStreamingRequest, asker: Asker
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        yield api_pb2.ImageJoinStreamingResponse(result=BUILT, eof=True)

    async def function_precreate(
        self, request: api_pb2.FunctionPrecreateRequest, asker: Asker
    ) -> api_pb2.FunctionPrecreateResponse:
        definition = api_pb2.Function(
            function_name=request.function_name,
            function_type=request.function_type,
            method_definitions=request.method_definitions,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        function_id = request.existing_function_id or self._apps.new_id("fu")
        function = Function(function_id, self._apps.app(request.app_id), request.function_name, definition)
        self._apps.functions.setdefault(function_id, function)
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=function.handle())

    async def function_create(
        self, request: api_pb2.FunctionCreateRequest, asker: Asker
    ) -> api_pb2.FunctionCreateResponse:
        ranked = [each.function for each in request.function_data.ranked_functions] or [request.function]
        definition = ranked[0]
        definition.is_checkpointing_function = definition.checkpointing_enabled
        function = self._apps.function(request.existing_function_id)
        gpus = [each.resources.gpu_config.gpu_type for each in ranked]
        function.definition, function.gpus = definition, [gpu for gpu in gpus if gpu]
        function.version += 1
        if definition.is_server:
            function.server_url = self._server_url(function.app, function.tag)
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=definition,
            function_data=function.data(),
            handle_metadata=function.handle(),
        )

    async def class_create(self, request: api_pb2.ClassCreateRequest, asker: Asker) -> api_pb2.ClassCreateResponse:
        class_id = request.existing_class_id or self._apps.new_id("cs")
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())
