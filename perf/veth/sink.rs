//! Where frames end: counted and dropped by an XDP program.

use std::{io, time::Instant};

use aya::{
    EbpfLoader,
    maps::PerCpuArray,
    programs::{Xdp, xdp::XdpMode},
};

use crate::{Outcome, TRAFFIC};

/// Answers each line of standard input by nanoseconds since the start and packets since then; ends with the input.
pub(crate) fn run(interface: &str) -> Outcome {
    let mut ebpf = EbpfLoader::new().map_max_entries("frames", 1).load(TRAFFIC)?;
    let program: &mut Xdp = ebpf.program_mut("perf_sink").expect("it has this program").try_into()?;
    program.load()?;
    program.attach(interface, XdpMode::Driver)?;
    let counts: PerCpuArray<_, u64> = ebpf.map("counts").expect("it has this map").try_into()?;
    let start = Instant::now();
    for line in io::stdin().lines() {
        line?;
        let packets: u64 = counts.get(&0, 0)?.iter().sum();
        println!("{} {packets}", start.elapsed().as_nanos());
    }
    Ok(())
}
