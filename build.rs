//! Compiles the BPF programs with clang: `OUT_DIR/starnet.bpf.o`, which the driver embeds, and `OUT_DIR/traffic.bpf.o`,
//! which the measurements on veth embed.
//!
//! `CLANG` and `LLVM_STRIP` name other tools than the ones on the path.

use std::{
    env,
    path::Path,
    process::{Command, exit},
};

const SOURCES: [&str; 2] = ["bpf/starnet.bpf.c", "perf/veth/traffic.bpf.c"];

fn main() {
    println!("cargo:rerun-if-changed=bpf/bpf.h");
    for variable in ["CLANG", "LLVM_STRIP"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
        compile(Path::new(source));
    }
}

fn compile(source: &Path) {
    let name = source.file_stem().expect("a source is a file");
    let object = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(name).with_added_extension("o");

    // -g makes the BTF that describes the maps; the DWARF that comes with it is of no use to the loader, so strip it.
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    run(
        Command::new(clang)
            .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-c"])
            .arg(source)
            .arg("-o")
            .arg(&object),
        "clang",
        source,
    );
    let strip = env::var("LLVM_STRIP").unwrap_or_else(|_| "llvm-strip".into());
    run(Command::new(strip).arg("-g").arg(&object), "llvm-strip", source);
}

/// Runs a tool, or ends the build with one line that says what to do.
fn run(command: &mut Command, tool: &str, source: &Path) {
    let failure = match command.status() {
        Ok(status) if status.success() => return,
        Ok(status) => format!("{tool} failed on {} ({status}); its messages are above", source.display()),
        Err(error) => format!(
            "cannot run {:?}: {error}; the BPF programs need {tool} (Debian: apt-get install clang llvm), \
             or set CLANG and LLVM_STRIP",
            command.get_program()
        ),
    };
    eprintln!("error: {failure}");
    exit(1);
}
