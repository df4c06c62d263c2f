//! Every reason for which the client drops a packet: its name, one sentence, and how often it happened.

crate::telemetry::named::counters! {
    /// Why a packet was dropped.
    pub enum Reason;
    TooShort "too_short" "From the entry: fewer bytes than the relay header."
    BadVersion "bad_version" "From the entry: a version of the relay header that this client does not speak."
    UnknownKind "unknown_kind" "From the entry: a relay packet of a kind there is none of."
    WrongDirection "wrong_direction" "From the entry: a packet that does not go to a client."
    WrongSlot "wrong_slot" "From the entry: a ct_index or generation that is not the client's (zero)."
    Duplicate "duplicate" "From the entry: a packet that came before."
    TooOld "too_old" "From the entry: behind the duplicate window."
    WrongTag "wrong_tag" "From the entry: the tag was not made with this hop's key."
    NotIp "not_ip" "The inner packet is not a well-formed packet of IPv4 or IPv6."
    NotForUs "not_for_us" "From the entry: the inner destination is no inside address of this client's."
    NotInside "not_inside" "From the TUN device: the source is no inside address."
    NotCut "not_cut" "From the TUN device: a large segment that could not be cut into packets, or into too many."
    TooBig "too_big" "To the entry: larger than the session's MTU."
    NotReady "not_ready" "To the entry: the session is not open and too many packets wait for it already."
    SessionFailed "session_failed" "To the entry: waited for a session that could not be opened."
    SendFailed "send_failed" "To the entry: the kernel refused the datagram (full buffer, no route, entry unreachable)."
    DeliverFailed "deliver_failed" "To the TUN device or the local socket: the kernel refused the packet."
    NotFlow "not_flow" "From the entry: not of the flow that the session is for, or with a wrong checksum."
    IcmpError "icmp_error" "From the entry: an ICMP error about a forwarded flow; logged, a socket cannot be given it."
    FlowsFull "flows_full" "A new local peer of a forward while as many flows as allowed are in use."
}

/// Drop counters by reason.
#[derive(Clone, Debug)]
pub struct Drops([u64; Reason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; Reason::COUNT])
    }
}

impl Drops {
    /// One packet was dropped.
    #[inline]
    pub fn count(&mut self, reason: Reason) {
        self.add(reason, 1);
    }

    /// Several packets were dropped.
    #[inline]
    pub fn add(&mut self, reason: Reason, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Packets dropped for this reason so far.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// All of them, in the order of [`Reason::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|&reason| (reason, self.get(reason)))
    }
}
