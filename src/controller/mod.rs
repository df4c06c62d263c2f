//! The control centre: knows the nodes and what lies between them, and whose word on it to take.
//!
//! [`registry`] holds what nodes said and decides what others are told; [`Controller`] says who may ask what. Both
//! are sans-IO. [`process`] puts them behind QUIC and the operator's socket. Clients' tokens are issued offline
//! ([`crate::rpc::token`]); the control centre checks them and hands their public key to the nodes.

pub mod config;
mod metrics;
pub mod process;
pub mod registry;
pub mod show;

pub use config::ControllerConfig;
pub use process::{RunError, run};
pub use registry::{Links, Registry};

use crate::{
    Nanos,
    control::interface::Caller,
    rpc::{
        messages::{Failure, FailureReason, Register, Report, Request, Response},
        token,
    },
};

/// The name the control centre gives itself in failures.
pub const NAME: &str = "controller";

/// Answers requests.
#[derive(Debug)]
pub struct Controller {
    registry: Registry,
    token_key: [u8; 32],
    requests: Requests,
}

/// Requests since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Nodes that presented themselves.
    pub registers: u64,
    /// Nodes' reports.
    pub reports: u64,
    /// Clients that wanted to know the topology.
    pub topologies: u64,
    /// What is not for a control centre.
    pub others: u64,
    /// Of all of them: refused.
    pub refused: u64,
}

impl Controller {
    /// A control centre that knows no node yet. `token_key` is the public half of the key that signs tokens.
    pub fn new(links: Links, token_key: [u8; 32]) -> Self {
        Self { registry: Registry::new(links), token_key, requests: Requests::default() }
    }

    /// What nodes said.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How much it was asked.
    pub fn requests(&self) -> Requests {
        self.requests
    }

    /// Answers one request. `unix_seconds` is the wall clock, for tokens only.
    pub fn handle(&mut self, caller: &Caller, request: Request, now: Nanos, unix_seconds: u64) -> Response {
        let requests = &mut self.requests;
        let count = match &request {
            Request::Register(_) => &mut requests.registers,
            Request::Report(_) => &mut requests.reports,
            Request::Topology { .. } => &mut requests.topologies,
            _ => &mut requests.others,
        };
        *count += 1;
        let response = match request {
            Request::Register(register) => self.register(caller, register, now),
            Request::Report(report) => self.report(caller, &report, now),
            Request::Topology { token } => token::verify(&token, &self.token_key, unix_seconds)
                .map(|_| Response::Topology(self.registry.topology(now)))
                .map_err(FailureReason::from),
            Request::Open(_) | Request::Close { .. } | Request::Setup(_) | Request::Teardown(_) => {
                Err(FailureReason::BadRequest)
            }
        };
        response.unwrap_or_else(|reason| {
            tracing::debug!(?caller, %reason, "refused");
            self.requests.refused += 1;
            Response::Failed(Failure { hop: NAME.to_owned(), reason })
        })
    }

    fn register(&mut self, caller: &Caller, register: Register, now: Nanos) -> Result<Response, FailureReason> {
        let name = register.node.name.clone();
        check_is_itself(caller, &name)?;
        self.registry.register(register, now)?;
        Ok(self.neighbours(&name, now))
    }

    fn report(&mut self, caller: &Caller, report: &Report, now: Nanos) -> Result<Response, FailureReason> {
        check_is_itself(caller, &report.name)?;
        self.registry.report(report, now)?;
        Ok(self.neighbours(&report.name, now))
    }

    fn neighbours(&self, name: &str, now: Nanos) -> Response {
        Response::Neighbours(crate::rpc::messages::Neighbours {
            nodes: self.registry.neighbours_of(name, now),
            token_key: self.token_key,
        })
    }
}

/// A node speaks for itself only.
fn check_is_itself(caller: &Caller, name: &str) -> Result<(), FailureReason> {
    match caller {
        Caller::Node(caller) if caller == name => Ok(()),
        _ => Err(FailureReason::Unauthorised),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{registry::tests::register, *};
    use crate::{
        SECOND,
        rpc::{
            messages::{LinkQuality, LinkReport, Open, SessionKind},
            token::{Claims, SigningKey, issue},
        },
    };

    const UNIX: u64 = 1_800_000_000;

    fn node(name: &str) -> Caller {
        Caller::Node(name.to_owned())
    }

    fn client() -> Caller {
        Caller::Client(Ipv4Addr::new(192, 0, 2, 99))
    }

    fn token(key: &SigningKey) -> String {
        let claims = Claims {
            client: "alice".into(),
            expires: UNIX + 600,
            not_before: UNIX,
            exits: None,
            paths_max: 2,
            sessions_max: 4,
        };
        issue(&claims, key)
    }

    fn reason(response: Response) -> FailureReason {
        match response {
            Response::Failed(Failure { hop, reason }) if hop == NAME => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_registers_and_reports_and_a_client_plans_with_it() {
        let key = SigningKey::generate();
        let mut centre = Controller::new(Links::FullMesh, key.public());
        for (name, last) in [("a", 1), ("b", 2)] {
            let answer = centre.handle(&node(name), Request::Register(register(name, last, 7)), SECOND, UNIX);
            let Response::Neighbours(neighbours) = answer else { panic!("{answer:?}") };
            assert_eq!(neighbours.token_key, key.public());
            assert_eq!(neighbours.nodes.len(), usize::from(last) - 1, "those that came before");
        }
        let quality = LinkQuality { probes: 10, rtt_p50_us: 5000, ..LinkQuality::default() };
        let report = Report { name: "a".into(), boot_epoch: 7, links: vec![LinkReport { to: "b".into(), quality }] };
        let answer = centre.handle(&node("a"), Request::Report(report), 2 * SECOND, UNIX);
        let Response::Neighbours(neighbours) = answer else { panic!("{answer:?}") };
        assert_eq!(neighbours.nodes[0].node.name, "b");
        assert_eq!(neighbours.nodes[0].probe_key, register("b", 2, 7).probe_key);

        let answer = centre.handle(&client(), Request::Topology { token: token(&key) }, 2 * SECOND, UNIX);
        let Response::Topology(topology) = answer else { panic!("{answer:?}") };
        assert_eq!(topology.nodes.len(), 2);
        assert!(topology.links.iter().any(|link| link.from == "a" && link.to == "b" && link.quality == quality));
    }

    #[test]
    fn nobody_speaks_for_another_node() {
        let mut centre = Controller::new(Links::FullMesh, [0; 32]);
        for caller in [node("b"), client()] {
            let answer = centre.handle(&caller, Request::Register(register("a", 1, 7)), 0, UNIX);
            assert_eq!(reason(answer), FailureReason::Unauthorised);
            let report = Report { name: "a".into(), boot_epoch: 7, links: vec![] };
            assert_eq!(reason(centre.handle(&caller, Request::Report(report), 0, UNIX)), FailureReason::Unauthorised);
        }
        assert!(centre.registry().topology(0).nodes.is_empty());
    }

    #[test]
    fn the_topology_takes_a_valid_token_even_of_a_node() {
        let key = SigningKey::generate();
        let mut centre = Controller::new(Links::FullMesh, key.public());
        let mut ask =
            |caller: &Caller, token: String, unix| reason(centre.handle(caller, Request::Topology { token }, 0, unix));
        assert_eq!(ask(&client(), String::new(), UNIX), FailureReason::Unauthorised);
        assert_eq!(ask(&node("a"), String::new(), UNIX), FailureReason::Unauthorised);
        assert_eq!(ask(&client(), token(&SigningKey::generate()), UNIX), FailureReason::Unauthorised);
        assert_eq!(ask(&client(), token(&key), UNIX + 3600), FailureReason::TokenExpired);
    }

    #[test]
    fn what_is_meant_for_a_node_is_a_bad_request() {
        let mut centre = Controller::new(Links::FullMesh, [0; 32]);
        let open = Open {
            token: String::new(),
            session: [0; 16],
            kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
            mtu: 1400,
            paths: vec![],
        };
        assert_eq!(reason(centre.handle(&node("a"), Request::Open(open), 0, UNIX)), FailureReason::BadRequest);
    }
}
