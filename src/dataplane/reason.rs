//! Every reason for which a packet is dropped: its name, and one sentence.
//!
//! A counter is called `<node>.drop.<reason>`; nothing is dropped without one.

macro_rules! reasons {
    ($($name:ident $text:literal $sentence:literal)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $sentence] $name),* }

        impl Reason {
            /// How many there are.
            pub const COUNT: usize = [$(Reason::$name),*].len();
            /// All of them, by number.
            pub const ALL: [Reason; Self::COUNT] = [$(Reason::$name),*];

            /// The name in counters.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// What it means, in one sentence.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence),* }
            }
        }
    };
}

reasons! {
    TooShort "too_short" "The packet ends before the header this node reads."
    BadLength "bad_length" "A length field says more than there is, or less than a header."
    BadVersion "bad_version" "The version field is one this node does not speak."
    BadChecksum "bad_checksum" "The header's checksum is wrong."
    UnknownEtherType "unknown_ethertype" "Not IPv4: the XDP program should not have sent it here."
    UnknownProtocol "unknown_protocol" "A transport protocol that this node does not carry."
    UnknownKind "unknown_kind" "A relay packet of a kind there is none of."
    NotOurs "not_ours" "The destination address is not one of this node's."
    NotOurPort "not_our_port" "The destination port or ICMP identifier is outside the reserved range."
    Fragment "fragment" "One of several fragments; they are not reassembled."
    Ip4Options "ip4_options" "IPv4 options on the tunnel side."
    FreeSlot "free_slot" "The ct_index names a slot that is not in use, or none of this node's."
    StaleGeneration "stale_generation" "The slot was given to another session since."
    WrongSource "wrong_source" "The source address or port is not the one this slot expects."
    WrongTag "wrong_tag" "The tag was not made with this hop's key."
    WrongDirection "wrong_direction" "The role of this slot has no packets of this kind."
    WrongPath "wrong_path" "The path number is not one of the session's."
    Duplicate "duplicate" "Another copy of this packet came first: the usual end of a copy."
    TooOld "too_old" "The sequence number is behind the duplicate window."
    NoPath "no_path" "The session has no path, or the client's address is not known yet."
    NotInside "not_inside" "The inner source address is not the session's."
    NotFlow "not_flow" "The inner packet is not of the one flow this session was set up for."
    Denied "denied" "The exit's policy forbids the destination."
    NoMapping "no_mapping" "A packet from outside for which there is no binding."
    NotRemote "not_remote" "A packet from outside for a flow session, but not from its server."
    NotSyn "not_syn" "A TCP segment without SYN for which there is no binding."
    PortsExhausted "ports_exhausted" "No port of the pool is free for a new binding."
    TableFull "table_full" "No binding is free, or the session has as many as it may."
    TtlExpired "ttl_expired" "The time to live ran out; the sender was told by ICMP."
    TooBig "too_big" "Too big for the way ahead and must not be fragmented; the sender was told by ICMP."
    ErrorUnanswered "error_unanswered" "An ICMP error would have been due but is rate-limited or not allowed for this packet."
    NoRoute "no_route" "The kernel has no route to the destination out of our interfaces."
    Unresolved "unresolved" "The next hop did not answer: its MAC address is unknown."
    InterfaceDown "interface_down" "The interface to the next hop is down."
    UnknownPeer "unknown_peer" "A probe from or to a node that is not a neighbour."
    NoSlot "no_slot" "No packet slot or frame was free for a copy."
    WaitingFull "waiting_full" "Too many packets wait for the control core."
    EventRingFull "event_ring_full" "The ring to the control core is full."
    HandoffFull "handoff_full" "The ring to the worker that owns the slot is full."
    TxFull "tx_full" "The driver's transmit ring is full."
    Refused "refused" "The control core refused it."
    NotAfterHandoff "not_after_handoff" "A packet handed over belongs to yet another worker."
}
