"""Deployed apps as tests see them: what the deployment asked Modal for."""

from dataclasses import dataclass

from tests.peers.modal.state.apps import App, Apps, Function
from tests.peers.modal.state.volumes import Volumes


@dataclass(frozen=True)
class MountedVolume:
    name: str
    version: int
    read_only: bool
    sub_path: str


@dataclass(frozen=True)
class DeployedImage:
    environment: dict[str, str]
    """What `Image.env` set."""
    commands: tuple[str, ...]
    """The commands of all layers, the base's first."""
    sources: tuple[str, ...]
    """Paths of all local files that were added, as in the container."""


@dataclass(frozen=True)
class DeployedServer:
    port: int
    url: str
    unauthenticated: bool
    routing_regions: tuple[str, ...]
    startup_timeout_s: int
    exit_grace_s: int
    target_concurrency: float


@dataclass(frozen=True)
class DeployedFunction:
    name: str
    module: str
    methods: tuple[str, ...]
    """Of a class; a function has none."""
    image: DeployedImage
    gpus: tuple[str, ...]
    """Ranked, best first; none for a CPU function."""
    cpu: float | None
    memory_mib: int | None
    volumes: dict[str, MountedVolume]
    """By the path that they are mounted at."""
    secrets: tuple[str, ...]
    """The names of those that have one."""
    environment: dict[str, str]
    """What the function's `env` sets; secrets without a name are the same to Modal."""
    min_containers: int
    max_containers: int
    """0 for no limit."""
    idle_s: int
    """The scaledown window."""
    timeout_s: int
    startup_timeout_s: int
    snapshot: bool
    experimental: dict[str, str]
    regions: tuple[str, ...]
    concurrent_inputs: int
    server: DeployedServer | None


@dataclass(frozen=True)
class DeployedApp:
    name: str
    environment: str
    deployments: int
    """How often it was deployed."""
    functions: dict[str, DeployedFunction]
    classes: dict[str, DeployedFunction]
    servers: dict[str, DeployedFunction]


def view_app(app: App, apps: Apps, volumes: Volumes) -> DeployedApp:
    functions = {tag: apps.functions[id] for tag, id in app.function_ids.items()}
    seen = {tag: _view(function, apps, volumes) for tag, function in functions.items()}
    servers = {tag for tag, function in functions.items() if function.definition.is_server}
    return DeployedApp(
        app.name,
        app.environment,
        app.deployments,
        {tag: each for tag, each in seen.items() if not tag.endswith(".*") and tag not in servers},
        {tag.removesuffix(".*"): each for tag, each in seen.items() if tag.endswith(".*")},
        {tag: seen[tag] for tag in servers},
    )


def _view(function: Function, apps: Apps, volumes: Volumes) -> DeployedFunction:
    definition, server = function.definition, None
    if definition.is_server:
        config = definition.http_config
        server = DeployedServer(
            config.port,
            function.server_url,
            config.unauthenticated,
            tuple(config.proxy_regions),
            config.startup_timeout,
            config.exit_grace_period,
            definition.autoscaler_settings.target_concurrency_float,
        )
    mounted = {}
    for mount in definition.volume_mounts:
        volume = volumes.by_id(mount.volume_id)
        mounted[mount.mount_path] = MountedVolume(volume.name, volume.version, mount.read_only, mount.sub_path)
    secrets = [apps.secrets[id] for id in definition.secret_ids]
    chain = apps.image_chain(definition.image_id)
    return DeployedFunction(
        name=function.tag,
        module=definition.module_name,
        methods=tuple(sorted(definition.method_definitions)),
        image=DeployedImage(
            apps.image_environment(definition.image_id),
            tuple(command for image in chain for command in image.definition.dockerfile_commands),
            tuple(sorted(f.filename for id in apps.mount_ids(definition) for f in apps.mounts[id].files)),
        ),
        gpus=tuple(function.gpus),
        cpu=definition.resources.milli_cpu / 1000 or None,
        memory_mib=definition.resources.memory_mb or None,
        volumes=mounted,
        secrets=tuple(secret.name for secret in secrets if secret.name),
        environment={name: value for each in secrets if not each.name for name, value in each.values.items()},
        min_containers=function.min_containers,
        max_containers=function.max_containers,
        idle_s=int(function.idle_s),
        timeout_s=definition.timeout_secs,
        startup_timeout_s=definition.startup_timeout_secs,
        snapshot=definition.checkpointing_enabled,
        experimental=dict(definition.experimental_options),
        regions=tuple(definition.scheduler_placement.regions),
        concurrent_inputs=definition.max_concurrent_inputs,
        server=server,
    )
