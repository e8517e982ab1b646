"""Environments, and in each the deployed apps with their functions, classes, images, sources and Secrets."""

import asyncio
import hashlib
import itertools
import re
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.private import api_pb2


def not_found(message: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, message)


@dataclass(eq=False)
class Function:
    """A function, the service function of a class, or a Server; also a variant of one with options of its own."""

    id: str
    app: "App"
    tag: str
    """`name`, for a class `Name.*`."""
    definition: api_pb2.Function
    gpus: list[str] = field(default_factory=list)
    """The GPU types asked for, best first."""
    server_url: str = ""
    version: int = 0
    """Grows with each deployment of it."""
    variant_of: "Variant | None" = None

    @property
    def max_containers(self) -> int:
        """0 for no limit."""
        return self.definition.autoscaler_settings.max_containers or self.definition.concurrency_limit

    @property
    def min_containers(self) -> int:
        return self.definition.autoscaler_settings.min_containers

    @property
    def idle_s(self) -> float:
        """How long a container waits for work before it ends."""
        settings = self.definition.autoscaler_settings
        return float(settings.scaledown_window or self.definition.task_idle_timeout_secs or 60)

    def handle(self) -> api_pb2.FunctionHandleMetadata:
        """What clients need to know to call it."""
        definition = self.definition
        methods = {
            name: api_pb2.FunctionHandleMetadata(
                app_id=self.app.id,
                function_name=method.function_name,
                function_type=method.function_type,
                is_method=True,
                use_method_name=name,
                function_schema=method.function_schema,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
            )
            for name, method in definition.method_definitions.items()
        }
        return api_pb2.FunctionHandleMetadata(
            app_id=self.app.id,
            function_name=definition.function_name,
            function_type=definition.function_type,
            definition_id=f"de-{self.id}-{self.version}",
            class_parameter_info=definition.class_parameter_info,
            method_handle_metadata=methods,
            function_schema=definition.function_schema,
            supported_input_formats=definition.supported_input_formats,
            supported_output_formats=definition.supported_output_formats,
            _experimental_flash_urls=[self.server_url] if self.server_url else [],
        )

    def data(self) -> api_pb2.FunctionData:
        """What clients show of it."""
        definition = self.definition
        data = api_pb2.FunctionData(
            module_name=definition.module_name,
            function_name=definition.function_name,
            function_type=definition.function_type,
            autoscaler_settings=definition.autoscaler_settings,
            timeout_secs=definition.timeout_secs,
            startup_timeout_secs=definition.startup_timeout_secs,
            method_definitions=definition.method_definitions,
            method_definitions_set=definition.method_definitions_set,
            is_class=definition.is_class,
            is_server=definition.is_server,
            flash_service_urls=[self.server_url] if self.server_url else [],
            ranked_functions=[api_pb2.FunctionData.RankedFunction(rank=0, function=definition)],
        )
        if definition.is_server:
            data.http_config.CopyFrom(definition.http_config)
        return data


@dataclass(frozen=True)
class Variant:
    """What a caller made another function of: with its own options or parameters it has its own containers."""

    base: Function
    options: api_pb2.FunctionOptions
    parameters: bytes


@dataclass(eq=False)
class App:
    id: str
    environment: str
    name: str
    deployed: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """It was stopped."""
    deployments: int = 0
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        return self.ended.is_set()


@dataclass(frozen=True)
class Image:
    id: str
    definition: api_pb2.Image


@dataclass(frozen=True)
class Mount:
    id: str
    digest: str
    files: tuple[api_pb2.MountFile, ...]


@dataclass(eq=False)
class Secret:
    id: str
    name: str
    values: dict[str, str]


class Apps:
    """All that was deployed. Used from the peer's event loop alone."""

    def __init__(self, sources: Path, environments: tuple[str, ...]) -> None:
        """`sources` is a folder for uploaded files, each by its sha256."""
        self.sources = sources
        self.environments = list(environments)
        self.apps: dict[str, App] = {}
        self.functions: dict[str, Function] = {}
        self.images: dict[str, Image] = {}
        self.mounts: dict[str, Mount] = {}
        self.secrets: dict[str, Secret] = {}
        self._named_secrets: dict[tuple[str, str], str] = {}
        self._numbers = itertools.count(1)
        sources.mkdir(parents=True, exist_ok=True)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._numbers):020d}"

    def environment(self, name: str) -> str:
        """The environment of this name; the first where none is named."""
        if not name:
            return self.environments[0]
        if name not in self.environments:
            raise not_found(f"environment '{name}' not found")
        return name

    def app_by_name(self, environment: str, name: str) -> App | None:
        """The deployed app of this name."""
        environment = self.environment(environment)
        for app in self.apps.values():
            if app.deployed and not app.stopped and (app.environment, app.name) == (environment, name):
                return app
        return None

    def app(self, app_id: str) -> App:
        if app_id not in self.apps:
            raise not_found(f"app {app_id} not found")
        return self.apps[app_id]

    def function(self, function_id: str) -> Function:
        if function_id not in self.functions:
            raise not_found(f"function {function_id} not found")
        return self.functions[function_id]

    def deployed(self, environment: str, app_name: str) -> App:
        app = self.app_by_name(environment, app_name)
        if app is None:
            raise not_found(f"app '{app_name}' not found in environment '{self.environment(environment)}'")
        return app

    def deployed_function(self, environment: str, app_name: str, tag: str) -> Function:
        app = self.deployed(environment, app_name)
        if tag not in app.function_ids:
            raise not_found(f"function '{tag}' not found in app '{app_name}'")
        return self.function(app.function_ids[tag])

    def image_chain(self, image_id: str) -> list[Image]:
        """The image's layers, the base first."""
        chain: list[Image] = []
        while image_id in self.images:
            chain.insert(0, self.images[image_id])
            bases = chain[0].definition.base_images
            image_id = bases[0].image_id if bases else ""
        return chain

    def image_environment(self, image_id: str) -> dict[str, str]:
        """What ENV commands of the image set."""
        found: dict[str, str] = {}
        for image in self.image_chain(image_id):
            for command in image.definition.dockerfile_commands:
                if re.match(r"\s*ENV\s", command):
                    pairs = (word.partition("=") for word in shlex.split(command)[1:])
                    found |= {name: value for name, _, value in pairs}
        return found

    def mount_ids(self, definition: api_pb2.Function) -> list[str]:
        """All sources of a function: those of its image's layers, and its own."""
        layers = [image.definition.context_mount_id for image in self.image_chain(definition.image_id)]
        return list(dict.fromkeys(id for id in [*layers, *sorted(definition.mount_ids)] if id in self.mounts))

    def add_secret(self, environment: str, name: str, values: dict[str, str], *, overwrite: bool) -> Secret:
        key = (self.environment(environment), name)
        known = self._named_secrets.get(key) if name else None
        if known is not None:
            if not overwrite:
                raise GRPCError(Status.ALREADY_EXISTS, f"secret '{name}' exists")
            self.secrets[known].values = dict(values)
            return self.secrets[known]
        secret = Secret(self.new_id("st"), name, dict(values))
        self.secrets[secret.id] = secret
        if name:
            self._named_secrets[key] = secret.id
        return secret

    def secret_by_name(self, environment: str, name: str, required: list[str]) -> Secret:
        key = (self.environment(environment), name)
        if key not in self._named_secrets:
            raise not_found(f"secret '{name}' not found in environment '{key[0]}'")
        secret = self.secrets[self._named_secrets[key]]
        missing = [name for name in required if name not in secret.values]
        if missing:
            raise not_found(f"secret '{secret.name}' is missing key(s) {', '.join(missing)}")
        return secret

    def add_mount(self, files: list[api_pb2.MountFile]) -> Mount:
        lines = sorted(f"{file.filename}:{file.sha256_hex}" for file in files)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        mount = Mount(f"mo-{digest[:20]}", digest, tuple(files))
        self.mounts[mount.id] = mount
        return mount

    def publish(self, app: App, name: str, functions: dict[str, str], classes: dict[str, str]) -> float:
        """Make the app's functions those that are found by name; gives the time."""
        app.name, app.deployed = name or app.name, True
        app.deployments += 1
        app.function_ids, app.class_ids = functions, classes
        return time.time()
