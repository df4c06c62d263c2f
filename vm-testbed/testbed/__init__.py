"""The testbed: a topology file made real with network namespaces, veths and starnet processes.

topology   what a file says, checked, with every address and route worked out
kernel     namespaces, links, bridges, addresses, routes
state      what is up: written down before it is made, so that `down` finds it after any crash
processes  starting, finding and ending programs in the namespaces
starnet    certificates, tokens, configuration files, and waiting until the overlay carries traffic

The virtual machine, in which all of that runs on another kernel:

debian     Debian 12's kernel, fetched and unpacked, and modules of ours built for it
initramfs  what that kernel starts with; guest/init and guest/session are the programs
qemu       a machine for one command
"""


class Failed(Exception):
    """Ends the command with one clear line."""
