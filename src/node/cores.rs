//! Which processor each thread of the data plane runs on.
//!
//! Workers go to physical cores of their own, as near to the NIC as there are, the control core to another one. Where the
//! machine has too few they share, and the log says so.

use std::{collections::HashMap, fs};

use hwloc2::{ObjectType, Topology};

/// A logical processor that this process may run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// The kernel's number.
    pub id: usize,
    /// The physical core: hardware threads of one core have the same number.
    pub core: usize,
    /// The NUMA node, where the kernel tells.
    pub node: Option<usize>,
}

/// The processor of each thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// By worker.
    pub workers: Vec<usize>,
    /// Of the control core.
    pub control: usize,
}

/// Chooses processors for `workers` workers and the control core, out of those this process may use, near
/// `interfaces`. Call it before any thread is pinned: a pinned thread sees no processor but its own.
pub fn place(workers: usize, interfaces: &[&str]) -> Placement {
    let cpus = usable_cpus();
    let near = numa_node_of(interfaces);
    let placement = choose(&cpus, near, workers);
    let (threads, cores) = (workers + 1, count_cores(&cpus));
    if cores < threads {
        tracing::warn!(
            threads,
            cores,
            ?placement,
            "fewer physical cores than threads of the data plane: they share, and latency suffers"
        );
    } else {
        tracing::info!(?placement, numa_node = ?near, "processors chosen");
    }
    placement
}

/// Binds the calling thread to a processor. Where that is refused the thread runs unbound, with a warning.
pub fn pin(thread: &str, cpu: usize) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        tracing::warn!(thread, cpu, "cannot bind the thread to its processor; is it in the cpuset of this process?");
    }
}

/// The choice itself. Panics where there is no processor.
///
/// Best first: a core of its own before a hardware thread that shares one, near before far, and processor 0 last of its
/// kind, as the kernel's housekeeping and often the NIC's other interrupts run there. Workers choose first.
pub fn choose(cpus: &[Cpu], near: Option<usize>, workers: usize) -> Placement {
    assert!(!cpus.is_empty(), "a process runs on at least one processor");
    let mut threads_before = HashMap::new();
    let mut ranked: Vec<_> = cpus
        .iter()
        .map(|cpu| {
            let thread_of_core = threads_before.entry(cpu.core).or_insert(0);
            *thread_of_core += 1;
            let is_far = near.is_some() && cpu.node != near;
            ((*thread_of_core, is_far, cpu.id == 0, cpu.id), *cpu)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let best_first: Vec<Cpu> = ranked.into_iter().map(|(_, cpu)| cpu).collect();

    let chosen: Vec<Cpu> = best_first.iter().copied().cycle().take(workers).collect();
    let is_core_free = |cpu: &&Cpu| chosen.iter().all(|other| other.core != cpu.core);
    let is_free = |cpu: &&Cpu| chosen.iter().all(|other| other.id != cpu.id);
    let control = best_first
        .iter()
        .find(is_core_free)
        .or_else(|| best_first.iter().find(is_free))
        // All are taken: the last one has the fewest workers.
        .unwrap_or(&best_first[best_first.len() - 1]);
    Placement { workers: chosen.iter().map(|cpu| cpu.id).collect(), control: control.id }
}

fn count_cores(cpus: &[Cpu]) -> usize {
    let mut cores: Vec<_> = cpus.iter().map(|cpu| cpu.core).collect();
    cores.sort_unstable();
    cores.dedup();
    cores.len()
}

/// The processors this thread may run on; each a core of its own where the topology is unknown.
fn usable_cpus() -> Vec<Cpu> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let ids = if ids.is_empty() { vec![core_affinity::CoreId { id: 0 }] } else { ids };
    let topology = Topology::new();
    // Only what is sound in this binding: objects by type, and their CPU sets.
    let cores = topology.as_ref().and_then(|topology| topology.objects_with_type(&ObjectType::Core).ok());
    let core_sets: Vec<_> = cores.unwrap_or_default().iter().filter_map(|core| core.cpuset()).collect();
    let nodes = numa_nodes();
    ids.iter()
        .map(|id| {
            let core = core_sets.iter().position(|set| set.is_set(id.id as u32));
            let node = nodes.iter().find(|(_, cpus)| cpus.contains(&id.id)).map(|(node, _)| *node);
            Cpu { id: id.id, core: core.unwrap_or(core_sets.len() + id.id), node }
        })
        .collect()
}

/// The NUMA nodes and their processors.
fn numa_nodes() -> Vec<(usize, Vec<usize>)> {
    let Ok(directory) = fs::read_dir("/sys/devices/system/node") else { return Vec::new() };
    directory
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let node = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            Some((node, parse_cpu_list(&fs::read_to_string(entry.path().join("cpulist")).ok()?)?))
        })
        .collect()
}

/// Reads a list like `0-3,8,10-11`.
fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

/// The NUMA node most of the interfaces are on; virtual ones are on none.
fn numa_node_of(interfaces: &[&str]) -> Option<usize> {
    let mut counts = HashMap::new();
    for interface in interfaces {
        let path = format!("/sys/class/net/{interface}/device/numa_node");
        // -1 where there is but one node.
        if let Some(node) = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<usize>().ok()) {
            *counts.entry(node).or_insert(0) += 1;
        }
    }
    counts.into_iter().max_by_key(|(node, count)| (*count, usize::MAX - node)).map(|(node, _)| node)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sockets of four cores of two threads, numbered as Linux does: siblings are 8 apart, nodes alternate in blocks.
    fn two_sockets() -> Vec<Cpu> {
        (0..16).map(|id| Cpu { id, core: id % 8, node: Some(id % 8 / 4) }).collect()
    }

    fn placement(workers: &[usize], control: usize) -> Placement {
        Placement { workers: workers.into(), control }
    }

    #[test]
    fn workers_get_physical_cores_near_the_nic_and_the_control_core_another() {
        assert_eq!(choose(&two_sockets(), Some(1), 3), placement(&[4, 5, 6], 7));
        assert_eq!(choose(&two_sockets(), Some(0), 3), placement(&[1, 2, 3], 0));
    }

    #[test]
    fn a_far_core_is_better_than_a_shared_near_one() {
        assert_eq!(choose(&two_sockets(), Some(1), 5), placement(&[4, 5, 6, 7, 1], 2));
    }

    #[test]
    fn with_all_cores_busy_the_control_core_takes_a_free_hardware_thread() {
        let placement = choose(&two_sockets(), Some(0), 8);
        let mut workers = placement.workers.clone();
        workers.sort_unstable();
        assert_eq!((workers, placement.control), ((0..8).collect(), 8));
    }

    #[test]
    fn the_housekeeping_processor_is_left_to_the_control_core() {
        let cpus: Vec<_> = (0..2).map(|id| Cpu { id, core: id, node: None }).collect();
        assert_eq!(choose(&cpus, None, 1), placement(&[1], 0));
        assert_eq!(choose(&cpus, Some(3), 2), placement(&[1, 0], 0));
    }

    #[test]
    fn more_threads_than_processors_share_them_evenly() {
        let cpus: Vec<_> = [3, 5].map(|id| Cpu { id, core: id, node: Some(0) }).into();
        assert_eq!(choose(&cpus, Some(0), 3), placement(&[3, 5, 3], 5));
        assert_eq!(choose(&cpus[..1], None, 2), placement(&[3, 3], 3));
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(parse_cpu_list("\n"), Some(vec![]));
        assert_eq!(parse_cpu_list("0-"), None);
    }

    #[test]
    fn this_machine_has_a_placement_of_processors_it_may_use() {
        let cpus = usable_cpus();
        let placement = place(2, &["lo"]);
        assert!(placement.workers.iter().chain([&placement.control]).all(|id| cpus.iter().any(|cpu| cpu.id == *id)));
        let pinned = std::thread::spawn(move || {
            pin("test", placement.control);
            core_affinity::get_core_ids().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [core_affinity::CoreId { id: placement.control }]);
    }
}
