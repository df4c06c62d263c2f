# In the virtual machine: a gateway with two workers, and what passes through it. Sections of output begin with `==`.
set -eu
sysctl -qw vm.nr_hugepages=200
vm-testbed/netns up gateway --wait 180 --topology vm-testbed/topologies/gateway.toml >&2

within() { host=$1; shift; ip netns exec "gateway.$host" "$@"; }

echo "== gateway"
"$STARNET" show node --socket /run/starnet-testbed/gateway/run/gateway.sock --json
echo "== ping"
within alice ping -c 3 -W 20 203.0.113.10
within www busybox httpd -p 8000 -h "$PWD"
echo "== curl"
within bob curl -sS --max-time 60 http://203.0.113.10:8000/LICENSE
