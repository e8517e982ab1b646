"""Configuration and manifests of the test cluster, as data."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cluster import vllm
from tests.cluster.errors import PrerequisiteError
from tests.cluster.host import machine as host
from tests.cluster.host import network, sweep, volumes
from tests.cluster.host.machine import Tool
from tests.cluster.images import buildah
from tests.cluster.images import specs as image_specs
from tests.cluster.images.oci import single_file_image
from tests.cluster.images.specs import ImageSpec
from tests.cluster.kubeconfig import render_kubeconfig
from tests.cluster.layout import BRIDGE, ClusterFolders
from tests.cluster.services import binaries
from tests.cluster.services.binaries import Binary
from tests.cluster.services.certificates import make_authority
from tests.cluster.services.runtime import render_containerd

FOLDERS = ClusterFolders(Path('/a "b"/cluster'))


def test_the_containerd_configuration_is_valid_toml_and_keeps_to_the_clusters_folders() -> None:
    parsed = tomllib.loads(render_containerd(FOLDERS))
    cri = parsed["plugins"]["io.containerd.grpc.v1.cri"]
    assert parsed["root"] == str(FOLDERS.content)
    assert parsed["grpc"]["address"] == str(FOLDERS.containerd_socket)
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is False


def test_the_cni_configuration_leases_addresses_of_the_bridges_own_range() -> None:
    bridge, port_map = json.loads(network.render_cni(Path("/leases")))["plugins"]
    assert bridge["bridge"] == BRIDGE
    assert bridge["ipam"]["dataDir"] == "/leases"
    assert bridge["ipMasq"] is False
    assert port_map["type"] == "portmap"


def test_only_cni_chains_are_removed_and_jumps_to_them_first() -> None:
    rules = "\n".join(
        [
            "-P PREROUTING ACCEPT",
            "-N CNI-HOSTPORT-DNAT",
            "-N DOCKER",
            "-A PREROUTING -j DOCKER",
            '-A PREROUTING -m comment --comment "two words" -j CNI-HOSTPORT-DNAT',
            "-A CNI-HOSTPORT-DNAT -p tcp -j ACCEPT",
        ]
    )
    assert network.chain_removals(rules) == [
        ["-D", "PREROUTING", "-m", "comment", "--comment", "two words", "-j", "CNI-HOSTPORT-DNAT"],
        ["-F", "CNI-HOSTPORT-DNAT"],
        ["-X", "CNI-HOSTPORT-DNAT"],
    ]


def test_mounts_below_a_folder_are_found_the_latest_first_and_no_others() -> None:
    lines = [
        f"{number} 1 0:1 / {point} rw - tmpfs tmpfs rw"
        for number, point in enumerate(["/", "/state", "/state/a\\040b", "/stateful", "/state/c"])
    ]
    assert sweep.mounts_below("\n".join(lines), Path("/state")) == ["/state/c", "/state/a b", "/state"]


@pytest.mark.parametrize(
    ("mountinfo", "expected"),
    [
        ("30 20 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", [("/sys/fs/cgroup", frozenset(), True)]),
        (
            "31 20 0:2 / /cg/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
            "32 20 0:3 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
            "33 20 0:4 / /proc rw - proc proc rw",
            [("/cg/cpu", frozenset({"cpu", "cpuacct"}), False), ("/cg/systemd", frozenset(), False)],
        ),
    ],
)
def test_cgroup_hierarchies_of_both_versions_are_read(
    mountinfo: str, expected: list[tuple[str, frozenset[str], bool]]
) -> None:
    found = [(str(each.mount_point), each.controllers, each.is_v2) for each in host.parse_cgroup_mounts(mountinfo)]
    assert found == expected


def test_a_tool_that_apt_can_not_bring_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        PrerequisiteError, match="missing on this machine: no-such-tool; install the packages some-package"
    ):
        host.ensure_tools([Tool("no-such-tool", "some-package")])


def test_a_missing_go_is_named_with_the_ways_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CLAAS_CACHE", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    with pytest.raises(PrerequisiteError, match=r"Go is not installed.*KUBEBUILDER_ASSETS.*CLUSTER=current"):
        binaries.ensure([Binary.ETCD], honour_assets=True)


def test_kubebuilder_assets_stand_in_for_building(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for binary in binaries.LIGHT_BINARIES:
        program = tmp_path / "assets" / binary.value
        program.parent.mkdir(exist_ok=True)
        program.touch(mode=0o755)
    monkeypatch.setenv("CLAAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("PATH", "")
    found = binaries.ensure(binaries.LIGHT_BINARIES, honour_assets=True)
    assert {path.parent for path in found.values()} == {tmp_path / "assets"}


def test_kubernetes_is_built_with_the_version_that_its_module_requires() -> None:
    assert "gitVersion=v1." in binaries.build_flags("kubernetes")[-1]
    assert "gitVersion" not in binaries.build_flags("etcd")[-1]


def test_a_kubeconfig_holds_its_authority_and_one_user(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    parsed = yaml.safe_load(render_kubeconfig("https://127.0.0.1:1", authority=authority.path, token="secret"))
    assert parsed["users"][0]["user"] == {"token": "secret"}
    assert parsed["current-context"] == parsed["contexts"][0]["name"]


@pytest.fixture
def sources(tmp_path: Path) -> tuple[ImageSpec, Path]:
    root = tmp_path / "repository"
    (root / "code" / "__pycache__").mkdir(parents=True)
    (root / "code" / "module.py").write_text("one = 1\n")
    (root / "code" / "__pycache__" / "module.pyc").write_bytes(b"bytecode")
    (root / "Containerfile").write_text("FROM scratch\n")
    return ImageSpec("sample", "Containerfile", ("code",)), root


def test_an_images_hash_follows_its_content_its_containerfile_and_its_base(
    sources: tuple[ImageSpec, Path],
) -> None:
    spec, root = sources
    before = image_specs.input_hash(spec, "base:1", root)
    assert image_specs.input_hash(spec, "base:2", root) != before
    (root / "code" / "__pycache__" / "module.pyc").write_bytes(b"other")
    (root / "code" / "module.py").touch()
    assert image_specs.input_hash(spec, "base:1", root) == before
    (root / "code" / "module.py").write_text("one = 2\n")
    changed = image_specs.input_hash(spec, "base:1", root)
    (root / "Containerfile").write_text("FROM other\n")
    last = image_specs.input_hash(spec, "base:1", root)
    with_argument = image_specs.input_hash(dataclasses.replace(spec, arguments=("A=",)), "base:1", root)
    assert len({before, changed, last, with_argument}) == 4


def test_a_build_gets_its_arguments_and_the_trainer_s_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLAAS_CACHE", str(tmp_path))
    ran: list[tuple[object, ...]] = []
    monkeypatch.setattr(buildah, "buildah", lambda *arguments, **_: ran.append(arguments))
    for spec in (image_specs.TRAINER_DEPENDENCIES, image_specs.TRAINER):
        buildah.build(buildah.Build(Path("Containerfile"), tmp_path, "base:1", ("x",), arguments=spec.arguments))
    for arguments in ran:
        assert arguments[arguments.index("SYSTEM_PACKAGES=") - 1] == "--build-arg"
    assert len(ran) == 2


def test_a_build_context_holds_sources_only_and_everyone_can_read_them(
    sources: tuple[ImageSpec, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLAAS_CACHE", str(tmp_path / "cache"))
    spec, root = sources
    (root / "code" / "module.py").chmod(0o600)
    context = image_specs.stage_context(spec, root)
    files = [path for path in context.rglob("*") if path.is_file()]
    assert [str(path.relative_to(context)) for path in files] == ["code/module.py"]
    assert files[0].stat().st_mode & 0o777 == 0o644


def test_equal_programs_give_equal_images(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"program")
    assert single_file_image("localhost/pause:1", program) == single_file_image("localhost/pause:1", program)


def test_a_build_gets_the_machines_certificates_and_indexes_but_no_other_variable(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.crt"
    authorities.write_text("certificates")
    arguments = buildah.network_arguments(
        {
            "SSL_CERT_FILE": str(authorities),
            "UV_CACHE_DIR": str(tmp_path / "uv"),
            "PIP_INDEX_URL": "index",
            "TOKEN": "private",
        }
    )
    assert f"{authorities}:{buildah.BUILD_AUTHORITIES}:ro" in arguments
    assert "PIP_INDEX_URL=index" in arguments
    assert not any("private" in each for each in arguments)


def test_a_volume_reserved_for_a_claim_names_it() -> None:
    volume = volumes.persistent_volume("models", Path("/models"), claim=("default", "models"))
    spec = volume["spec"]
    assert isinstance(spec, dict)
    assert spec["claimRef"] == {"namespace": "default", "name": "models"}


def test_vllm_manifests_mount_the_companion_and_pass_its_arguments() -> None:
    server = vllm.VllmServer(
        name="vllm",
        namespace="default",
        model_claim="models",
        model_path="tiny",
        served_name="tiny",
        adapter_claim="adapters",
        companion=vllm.Companion(
            "claas-companion",
            ("--middleware=claas_vllm.Companion",),
            {"CLAAS_ADAPTERS": "/adapters"},
            (vllm.SecretMount("token", "/run/token"),),
        ),
    )
    rendered = json.dumps(vllm.manifests(server))
    for expected in (
        "--middleware=claas_vllm.Companion",
        '"claimName": "adapters"',
        '"name": "claas-companion"',
        '"secretName": "token"',
        '{"name": "PYTHONPATH", "value": "/opt/claas-companion"}',
        '"mountPath": "/opt/claas-companion/claas_vllm"',
        "CLAAS_ADAPTERS",
    ):
        assert expected in rendered


def test_a_vllm_server_without_companion_or_adapters_mounts_neither() -> None:
    server = vllm.VllmServer("vllm", "default", "models", "tiny", "tiny")
    rendered = json.dumps(vllm.deployment(server))
    assert "companion" not in rendered
    assert "/adapters" not in rendered
