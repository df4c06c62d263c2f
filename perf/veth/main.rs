//! Both ends of a measurement on veth: makes frames, sends them as fast as the kernel can, counts what arrives.
//!
//! The cases under `perf/cases` run it in the namespaces they make; `perf/RESULTS.md` tells what they measured.
//!
//! It is an example of the crate and not a program beside it, as the wire of the testbed is: the frames for a relay need
//! real tags, and those come from real sessions, set up with the crate's own messages and certificates.

mod delay;
mod frames;
mod generator;
mod relay;
mod sink;
mod steady;

use std::{path::PathBuf, process::ExitCode};

use aya::include_bytes_aligned;
use clap::{Parser, Subcommand};

use self::frames::Flows;

/// What goes wrong here ends the program: a text for the one who measures.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The programs of `traffic.bpf.c`.
static TRAFFIC: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traffic.bpf.o"));

#[derive(Parser)]
#[command(about = "Makes, sends and counts the frames of a measurement")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write UDP frames of many flows to a file
    Frames {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        flows: Flows,
    },
    /// Be the neighbours of a relay, set sessions up through it, write frames of them to a file, and stay
    Relay {
        /// The file; it is complete when it is there
        file: PathBuf,
        #[command(flatten)]
        relay: relay::Neighbourhood,
    },
    /// Send the frames of a file round and round until killed, as fast as can be or at a rate
    Generate {
        /// The interface they leave by; its peer must be able to take redirected frames
        interface: String,
        /// The file
        file: PathBuf,
        /// Frames a second
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
    },
    /// Count and drop what arrives; for each line read, write nanoseconds and packets so far
    Sink {
        /// The interface
        interface: String,
    },
    /// Send one frame, wait for it spinning, again and again; write percentiles of the time it took
    Delay(delay::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Frames { file, flows } => flows.write(&file),
        Command::Relay { file, relay } => relay.run(&file),
        Command::Generate { interface, file, rate: None } => generator::run(&interface, &file),
        Command::Generate { interface, file, rate: Some(rate) } => steady::run(&interface, &file, rate),
        Command::Sink { interface } => sink::run(&interface),
        Command::Delay(arguments) => delay::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf-veth: {error}");
            ExitCode::FAILURE
        }
    }
}
