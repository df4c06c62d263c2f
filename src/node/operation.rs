//! What an operator changes at a running node: its `[gateway]` by an edited file, and whether it takes new flows.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    config::NodeConfig,
    control_thread::{ControlSender, Input},
    kernel,
    process::check_addresses,
    views::Facts,
};
use crate::dataplane::gateway::Gateway;

/// How long the control core may take to do it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Read `[gateway]` anew.
    Reload,
    /// Take no new flows (true), or take them again.
    Drain(bool),
}

impl Order {
    /// The order of this name in a request.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "reload" => Some(Self::Reload),
            "drain" => Some(Self::Drain(true)),
            "undrain" => Some(Self::Drain(false)),
            _ => None,
        }
    }

    /// Carries it out; what the operator is told.
    pub(super) async fn carry_out(self, control: &ControlSender, facts: &Arc<Facts>) -> Result<Value, String> {
        if facts.config.gateway.is_none() {
            return Err(format!("{}: this node is no gateway", facts.config.file.display()));
        }
        let (answer, answered) = oneshot::channel();
        let gateway = match self {
            Self::Reload => Some(read(facts)?),
            Self::Drain(_) => None,
        };
        let counts = gateway.as_ref().map(|gateway| {
            json!({
                "addresses": gateway.addresses.len() + gateway.addresses6.len(),
                "mappings": gateway.mappings.len(),
                "exempt": gateway.exempt.len() + gateway.exempt6.len(),
            })
        });
        control.send(match (self, gateway) {
            (Self::Drain(is_draining), _) => Input::Drain { is_draining, answer },
            (Self::Reload, gateway) => Input::Gateway { gateway: gateway.unwrap_or_default(), answer },
        });
        let Ok(Ok(done)) = tokio::time::timeout(PATIENCE, answered).await else {
            return Err("the control core did not answer in time".to_owned());
        };
        let bindings = done.map_err(|why| format!("{}: {why}; nothing was reloaded", facts.config.file.display()))?;
        Ok(match (self, counts) {
            (Self::Drain(is_draining), _) => json!({ "is_draining": is_draining, "bindings": bindings }),
            (Self::Reload, counts) => {
                let mut answer = counts.unwrap_or_default();
                answer["bindings"] = bindings.into();
                answer
            }
        })
    }
}

/// The file as it is now. An error where what changed needs a new start: then nothing is changed at all.
fn read(facts: &Facts) -> Result<Gateway, String> {
    let config = &facts.config;
    let new = NodeConfig::load(&config.file).map_err(|error| error.to_string())?;
    let fixed = config.fixed_differences(&new);
    if !fixed.is_empty() {
        let message = "changed, which takes a new start of the node; nothing was reloaded";
        return Err(format!("{}: {} {message}", config.file.display(), fixed.join(", ")));
    }
    let (local, local6) = kernel::local_addresses()
        .and_then(|local| Ok((local, kernel::local_addresses6()?)))
        .map_err(|error| error.to_string())?;
    check_addresses(&new, &local, &local6).map_err(|error| format!("{}: {error}", config.file.display()))?;
    new.gateway.map(|gateway| gateway.resolve(&config.interfaces)).ok_or_else(|| "[gateway] is gone".to_owned())
}
