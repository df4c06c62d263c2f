"""What a topology file says, checked, with every address and route worked out. Touches nothing.

Addresses are the same in every testbed, since each lives in namespaces of its own:

    198.18.0.N         a host's own address, on its lo: what others know it by (1, 2, 3, ...)
    203.0.113.N        the same for a server (10, 20, 30, ...)
    192.168.0.N        the same for a host behind a gateway
    198.18.16.0/20     a /30 for each link, from here on
    as the file says   networks (the management network), and everything of IPv6 (a host's `ip6`)

A host reaches another one only over links, and only `plain` hosts pass packets on: traffic has no way around the
overlay. Hosts of the role `host` send everything to the gateway they have a link to.
"""

import ipaddress
import re
import tomllib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from . import Failed

NODE_ROLES = ("entry", "relay", "exit")
ROLES = ("controller", "client", *NODE_ROLES, "gateway", "host", "server", "plain")
IMPAIRMENTS = ("delay_ms", "jitter_ms", "loss", "reorder", "duplicate")
NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")  # an interface is called like the host it leads to: 15 characters
INFRASTRUCTURE = "fabric"  # the namespace of the wires' middle ends and the networks' bridges


@dataclass
class Host:
    name: str
    role: str
    address: str
    workers: int = 1
    config: dict = field(default_factory=dict)  # merged over the configuration file made for it
    ip6: dict = field(default_factory=dict)  # addresses by interface, routes by destination
    interfaces: list = field(default_factory=list)
    routes: list = field(default_factory=list)

    @property
    def is_node(self):
        return self.role in NODE_ROLES

    @property
    def runs_starnet(self):
        return self.is_node or self.role in ("controller", "client", "gateway")

    @property
    def is_gateway(self):
        return self.role == "gateway" or "gateway" in self.config

    @property
    def is_overlay(self):
        return self.is_node or self.role == "client"


@dataclass
class Interface:
    name: str
    address: str  # with prefix length
    mtu: int
    network: str = ""  # of which network, if not of a link


@dataclass
class Route:
    to: str
    via: str
    interface: str


@dataclass
class Link:
    name: str
    number: int
    ends: tuple
    interfaces: tuple  # names, by end
    mtu: int
    queues: int
    wire: bool
    impairment: tuple  # by the end that sends

    @property
    def middles(self):
        """The interfaces the wire lies between."""
        return f"wire{self.number}-a", f"wire{self.number}-b"


@dataclass
class Network:
    name: str
    subnet: ipaddress.IPv4Network
    members: dict  # host name -> address


@dataclass
class Topology:
    hosts: dict
    links: list
    networks: dict

    def host(self, name):
        if name not in self.hosts:
            raise Failed(f"no host {name!r} in this topology; it has {', '.join(self.hosts)}")
        return self.hosts[name]

    def with_role(self, *roles):
        return [host for host in self.hosts.values() if host.role in roles]

    @property
    def has_ip6(self):
        return any(host.ip6 for host in self.hosts.values())

    def neighbours(self):
        """Pairs of nodes with a link between them."""
        return [link.ends for link in self.links if all(self.hosts[end].is_node for end in link.ends)]

    def link(self, name):
        """A link by its name, given from either end."""
        for link in self.links:
            if name in (link.name, "-".join(reversed(link.ends))):
                return link
        raise Failed(f"no link {name!r} in this topology; it has {', '.join(link.name for link in self.links)}")


def load(path):
    """Reads, checks and completes a topology file."""
    try:
        text = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise Failed(f"{path}: {error}") from None
    try:
        return build(text)
    except (ValueError, TypeError) as error:
        raise Failed(f"{path}: {error}") from None


def build(text):
    only(text, ("hosts", "links", "networks"), "the file")
    topology = Topology(hosts={}, links=[], networks={})
    for name, entry in text.get("hosts", {}).items():
        topology.hosts[name] = build_host(topology, name, entry)
    for number, entry in enumerate(text.get("links", [])):
        topology.links.append(build_link(topology, number, entry))
    for name, entry in text.get("networks", {}).items():
        topology.networks[name] = build_network(topology, name, entry)
    if len({host.address for host in topology.hosts.values()}) < len(topology.hosts):
        raise ValueError("hosts: two have the same address")
    for host in topology.hosts.values():
        host.routes = routes_from(topology, host)
    if any(host.is_overlay for host in topology.hosts.values()) and len(topology.with_role("controller")) != 1:
        raise ValueError("hosts: exactly one must have the role controller")
    return topology


def build_host(topology, name, entry):
    where = f"hosts.{name}"
    if not NAME.fullmatch(name) or name == INFRASTRUCTURE:
        raise ValueError(f"{where}: a name is up to 15 of a-z, 0-9 and -, and not {INFRASTRUCTURE!r}")
    only(entry, ("role", "address", "workers", "config", "ip6"), where)
    only(entry.get("ip6", {}), ("addresses", "routes"), f"{where}.ip6")
    role = entry.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}: role must be one of {', '.join(ROLES)}")
    servers, inside = len(topology.with_role("server")), len(topology.with_role("host"))
    defaults = {"server": f"203.0.113.{10 * (servers + 1)}", "host": f"192.168.0.{inside + 1}"}
    address = entry.get("address", defaults.get(role, f"198.18.0.{len(topology.hosts) - servers - inside + 1}"))
    ipaddress.IPv4Address(address)
    return Host(name, role, address, entry.get("workers", 1), entry.get("config", {}), entry.get("ip6", {}))


def build_link(topology, number, entry):
    where = f"links[{number}]"
    only(entry, ("ends", "mtu", "queues", "wire", "impairment", "forward", "backward"), where)
    ends = tuple(entry.get("ends", ()))
    if len(ends) != 2 or ends[0] == ends[1] or any(end not in topology.hosts for end in ends):
        raise ValueError(f"{where}: ends must be two different hosts")
    name = "-".join(ends)
    if any({*link.ends} == {*ends} for link in topology.links):
        raise ValueError(f"{where}: {name} is there already")
    wire = entry.get("wire", False)
    both = impairment(entry.get("impairment", {}), where)
    directions = tuple(both | impairment(entry.get(direction, {}), where) for direction in ("forward", "backward"))
    if any(directions) and not wire:
        raise ValueError(f"{where}: an impairment needs wire = true")
    mtu, queues = entry.get("mtu", 1500), entry.get("queues", 1)
    subnet = ipaddress.IPv4Address("198.18.16.0") + 4 * number
    for index, (end, other) in enumerate((ends, ends[::-1])):
        topology.hosts[end].interfaces.append(Interface(other, f"{subnet + 1 + index}/30", mtu))
    return Link(name, number, ends, ends[::-1], mtu, queues, wire, directions)


def build_network(topology, name, entry):
    where = f"networks.{name}"
    if not NAME.fullmatch(name) or name in topology.hosts:
        raise ValueError(f"{where}: a name is up to 15 of a-z, 0-9 and -, and not a host's")
    only(entry, ("subnet", "members"), where)
    subnet = ipaddress.IPv4Network(entry.get("subnet", ""))
    members = {}
    for number, member in enumerate(entry.get("members", []), start=1):
        if member not in topology.hosts:
            raise ValueError(f"{where}: {member} is not a host")
        members[member] = str(subnet[number])
        interface = Interface(name, f"{subnet[number]}/{subnet.prefixlen}", 1500, network=name)
        topology.hosts[member].interfaces.append(interface)
    return Network(name, subnet, members)


def impairment(entry, where):
    only(entry, IMPAIRMENTS, f"{where}: impairment")
    return entry


def only(entry, allowed, where):
    if not isinstance(entry, dict):
        raise TypeError(f"{where}: must be a table")
    for key in entry:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r} (allowed: {', '.join(allowed)})")


def routes_from(topology, source):
    """The shortest way to every host that can be reached over links through plain hosts alone."""
    around = {name: [] for name in topology.hosts}
    for link in topology.links:
        for index, end in enumerate(link.ends):
            around[end].append((link, 1 - index))
    first_hop = {source.name: None}
    waiting = deque([source.name])
    while waiting:
        here = waiting.popleft()
        if here != source.name and topology.hosts[here].role != "plain":
            continue
        for link, far in around[here]:
            there = link.ends[far]
            if there not in first_hop:
                first_hop[there] = first_hop[here] or there
                waiting.append(there)
    routes = []
    for name, hop in first_hop.items():
        if hop:
            # Interfaces are named after the host they lead to.
            via = next(i for i in topology.hosts[hop].interfaces if i.name == source.name)
            targets = [f"{topology.hosts[name].address}/32"]
            if name != hop:
                targets += [str(ipaddress.IPv4Interface(i.address).network) for i in topology.hosts[name].interfaces
                            if not i.network and i.name not in (source.name, hop)]
            routes += [Route(target, via.address.split("/")[0], hop) for target in targets]
    if source.role == "host":
        gateways = [i for i in source.interfaces if not i.network and topology.hosts[i.name].is_gateway]
        for interface in gateways[:1]:
            via = next(i for i in topology.hosts[interface.name].interfaces if i.name == source.name)
            routes.append(Route("default", via.address.split("/")[0], interface.name))
    if source.role == "controller":
        # Nodes speak from their own addresses, on a network that is not otherwise a way to them.
        routes += [Route(f"{topology.hosts[member].address}/32", address, network.name)
                   for network in topology.networks.values() if source.name in network.members
                   for member, address in network.members.items() if member != source.name]
    unique = {}
    for route in routes:
        unique.setdefault(route.to, route)
    return list(unique.values())
