//! `starnet cert`: certificates for a small deployment.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Failure, print};
use crate::rpc::cert::{self, CertError, Made};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Make the authority that signs all other certificates
    Ca {
        #[command(flatten)]
        place: Place,
    },
    /// Make the control centre's certificate and key
    Controller {
        #[command(flatten)]
        place: Place,
    },
    /// Make a node's certificate and key
    Node {
        /// The node's name: a DNS label in lower case
        name: String,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Place {
    /// The folder of the authority and of what it signs
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Replace existing files; a replaced authority makes all it signed worthless
    #[arg(long)]
    force: bool,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    let made: Result<Made, CertError> = match command {
        Command::Ca { place } => cert::make_ca(&place.dir, place.force),
        Command::Controller { place } => cert::make_controller(&place.dir, place.force),
        Command::Node { name, place } => cert::make_node(&place.dir, name, place.force),
    };
    let made = made.map_err(Failure::runtime)?;
    print(&format!("{}\n{}\n", made.certificate.display(), made.key.display()))
}
