//! Checks the examples in `docs/WIRE.md`: a block that starts with ```` ```hex NAME ```` has bytes at the start of
//! each line, and after two spaces what they are.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    dataplane::conntrack::CtIndex,
    rpc::{
        codec::encode,
        messages::{FailureReason, LinkEnd, Request, Response, SessionKind, SetUp, Setup},
        token::{self, Claims},
    },
    wire::{
        relay::{self, Header, HopKey, Kind},
        write,
    },
};

const DOCUMENT: &str = include_str!("../../docs/WIRE.md");
const KEY: HopKey = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The lines of the block that starts with ```` ```KIND NAME ````.
fn block(title: &str) -> impl Iterator<Item = &'static str> {
    let title = format!("```{title}");
    let mut lines = DOCUMENT.lines();
    assert!(lines.any(|line| line == title), "the document has no block {title}");
    lines.take_while(|line| *line != "```")
}

fn hex(name: &str) -> Vec<u8> {
    block(&format!("hex {name}"))
        .flat_map(|line| line.split("  ").next().unwrap_or("").split(' '))
        .map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{name}: '{byte}' is not a byte")))
        .collect()
}

fn assert_example(name: &str, bytes: &[u8]) {
    let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex(name), bytes, "{name} should be {}", text.join(" "));
}

fn claims() -> Claims {
    Claims {
        client: "alice".into(),
        expires: 1_800_003_600,
        not_before: 1_800_000_000,
        exits: Some(vec!["exit-1".into()]),
        paths_max: 2,
        sessions_max: 8,
    }
}

#[test]
fn relay_packets_are_as_documented() {
    let mut header = [0; relay::HEADER_BYTES];
    let fields =
        Header { kind: Kind::DataUp, path: 1, generation: 0x0203, ct_index: CtIndex::new(1, 13).0, sequence: 42 };
    relay::emit(&mut header, &fields, &KEY);
    assert_example("relay-header", &header);
    relay::emit_between_nodes(&mut header, &fields, &KEY);
    assert_example("relay-header-between-nodes", &header);

    let mut probe = [0; relay::HEADER_BYTES + relay::PROBE_BYTES];
    let fields = Header { kind: Kind::Probe, path: 0, generation: 0, ct_index: 0, sequence: 7 };
    relay::emit(&mut probe, &fields, &KEY);
    write(&mut probe, relay::HEADER_BYTES, &1_000_000_000u64.to_be_bytes());
    assert_example("probe", &probe);
}

#[test]
fn tokens_are_as_documented() {
    assert_example("token-claims", &postcard::to_stdvec(&claims()).unwrap());
    let token = block("text token").next().unwrap();
    let key = hex("token-key").try_into().unwrap();
    assert_eq!(token::verify(token, &key, claims().not_before), Ok(claims()));
}

#[test]
fn control_messages_are_as_documented() {
    let end = |last, slot| LinkEnd {
        data: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 40_000),
        ct_index: CtIndex::new(0, slot),
        generation: 300,
        source_port: 40_007,
    };
    let setup = Request::Setup(Setup {
        token: "t".into(),
        entry: "in".into(),
        session: [0xaa; 16],
        kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
        mtu: 1400,
        path: 1,
        route: vec!["out".into()],
        upstream: end(1, 5),
        boot_epoch: 1,
    });
    assert_example("setup", &encode(&setup).unwrap());
    let set_up = Response::SetUp(SetUp {
        downstream: end(2, 6),
        key: KEY,
        exit_address: Ipv4Addr::new(192, 0, 2, 2),
        exit_address6: None,
        boot_epoch: 2,
    });
    assert_example("set-up", &encode(&set_up).unwrap());
}

#[test]
fn choices_have_the_documented_numbers() {
    let number = |bytes: Vec<u8>| bytes[0];
    let rows = |heading: &str| {
        let section = DOCUMENT.split(heading).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
        let rows =
            section.lines().skip_while(|line| !line.starts_with("| 0 |")).take_while(|line| line.starts_with('|'));
        rows.map(|row| row.split(['|', ':']).map(str::trim).nth(2).unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let reasons = rows("| number | reason |");
    let all = [
        FailureReason::BadRequest,
        FailureReason::Unauthorised,
        FailureReason::TokenExpired,
        FailureReason::NotAllowed,
        FailureReason::UnknownNode,
        FailureReason::Unreachable,
        FailureReason::SlotsExhausted,
        FailureReason::PortsExhausted,
        FailureReason::DestinationDenied,
        FailureReason::Busy,
        FailureReason::UnknownSession,
        FailureReason::Silent,
        FailureReason::Pending,
    ];
    assert_eq!(reasons.len(), all.len());
    for (at, reason) in all.into_iter().enumerate() {
        assert_eq!(number(postcard::to_stdvec(&reason).unwrap()), at as u8);
        assert_eq!(reasons[at], format!("{reason:?}"));
    }
    assert_eq!(rows("### Requests"), ["Register", "Report", "Topology", "Open", "Close", "Setup", "Teardown"],);
    assert_eq!(rows("### Responses"), ["Neighbours", "Topology", "Opened", "SetUp", "Closed", "Failed"]);
    let close = Request::Close { token: String::new(), session: [0; 16] };
    assert_eq!(number(postcard::to_stdvec(&close).unwrap()), 4);
    assert_eq!(number(postcard::to_stdvec(&Response::Closed).unwrap()), 4);
}
