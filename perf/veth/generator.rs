//! Sends prepared frames without ever leaving the kernel.

use std::path::Path;

use aya::{EbpfLoader, TestRun, TestRunAttrs, TestRunOptions, maps::Array, programs::Xdp};
use nix::net::if_::if_nametoindex;

use crate::{
    Outcome, TRAFFIC,
    frames::{FRAME_BYTES_MAX, Frames},
};

/// Frames that are made before they are sent together. The ring between the two ends of a veth holds 256.
const BATCH: u32 = 64;

/// Says when it begins. Does not end by itself: a call takes so many frames that it is over after hours, and a signal ends it.
pub(crate) fn run(interface: &str, file: &Path) -> Outcome {
    let frames = Frames::load(file)?;
    let index = if_nametoindex(interface).map_err(|error| format!("{interface}: {error}"))?;
    let (size, count) = (frames.size as u32, frames.iter().count() as u32);
    let mut ebpf = EbpfLoader::new()
        .override_global("interface", &index, true)
        .override_global("frame_bytes", &size, true)
        .override_global("frame_count", &count, true)
        .map_max_entries("frames", count)
        .load(TRAFFIC)?;
    let mut map: Array<_, [u8; FRAME_BYTES_MAX]> = ebpf.map_mut("frames").expect("it has this map").try_into()?;
    for (number, frame) in frames.iter().enumerate() {
        let mut value = [0; FRAME_BYTES_MAX];
        value[..frame.len()].copy_from_slice(frame);
        map.set(number as u32, value, 0)?;
    }
    let program: &mut Xdp = ebpf.program_mut("perf_generate").expect("it has this program").try_into()?;
    program.load()?;
    println!("sending");
    let template = vec![0; frames.size];
    loop {
        program.test_run(TestRunOptions {
            data_in: Some(&template),
            repeat: i32::MAX as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
    }
}
