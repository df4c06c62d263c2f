"""Namespaces, links, bridges, addresses and routes, by iproute2 and ethtool."""

import os
import subprocess
from pathlib import Path

from . import Failed
from .topology import INFRASTRUCTURE


def run(*command, text=None):
    """Runs a command that must succeed; its output."""
    try:
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Failed(f"{command[0]} is not installed; run: scripts/install") from None
    if result.returncode:
        said = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        raise Failed(f"{' '.join(map(str, command))}: {said}")
    return result.stdout


def namespaces_of(state, topology):
    return [state.namespace(host) for host in (INFRASTRUCTURE, *topology.hosts)]


def build(state, topology):
    """Everything below the programs."""
    for namespace in state.namespaces:
        run("ip", "netns", "add", namespace)
        settings(namespace, forwards=False, has_ip6=topology.has_ip6)
    for host in topology.with_role("plain"):
        settings(state.namespace(host.name), forwards=True, has_ip6=topology.has_ip6)
    for link in topology.links:
        add_link(state, link)
    for network in topology.networks.values():
        add_network(state, network)
    for host in topology.hosts.values():
        configure(state, host)


def settings(namespace, forwards, has_ip6):
    values = {
        "net.ipv4.conf.all.rp_filter": 0,
        "net.ipv4.conf.default.rp_filter": 0,
        "net.ipv4.ip_forward": int(forwards),
        # Tests provoke many errors, and each must be answered.
        "net.ipv4.icmp_ratelimit": 0,
        # No router solicitations and the like between packets that are counted.
        "net.ipv6.conf.all.disable_ipv6": int(not has_ip6),
        "net.ipv6.conf.default.disable_ipv6": int(not has_ip6),
    }
    if has_ip6:
        values |= {
            "net.ipv6.conf.all.forwarding": int(forwards),
            "net.ipv6.conf.default.accept_ra": 0,
            "net.ipv6.conf.default.router_solicitations": 0,
            "net.ipv6.conf.default.dad_transmits": 0,
            "net.ipv6.icmp.ratelimit": 0,
        }
    run("ip", "netns", "exec", namespace, "sysctl", "-qw", *(f"{key}={value}" for key, value in values.items()))


def add_veth(one, other, mtu, queues):
    """A cable between two (namespace, interface)."""
    ends = [f"name {interface} mtu {mtu} numtxqueues {queues} numrxqueues {queues} netns {namespace}"
            for namespace, interface in (one, other)]
    run("ip", "link", "add", *ends[0].split(), "type", "veth", "peer", *ends[1].split())
    for namespace, interface in (one, other):
        # Without its own checksum a packet is useless to AF_XDP and to the wire, which take it off the device.
        run("ip", "netns", "exec", namespace, "ethtool", "-K", interface, "tx", "off", "txvlan", "off")
        run("ip", "-n", namespace, "link", "set", "dev", interface, "up")


def add_link(state, link):
    ends = [(state.namespace(host), interface) for host, interface in zip(link.ends, link.interfaces)]
    if not link.wire:
        add_veth(*ends, link.mtu, link.queues)
        return
    for end, middle in zip(ends, link.middles):
        add_veth(end, (state.namespace(INFRASTRUCTURE), middle), link.mtu, link.queues)


def add_network(state, network):
    fabric = state.namespace(INFRASTRUCTURE)
    run("ip", "-n", fabric, "link", "add", network.name, "type", "bridge")
    run("ip", "-n", fabric, "link", "set", "dev", network.name, "up")
    for number, member in enumerate(network.members):
        port = f"{network.name[:10]}-{number}"
        add_veth((state.namespace(member), network.name), (fabric, port), 1500, 1)
        run("ip", "-n", fabric, "link", "set", "dev", port, "master", network.name)


def configure(state, host):
    """Addresses and routes. A route's source is the host's own address: links come and go, it stays."""
    commands = [f"address add {host.address}/32 dev lo", "link set lo up"]
    commands += [f"address add {interface.address} dev {interface.name}" for interface in host.interfaces]
    commands += [f"route add {route.to} via {route.via} dev {route.interface} src {host.address}"
                 for route in host.routes]
    commands += [f"address add {address} dev {interface} nodad"
                 for interface, address in host.ip6.get("addresses", {}).items()]
    run("ip", "-n", state.namespace(host.name), "-batch", "-", text="\n".join(commands) + "\n")
    for to, via in host.ip6.get("routes", {}).items():
        run("ip", "-6", "-n", state.namespace(host.name), "route", "add", to, "via", via)


def existing():
    """Namespaces there are."""
    return {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()}


def pids(namespace):
    """Processes inside a namespace."""
    return [int(word) for word in run("ip", "netns", "pids", namespace).split()]


def delete(namespace):
    """With every interface in it; a veth takes its other end along."""
    # A node that was killed leaves its claim of ports, which is named after its namespace's number.
    number = os.stat(f"/run/netns/{namespace}").st_ino
    for claim in Path("/run/starnet/ports").glob(f"{number}-*"):
        claim.unlink(missing_ok=True)
    run("ip", "netns", "delete", namespace)
