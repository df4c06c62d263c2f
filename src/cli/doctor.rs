//! `starnet doctor`: whether this machine can run a node, and what to do where it cannot.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use nix::{
    libc::RLIM_INFINITY,
    sys::resource::{Resource, getrlimit},
};
use serde::Serialize;

use super::{Failure, print};
use crate::{
    control,
    dataplane::{
        driver::xdp::{KERNEL_MIN, receive_queues},
        rss::{Input, Inputs, Queues, Rss},
        worker,
    },
    limits,
    node::{
        config::{FRAMES_DEFAULT, NodeConfig, NodeLimits},
        kernel::{self, RuleSupport},
    },
    rpc::token,
    telemetry::{show::RssView, table::Table},
};

/// Any wall clock before this (2025-01-01) was never set: tokens and certificates would be refused.
const CLOCK_MIN_S: u64 = 1_735_689_600;

const HUGEPAGE_KIB: u64 = 2048;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Also check this node's TOML file, and its interfaces and memory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// A node runs, but slower than it could.
    Slow,
    /// A node does not run.
    Missing,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do; empty where it is as it should be.
    fix: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Ok, found: found.into(), fix: String::new() }
    }

    fn slow(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, state: State::Slow, found: found.into(), fix: fix.into() }
    }

    fn missing(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, state: State::Missing, found: found.into(), fix: fix.into() }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.as_deref().map(NodeConfig::load);
    let findings = examine(config);
    if arguments.json {
        let text = serde_json::to_string_pretty(&findings).map_err(Failure::runtime)?;
        print(&format!("{text}\n"))?;
    } else {
        print(&columns(&findings))?;
    }
    match findings.iter().filter(|finding| finding.state == State::Missing).count() {
        0 => Ok(()),
        1 => Err(Failure::Runtime("one thing is missing: a node does not run here".into())),
        count => Err(Failure::Runtime(format!("{count} things are missing: a node does not run here"))),
    }
}

fn columns(findings: &[Finding]) -> String {
    let mut table = Table::new(["check", "", "found", "what to do"]);
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Slow => "slow",
            State::Missing => "MISSING",
        };
        table.row([finding.what.to_owned(), state.to_owned(), finding.found.clone(), finding.fix.clone()]);
    }
    table.to_string()
}

fn examine(config: Option<Result<NodeConfig, crate::config_file::ConfigError>>) -> Vec<Finding> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (mut findings, config) = match config {
        None => (Vec::new(), None),
        Some(Ok(config)) => (vec![Finding::ok("config", format!("node '{}'", config.name))], Some(config)),
        Some(Err(error)) => (vec![Finding::missing("config", error.to_string(), "correct the file")], None),
    };
    let frame_bytes = config.as_ref().map_or(u64::from(FRAMES_DEFAULT) * limits::FRAME_SIZE as u64, |config| {
        config.workers as u64 * u64::from(config.limits.frames) * limits::FRAME_SIZE as u64
    });
    let status = text("/proc/self/status");
    let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    findings.extend([
        capabilities(&status),
        kernel(&text("/proc/sys/kernel/osrelease")),
        af_xdp(&text("/proc/net/protocols")),
        bpf(Path::new(BPF_SYSCALL).exists(), &text("/proc/sys/net/core/bpf_jit_enable")),
        memlock_limit(memlock, frame_bytes, has_capability(&status, CAP_IPC_LOCK)),
        hugepages(
            &text("/proc/meminfo"),
            &text("/proc/sys/vm/nr_overcommit_hugepages"),
            frame_bytes + config.as_ref().map_or(0, table_bytes),
        ),
        clock_source(&text("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        wall_clock(token::unix_seconds()),
    ]);
    if let Some(config) = &config {
        for name in &config.interfaces {
            let mtu = text(&format!("/sys/class/net/{name}/mtu")).trim().parse().ok();
            let queues = receive_queues(name).unwrap_or(Queues::ONE);
            findings.push(interface(name, mtu, queues, config.workers));
            let is_inside = config.gateway.as_ref().is_some_and(|gateway| gateway.inside.contains(name));
            let rules = if is_inside { RuleSupport::None } else { kernel::rule_support(name) };
            findings.push(rss(name, kernel::read_rss(name), rules, config.workers));
        }
    }
    findings
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What a node needs, and whether CAP_SYS_ADMIN implies it. (CAP_PERFMON: the verifier lets only its holder compare
/// pointers into a packet with offsets it cannot bound.) CAP_IPC_LOCK is weighed with the limit of locked memory.
const CAPABILITIES: [(u32, &str, bool); 4] = [
    (CAP_NET_ADMIN, "CAP_NET_ADMIN", false),
    (CAP_NET_RAW, "CAP_NET_RAW", false),
    (CAP_PERFMON, "CAP_PERFMON", true),
    (CAP_BPF, "CAP_BPF", true),
];

fn has_capability(status: &str, capability: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    set >> capability & 1 == 1
}

fn capabilities(status: &str) -> Finding {
    let is_held = |&(number, _, is_implied): &(u32, &str, bool)| {
        has_capability(status, number) || is_implied && has_capability(status, CAP_SYS_ADMIN)
    };
    let (held, missing): (Vec<_>, Vec<_>) = CAPABILITIES.iter().partition(|&capability| is_held(capability));
    let names =
        |of: Vec<&(u32, &str, bool)>, joint| of.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(joint);
    if missing.is_empty() {
        Finding::ok("privileges", names(held, ", "))
    } else {
        let missing = names(missing, ", no ");
        Finding::missing("privileges", format!("no {missing}"), "run as root, or see AmbientCapabilities= of systemd")
    }
}

fn kernel(release: &str) -> Finding {
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = KERNEL_MIN;
    if version >= KERNEL_MIN {
        Finding::ok("kernel", release)
    } else {
        Finding::missing("kernel", release, format!("install Linux {major}.{minor} or later"))
    }
}

fn af_xdp(protocols: &str) -> Finding {
    if protocols.lines().any(|line| line.starts_with("XDP ")) {
        Finding::ok("AF_XDP", "in the kernel")
    } else {
        Finding::missing("AF_XDP", "not in the kernel", "use a kernel built with CONFIG_XDP_SOCKETS=y")
    }
}

/// There in kernels with the bpf() system call, whoever looks. The state of the JIT compiler is shown in the first
/// network namespace only, and to root.
const BPF_SYSCALL: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";

fn bpf(is_there: bool, jit: &str) -> Finding {
    match jit.trim() {
        _ if !is_there => Finding::missing("BPF", "not in the kernel", "use a kernel built with CONFIG_BPF_SYSCALL=y"),
        "0" => Finding::slow("BPF", "interpreted", "sysctl -w net.core.bpf_jit_enable=1"),
        "" => Finding::ok("BPF", "in the kernel"),
        _ => Finding::ok("BPF", "compiled (JIT)"),
    }
}

fn memlock_limit(limit: u64, bytes: u64, is_unlimited: bool) -> Finding {
    if is_unlimited || limit == RLIM_INFINITY {
        return Finding::ok("locked memory", "unlimited");
    }
    let found = format!("{} MiB of {} MiB", limit >> 20, bytes.div_ceil(1 << 20));
    if limit >= bytes {
        Finding::ok("locked memory", found)
    } else {
        Finding::missing("locked memory", found, "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)")
    }
}

/// What the tables of the workers take on hugepages, and what the control core has of them.
fn table_bytes(config: &NodeConfig) -> u64 {
    let NodeLimits { slots, sessions, bindings, .. } = config.limits;
    let pages =
        config.workers * (worker::huge_pages(slots, sessions, bindings, &config.nat) + control::huge_pages(bindings));
    pages as u64 * (HUGEPAGE_KIB << 10)
}

fn hugepages(meminfo: &str, overcommit: &str, bytes: u64) -> Finding {
    let value = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let wanted = bytes.div_ceil(HUGEPAGE_KIB << 10);
    let free = value("HugePages_Free").unwrap_or(0).saturating_sub(value("HugePages_Rsvd").unwrap_or(0));
    let surplus = value("HugePages_Surp").unwrap_or(0);
    let spare = overcommit.trim().parse::<u64>().unwrap_or(0).saturating_sub(surplus);
    let found = format!("{free} free and {spare} on demand, {wanted} wanted (2 MiB each)");
    if value("Hugepagesize") != Some(HUGEPAGE_KIB) {
        return Finding::slow(
            "hugepages",
            "none of 2 MiB",
            "use a kernel with hugepages of 2 MiB; 4 KiB pages are used",
        );
    }
    if free + spare >= wanted {
        Finding::ok("hugepages", found)
    } else {
        Finding::slow(
            "hugepages",
            found,
            format!("sysctl -w vm.nr_hugepages={wanted}; until then 4 KiB pages are used"),
        )
    }
}

fn clock_source(source: &str) -> Finding {
    match source.trim() {
        source @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies") => {
            Finding::slow("clock source", source, "boot with tsc=reliable if the TSC is")
        }
        source => Finding::ok("clock source", if source.is_empty() { "unknown" } else { source }),
    }
}

fn wall_clock(unix_seconds: u64) -> Finding {
    if unix_seconds >= CLOCK_MIN_S {
        Finding::ok("time", "set")
    } else {
        Finding::missing(
            "time",
            "before 2025",
            "set the clock, and keep it by NTP: tokens and certificates expire by it",
        )
    }
}

fn interface(name: &str, mtu: Option<usize>, queues: Queues, workers: usize) -> Finding {
    let Some(mtu) = mtu else {
        return Finding::slow("interface", format!("{name}: not in /sys"), "mount /sys of this network namespace");
    };
    let count = queues.count() as usize;
    let found = format!("{name}: MTU {mtu}, {count} RX queues, {workers} workers");
    if mtu > limits::MTU_MAX {
        return Finding::missing("interface", found, format!("ip link set {name} mtu {}", limits::MTU_MAX));
    }
    if count < workers {
        let more = queues.command(name, workers as u32).map(|command| format!("{command}, or ")).unwrap_or_default();
        return Finding::missing("interface", found, format!("{more}workers = {count}"));
    }
    Finding::ok("interface", found)
}

/// Whether the queue of a packet, and so its worker, can be chosen: by the NIC's hash, else by rules. Where it cannot, packets
/// are handed over.
fn rss(name: &str, told: nix::Result<Option<Rss>>, rules: RuleSupport, workers: usize) -> Finding {
    if workers == 1 {
        return Finding::ok("RSS", format!("{name}: no matter with one worker"));
    }
    let without_hash = |why: &str, fix: String| match rules {
        RuleSupport::On => {
            Finding::ok("RSS", format!("{name}: {why}; the node will try rules by ports, `starnet show node` tells"))
        }
        RuleSupport::Off => {
            let found = format!("{name}: {why}; packets are handed over between workers");
            let fixes = [fix, format!("ethtool -K {name} ntuple on")];
            Finding::slow(
                "RSS",
                found,
                fixes.into_iter().filter(|fix| !fix.is_empty()).collect::<Vec<_>>().join(", or "),
            )
        }
        RuleSupport::None => {
            let found = format!("{name}: {why}; packets are handed over between workers");
            if fix.is_empty() { Finding::ok("RSS", found) } else { Finding::slow("RSS", found, fix) }
        }
    };
    let rss = match told {
        Err(_) => return without_hash("not told", String::new()),
        Ok(None) => {
            return without_hash("no plain Toeplitz hash", format!("ethtool -X {name} hfunc toeplitz (and xfrm none)"));
        }
        Ok(Some(rss)) => rss,
    };
    let found = RssView::of(&rss).to_string();
    let Inputs { tcp4, udp4, .. } = rss.inputs();
    let deaf =
        [("udp4", udp4), ("tcp4", tcp4)].into_iter().filter(|(_, input)| *input != Some(Input::AddressesAndPorts));
    let mut fixes: Vec<String> = deaf.map(|(kind, _)| format!("ethtool -N {name} rx-flow-hash {kind} sdfn")).collect();
    let entries = rss.entries();
    let is_idle = |worker: usize| entries.iter().skip(worker).step_by(workers).all(|count| *count == 0);
    if (0..workers).any(is_idle) {
        fixes.push(format!("ethtool -X {name} equal {workers}"));
    }
    let found = format!("{name}: {found}");
    if fixes.is_empty() { Finding::ok("RSS", found) } else { Finding::slow("RSS", found, fixes.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::rss::KEY_BYTES;

    #[test]
    fn each_capability_is_asked_for() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").state, State::Ok);
        let none = capabilities("CapEff:\t0000000000000000\n");
        assert_eq!(
            (none.state, none.found.as_str()),
            (State::Missing, "no CAP_NET_ADMIN, no CAP_NET_RAW, no CAP_PERFMON, no CAP_BPF")
        );
        // CAP_SYS_ADMIN, NET_ADMIN and NET_RAW: the first implies CAP_BPF and CAP_PERFMON.
        assert_eq!(capabilities("CapEff:\t0000000000203000\n").state, State::Ok);
    }

    #[test]
    fn a_kernel_is_new_enough_by_number_not_by_text() {
        assert_eq!(kernel("6.1.0-13-amd64\n").state, State::Ok);
        assert_eq!(kernel("5.10-rc1").state, State::Ok);
        assert_eq!(kernel("5.9.16").state, State::Missing);
        assert_eq!(kernel("").state, State::Missing);
    }

    #[test]
    fn hugepages_free_or_on_demand_are_enough() {
        let meminfo = |free: u64| {
            format!("HugePages_Free: {free}\nHugePages_Rsvd: 1\nHugePages_Surp: 2\nHugepagesize: 2048 kB\n")
        };
        let bytes = 8 << 20;
        assert_eq!(hugepages(&meminfo(5), "0", bytes).state, State::Ok);
        assert_eq!(hugepages(&meminfo(4), "0", bytes).state, State::Slow);
        assert_eq!(hugepages(&meminfo(4), "3", bytes).state, State::Ok);
        assert_eq!(
            hugepages(&meminfo(0), "0", bytes).fix,
            "sysctl -w vm.nr_hugepages=4; until then 4 KiB pages are used"
        );
    }

    #[test]
    fn locked_memory_must_hold_the_frames() {
        assert_eq!(memlock_limit(8 << 20, 8 << 20, false).state, State::Ok);
        assert_eq!(memlock_limit(64 << 10, 8 << 20, false).state, State::Missing);
        assert_eq!(memlock_limit(64 << 10, 8 << 20, true).state, State::Ok);
        assert_eq!(memlock_limit(RLIM_INFINITY, u64::MAX, false).state, State::Ok);
    }

    #[test]
    fn an_interface_needs_an_mtu_that_a_frame_holds_and_a_queue_a_worker() {
        let queues = |combined| Queues { rx: 0, combined, rx_max: 0, combined_max: 2 };
        assert_eq!(interface("e0", Some(1500), queues(2), 2).state, State::Ok);
        assert_eq!(interface("e0", Some(9000), queues(2), 2).fix, "ip link set e0 mtu 1778");
        let few = interface("e0", Some(1500), queues(1), 2);
        assert_eq!((few.state, few.fix.as_str()), (State::Missing, "ethtool -L e0 combined 2, or workers = 1"));
        assert_eq!(interface("e0", Some(1500), queues(2), 3).fix, "workers = 2", "the NIC has no more");
    }

    #[test]
    fn a_nic_must_hash_ports_and_use_all_workers_queues() {
        let nic = |inputs, table: &[u16]| Ok(Rss::new(&[7; KEY_BYTES], table.to_vec(), inputs));
        let found = |told, workers| {
            let Finding { state, fix, .. } = rss("e0", told, RuleSupport::None, workers);
            (state, fix)
        };
        assert_eq!(found(nic(Inputs::ALL, &[0, 1, 2, 3]), 2), (State::Ok, String::new()));
        assert_eq!(found(nic(Inputs::ALL, &[0, 2, 3]), 2).0, State::Ok, "worker 1 has queue 3, too");
        let udp_deaf = Inputs { udp4: Some(Input::Addresses), ..Inputs::ALL };
        let fix = "ethtool -N e0 rx-flow-hash udp4 sdfn";
        assert_eq!(found(nic(udp_deaf, &[0, 1]), 2), (State::Slow, fix.to_owned()));
        assert_eq!(found(nic(udp_deaf, &[0, 1]), 1).0, State::Ok, "one worker has all there is");
        let both_deaf = Inputs { tcp4: None, ..udp_deaf };
        let fixes = format!("{fix}; ethtool -N e0 rx-flow-hash tcp4 sdfn; ethtool -X e0 equal 2");
        assert_eq!(found(nic(both_deaf, &[0, 2]), 2), (State::Slow, fixes));
        assert_eq!(found(Ok(None), 2).0, State::Slow);
        assert_eq!(found(Err(nix::errno::Errno::EOPNOTSUPP), 2), (State::Ok, String::new()), "nothing can be done");
    }

    #[test]
    fn a_nic_whose_hash_is_of_no_use_may_take_rules() {
        let deaf = Inputs { udp4: Some(Input::Addresses), ..Inputs::ALL };
        let deaf = || Ok(Rss::new(&[7; KEY_BYTES], vec![0, 1], deaf));
        let found = |told, rules| {
            let Finding { state, fix, .. } = rss("e0", told, rules, 2);
            (state, fix)
        };
        let not_told = || Err(nix::errno::Errno::EOPNOTSUPP);
        assert_eq!(found(not_told(), RuleSupport::On), (State::Ok, String::new()));
        assert_eq!(found(not_told(), RuleSupport::Off), (State::Slow, "ethtool -K e0 ntuple on".to_owned()));
        for rules in [RuleSupport::On, RuleSupport::Off] {
            assert_eq!(found(deaf(), rules).1, "ethtool -N e0 rx-flow-hash udp4 sdfn", "not every NIC can do ours");
        }
        assert_eq!(
            found(Ok(None), RuleSupport::Off).1,
            "ethtool -X e0 hfunc toeplitz (and xfrm none), or ethtool -K e0 ntuple on"
        );
    }

    #[test]
    fn what_is_not_there_is_missing() {
        assert_eq!(af_xdp("TCP  1\nXDP  1088\n").state, State::Ok);
        assert_eq!(af_xdp("TCP  1\n").state, State::Missing);
        assert_eq!(bpf(false, "").state, State::Missing);
        assert_eq!(bpf(true, "0\n").state, State::Slow);
        assert_eq!(bpf(true, "").state, State::Ok, "in a network namespace it is not shown");
        assert_eq!(wall_clock(0).state, State::Missing);
    }
}
