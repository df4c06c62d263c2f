# In the virtual machine: a NIC with rules. Sections of output begin with `==`.
#
#   lan: steer0 === steer1 :gateway: steer2 === steer3 :net
set -eu
sysctl -qw vm.nr_hugepages=200
modprobe steernic pairs=2 queues=2

place() { # NAMESPACE DEVICE ADDRESS
    ip netns add "$1" 2>/dev/null && ip netns exec "$1" sysctl -qw net.ipv6.conf.default.disable_ipv6=1
    ip link set "$2" netns "$1"
    ip -n "$1" address add "$3/24" dev "$2"
    ip -n "$1" link set "$2" up
    ip -n "$1" link set lo up
}
place lan steer0 192.168.7.2
place gateway steer1 192.168.7.1
place gateway steer2 203.0.113.1
place net steer3 203.0.113.10
ip -n lan route add default via 192.168.7.1

rule() { ip netns exec net ethtool -N steer3 "$@" >&2; }
count() { # NAME: what the far NIC has received, of two queues and by rules
    echo "== $1"
    ip netns exec net ethtool -S steer3 | sed -n 's/.*_packets: //p'
}
send() {
    for port in 4096 5000 8191; do
        echo datagram | ip netns exec gateway nc -u -w 0 203.0.113.10 "$port"
    done
    echo datagram | ip netns exec gateway nc -u -w 0 203.0.113.10 8192 # the rules below are not for it
}

ip netns exec gateway ping -c 1 -W 20 203.0.113.10 >&2
ip netns exec net ethtool -K steer3 ntuple on
count before
rule flow-type udp4 dst-ip 203.0.113.10 dst-port 4096 m 0x0fff action 1
send
count "by rule to 1"
rule delete 0
rule flow-type udp4 dst-ip 203.0.113.10 dst-port 4096 m 0x0fff action 0
send
count "by rule to 0"
ip netns exec net ethtool -K steer3 ntuple off

cat >/tmp/gateway.toml <<'END'
[node]
name = "rules"
address = "203.0.113.1"
ports = "20000-29999"
socket = "/run/gateway.sock"
workers = 2
idle = "adaptive"
pin = false
[gateway]
inside = ["steer1"]
outside = ["steer2"]
END
ip netns exec gateway "$STARNET" node --config /tmp/gateway.toml >&2 &
show() { "$STARNET" show "$1" --socket /run/gateway.sock --json; }
until show node >/tmp/node.json 2>/dev/null; do
    sleep 0.5
done
ip netns exec net python3 tests/e2e/vm/datagrams.py answer 203.0.113.10 &

ask() { # WHETHER THERE ARE RULES
    echo "== node $1"
    show node
    echo "== workers before, $1"
    show workers
    ip netns exec lan python3 tests/e2e/vm/datagrams.py ask 203.0.113.10 >/tmp/asked
    echo "== asked $1"
    cat /tmp/asked
    echo "== workers after, $1"
    show workers
}
ask "without rules"
ip netns exec gateway ethtool -K steer2 ntuple on
until show node | grep -q '"rules": [1-9]'; do
    sleep 0.5
done
ask "with rules"
