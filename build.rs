//! Compiles the XDP program with clang to `OUT_DIR/starnet.bpf.o`, which the driver embeds.
//!
//! `CLANG` and `LLVM_STRIP` name other tools than the ones on the path.

use std::{
    env,
    path::Path,
    process::{Command, exit},
};

const SOURCE: &str = "bpf/starnet.bpf.c";

fn main() {
    for file in [SOURCE, "bpf/bpf.h"] {
        println!("cargo:rerun-if-changed={file}");
    }
    for variable in ["CLANG", "LLVM_STRIP"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let object = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("starnet.bpf.o");

    // -g makes the BTF that describes the maps; the DWARF that comes with it is of no use to the loader, so strip it.
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    run(
        Command::new(clang)
            .args([
                "-target",
                "bpf",
                "-mcpu=v3",
                "-O2",
                "-g",
                "-std=gnu11",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-c",
                SOURCE,
            ])
            .arg("-o")
            .arg(&object),
        "clang",
    );
    let strip = env::var("LLVM_STRIP").unwrap_or_else(|_| "llvm-strip".into());
    run(Command::new(strip).arg("-g").arg(&object), "llvm-strip");
}

/// Runs a tool, or ends the build with one line that says what to do.
fn run(command: &mut Command, tool: &str) {
    let failure = match command.status() {
        Ok(status) if status.success() => return,
        Ok(status) => format!("{tool} failed on {SOURCE} ({status}); its messages are above"),
        Err(error) => format!(
            "cannot run {:?}: {error}; the XDP program needs {tool} (Debian: apt-get install clang llvm), \
             or set CLANG and LLVM_STRIP",
            command.get_program()
        ),
    };
    eprintln!("error: {failure}");
    exit(1);
}
