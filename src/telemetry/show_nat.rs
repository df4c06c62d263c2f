//! `starnet show nat` and `starnet clear nat`: questions a page at a time, and their answers as columns.

use std::{path::Path, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    operator::{self, AskError},
    table::{self, Table},
};
use crate::control::{
    page::Cursor,
    show_nat::{FlowView, HostView, InUse, NatFilter, NatPart, NatQuestion, NatSummary, PortsView},
};

/// What a question about the NAT begins with; a [`NatQuestion`] in JSON follows.
pub const ASK: &str = "nat ";

/// What an order to free bindings begins with; filter and cursor in JSON follow.
pub const CLEAR: &str = "clear-nat ";

/// The text of a question.
pub fn question(part: NatPart, filter: &NatFilter, after: Option<Cursor>, limit: usize) -> String {
    let question = NatQuestion { part, filter: filter.clone(), after, limit };
    format!("{ASK}{}", serde_json::to_string(&question).expect("a question can be written"))
}

/// Has the bindings that `filter` means freed; how many were.
///
/// # Errors
/// As the process refuses, or does not answer.
pub fn clear(socket: &Path, filter: &NatFilter) -> Result<u64, AskError> {
    let (mut cleared, mut after): (u64, Option<Cursor>) = (0, None);
    loop {
        let order = serde_json::to_string(&(filter, after)).expect("a filter can be written");
        let answer = operator::ask(socket, &format!("{CLEAR}{order}"))?;
        let (count, next): (u64, Option<Cursor>) = serde_json::from_value(answer).unwrap_or_default();
        cleared += count;
        after = next;
        if after.is_none() {
            return Ok(cleared);
        }
    }
}

/// An answer, or the rows of a page of it, as columns.
///
/// # Errors
/// What the answer is not, which happens between different versions.
pub fn columns(part: NatPart, answer: Value) -> Result<String, String> {
    Ok(match part {
        NatPart::Summary => summary(&read::<Vec<NatSummary>>(answer)?),
        NatPart::Flows => flows(&read::<Vec<FlowView>>(answer)?),
        NatPart::Hosts => hosts(&read::<Vec<HostView>>(answer)?),
        NatPart::Ports => ports(&read::<Vec<PortsView>>(answer)?),
    })
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("the answer is not understood: {error}"))
}

fn in_use(InUse { used, of }: InUse) -> String {
    format!("{used} of {of}")
}

fn summary(workers: &[NatSummary]) -> String {
    let mut table = Table::new([
        "worker",
        ">bindings",
        ">hosts",
        ">ICMP ids",
        ">TCP ports",
        ">UDP ports",
        ">waiting",
        ">first packets",
        ">p50",
        ">p99",
        ">max",
    ]);
    for view in workers {
        let [icmp, tcp, udp] = view.ports.map(in_use);
        table.row([
            view.worker.to_string(),
            in_use(view.bindings),
            view.hosts.to_string(),
            icmp,
            tcp,
            udp,
            view.waiting.to_string(),
            view.first_packets.to_string(),
            table::nanoseconds(view.first_packet_p50_ns),
            table::nanoseconds(view.first_packet_p99_ns),
            table::nanoseconds(view.first_packet_max_ns),
        ]);
    }
    table.to_string()
}

fn name(protocol: impl serde::Serialize) -> String {
    serde_json::to_value(protocol).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

fn flows(rows: &[FlowView]) -> String {
    let mut table =
        Table::new(["", "inside", "outside", "remote", "state", ">idle", ">left", ">packets", ">bytes", "owner"]);
    let time = |milliseconds| table::nanoseconds(Duration::from_millis(milliseconds).as_nanos() as u64);
    for view in rows {
        table.row([
            name(view.protocol),
            view.inside.to_string(),
            view.outside.to_string(),
            view.remote.map_or("any".to_owned(), |remote| remote.to_string()),
            view.state.clone(),
            time(view.idle_ms),
            view.left_ms.map_or("stays".to_owned(), time),
            view.packets.to_string(),
            table::bytes(view.bytes),
            view.owner.clone(),
        ]);
    }
    table.to_string()
}

fn hosts(rows: &[HostView]) -> String {
    let mut table =
        Table::new(["host", "outside", ">bindings", ">ICMP ids", ">TCP ports", ">UDP ports", "blocks", "owner"]);
    for view in rows {
        let blocks: Vec<String> =
            view.blocks.iter().map(|(protocol, first, last)| format!("{} {first}-{last}", name(protocol))).collect();
        let [icmp, tcp, udp] = view.ports.map(|count| count.to_string());
        table.row([
            view.host.to_string(),
            view.outside.to_string(),
            view.bindings.to_string(),
            icmp,
            tcp,
            udp,
            blocks.join(", "),
            view.owner.clone(),
        ]);
    }
    table.to_string()
}

fn ports(rows: &[PortsView]) -> String {
    let mut table = Table::new(["outside", "", ">worker", "range", ">leased", ">resting", ">ports", ""]);
    for view in rows {
        table.row([
            view.outside.to_string(),
            name(view.protocol),
            view.worker.to_string(),
            view.range.map_or("none".to_owned(), |(first, last)| format!("{first}-{last}")),
            view.leased.to_string(),
            view.resting.to_string(),
            view.ports.to_string(),
            if view.is_withdrawn { "withdrawn" } else { "" }.to_owned(),
        ]);
    }
    table.to_string()
}
