"""The cluster's bridge, its CNI configuration, and what of both must go when the cluster goes."""

import json
import shlex
from pathlib import Path

from tests.cluster.host.process import run
from tests.cluster.layout import BRIDGE, BRIDGE_MAC, CNI_NETWORK, NODE_ADDRESS, POD_RANGE

PREFIX_LENGTH = POD_RANGE.partition("/")[2]
PROXY_TABLE = "kube-proxy"
CHAIN_PREFIX = "CNI-"
SYSCTL_ROOT = Path("/proc/sys")


def render_cni(lease_folder: Path) -> str:
    """The CNI conflist: bridge, host-local addresses kept in `lease_folder`, host ports.

    No masquerading: pods talk to each other and to the node, never to the outside.
    """
    document = {
        "cniVersion": "1.0.0",
        "name": CNI_NETWORK,
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(lease_folder),
                    "ranges": [[{"subnet": POD_RANGE, "gateway": NODE_ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }
    return json.dumps(document, indent=2)


def make_bridge() -> None:
    """Make the bridge with the node's address. A fixed MAC keeps it from changing with its ports."""
    run(["ip", "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"])
    run(["ip", "address", "add", f"{NODE_ADDRESS}/{PREFIX_LENGTH}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    (SYSCTL_ROOT / "net/ipv4/ip_forward").write_text("1")
    # Traffic from pod to pod by way of a Service must pass the NAT rules on its way back, too.
    bridged = SYSCTL_ROOT / "net/bridge/bridge-nf-call-iptables"
    if bridged.exists():
        bridged.write_text("1")


def remove_network() -> None:
    """Remove the bridge with its ports, kube-proxy's tables and portmap's chains. Nothing there is fine."""
    for link in json.loads(run(["ip", "-json", "link", "show", "master", BRIDGE], check=False) or "[]"):
        run(["ip", "link", "delete", link["ifname"]], check=False)
    run(["ip", "link", "delete", BRIDGE], check=False)
    for family in ("ip", "ip6"):
        run(["nft", "delete", "table", family, PROXY_TABLE], check=False)
    removals = chain_removals(_nat_rules())
    for arguments in removals:
        run(["iptables", "-t", "nat", *arguments], check=False)
    if removals and all(line.startswith("-P") for line in _nat_rules().splitlines()):
        run(["nft", "delete", "table", "ip", "nat"], check=False)  # portmap made it, and nobody else uses it


def _nat_rules() -> str:
    return run(["iptables", "-t", "nat", "-S"], check=False)


def chain_removals(rules: str) -> list[list[str]]:
    """Arguments of the iptables calls that remove every CNI chain from the output of `iptables -S`."""
    lines = [shlex.split(line) for line in rules.splitlines()]
    chains = [line[1] for line in lines if line[0] == "-N" and line[1].startswith(CHAIN_PREFIX)]
    jumps = [
        ["-D", *line[1:]]
        for line in lines
        if line[0] == "-A" and not line[1].startswith(CHAIN_PREFIX) and set(line) & set(chains)
    ]
    return jumps + [["-F", chain] for chain in chains] + [["-X", chain] for chain in chains]
