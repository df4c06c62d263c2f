# In the virtual machine: an overlay with one path, and what passes through it. Sections of output begin with `==`.
set -eu
sysctl -qw vm.nr_hugepages=200
vm-testbed/netns up overlay --wait 180 --topology vm-testbed/topologies/one-path.toml >&2

within() { host=$1; shift; ip netns exec "overlay.$host" "$@"; }

echo "== doctor"
"$STARNET" doctor --json
for host in entry relay exit; do
    echo "== $host"
    "$STARNET" show node --socket "/run/starnet-testbed/overlay/run/$host.sock" --json
done
echo "== ping"
within client ping -c 3 -W 20 203.0.113.10
within www busybox httpd -p 8000 -h "$PWD"
echo "== curl"
within client curl -sS --max-time 60 http://203.0.113.10:8000/LICENSE
