//! The command line: what is asked for, and how the answer and a failure look.
//!
//! Exit status: 0 done, 1 it failed while running, 2 the command line or a file it names is wrong. A failure is
//! one line on stderr: `starnet: …`.

mod cert;
mod client;
mod doctor;
mod log;
mod operate;
mod show;
mod token;

use std::{
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    config_file::ConfigError,
    controller::{self, ControllerConfig},
    node::{self, NodeError},
    telemetry::operator::AskError,
};

/// A packet relay appliance: carries IP packets over several paths at once, AF_XDP in, AF_XDP out.
#[derive(Parser, Debug)]
#[command(name = "starnet", version, max_term_width = 100, disable_help_subcommand = true)]
struct Arguments {
    /// Say more on stderr: once for details, twice for everything (RUST_LOG overrides)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a node: entry, relay, exit or gateway (needs root)
    Node {
        /// Its TOML file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run the control centre: knows the nodes and what lies between them
    Controller {
        /// Its TOML file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run a client: carries packets of a TUN device or of forwarded ports
    Client(client::Arguments),
    /// Make certificates for a small deployment
    #[command(subcommand)]
    Cert(cert::Command),
    /// Make the key that tokens are signed with, and issue tokens to clients
    #[command(subcommand)]
    Token(token::Command),
    /// Show what a running node, control centre or client does
    Show(show::Arguments),
    /// Have a running gateway read static mappings, exempt networks and outside addresses anew; flows that there are go on
    ///
    /// The same as SIGHUP. What cannot change while the node runs is refused, and then nothing is changed.
    Reload(operate::Reload),
    /// Have a running gateway take no new flows, and say how many are left
    Drain(operate::Drain),
    /// Clear a table of a running node
    #[command(subcommand)]
    Clear(operate::Clear),
    /// Check whether this machine can run a node, and say what to do where it cannot
    Doctor(doctor::Arguments),
    /// Disturb a running node, for tests and measurements
    #[command(subcommand, hide = true)]
    Debug(operate::Debug),
    /// Print the version
    Version,
}

/// Why a command ended badly.
#[derive(Debug)]
enum Failure {
    /// The command line or a file it names is wrong: nothing was started.
    Usage(String),
    /// It failed while running.
    Runtime(String),
}

impl Failure {
    fn runtime(error: impl fmt::Display) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::runtime(error)
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        if error.is_configuration() { Self::Usage(error.to_string()) } else { Self::runtime(error) }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs the command in the process's arguments; returns its exit status.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => return finish(print(&error.render().to_string())),
        Err(error) => return finish(Err(Failure::Usage(usage_line(&error.render().to_string())))),
    };
    log::start(arguments.verbose);
    finish(match arguments.command {
        Command::Node { config } => node::run(&config).map_err(Failure::from),
        Command::Controller { config } => run_controller(&config),
        Command::Client(arguments) => client::run(arguments),
        Command::Cert(command) => cert::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Show(arguments) => show::run(&arguments),
        Command::Reload(arguments) => operate::reload(&arguments),
        Command::Drain(arguments) => operate::drain(&arguments),
        Command::Clear(what) => operate::clear(&what),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Debug(what) => operate::debug(&what),
        Command::Version => print(concat!("starnet ", env!("CARGO_PKG_VERSION"), "\n")),
    })
}

fn run_controller(config: &Path) -> Result<(), Failure> {
    controller::run(&ControllerConfig::load(config)?).map_err(Failure::runtime)
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    let (code, message) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Runtime(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
    };
    // An empty message: the command has said all there is on stdout.
    if !message.is_empty() {
        eprintln!("starnet: {}", message.trim_end());
    }
    ExitCode::from(code)
}

/// Writes to stdout. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::runtime(format!("stdout: {error}"))),
        _ => Ok(()),
    }
}

/// clap's message in one line, without its prefix and its usage text.
fn usage_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let text: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    let text = text.join(" ");
    match text.strip_prefix("error: ") {
        Some(text) => format!("{text} (see starnet --help)"),
        // No subcommand: clap gives the help text instead of an error.
        None => "no command was given (see starnet --help)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refusal(arguments: &[&str]) -> String {
        let error = Arguments::try_parse_from(["starnet"].iter().chain(arguments)).unwrap_err();
        usage_line(&error.render().to_string())
    }

    #[test]
    fn the_definition_of_the_arguments_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line() {
        assert_eq!(
            refusal(&["node"]),
            "the following required arguments were not provided: --config <FILE> (see starnet --help)"
        );
        assert_eq!(refusal(&["frobnicate"]), "unrecognized subcommand 'frobnicate' (see starnet --help)");
        assert_eq!(refusal(&[]), "no command was given (see starnet --help)");
    }
}
