//! Where starnet does otherwise than Linux, and why. What each does is in `differences.txt`.

/// Cases that differ for one reason.
pub(crate) struct Difference {
    /// One sentence for docs/NAT.md.
    pub(crate) why: &'static str,
    /// Their names; one that ends in `*` stands for all that begin so.
    pub(crate) cases: &'static [&'static str],
}

impl Difference {
    pub(crate) fn explains(&self, name: &str) -> bool {
        self.cases.iter().any(|case| match case.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => *case == name,
        })
    }
}

/// All of them.
pub(crate) const EXPLAINED: &[Difference] = &[
    Difference {
        why: "Filtering is endpoint-independent by default (RFC 4787 REQ-8, RFC 5382 REQ-3): whoever knows a mapping may \
              send to it. Linux lets in only the endpoint that was sent to; `nat.filtering` does so here.",
        cases: &[
            "udp: another port of the server answers",
            "udp: another server answers",
            "tcp: another server's SYN at a mapping",
            "icmp: a reply by another host",
            "icmp error: about another server",
        ],
    },
    Difference {
        why: "Hairpinning (RFC 4787 REQ-9, RFC 5382 REQ-8): an inside host is reached by its outside address. Linux's \
              masquerade has none.",
        cases: &["udp: hairpin*", "tcp: hairpin"],
    },
    Difference {
        why: "A checksum is updated by what changes, so a wrong one stays wrong and the receiver sees it (RFC 5508 REQ-3 \
              asks to drop wrong ICMP errors, which happens). Linux verifies every packet.",
        cases: &["udp: wrong checksum from inside", "udp: wrong checksum from outside", "icmp: wrong checksum"],
    },
    Difference {
        why: "TCP windows are not followed: a segment out of the window goes on to its receiver, which knows better, and \
              changes no state here. RFC 5382 REQ-2 asks that everything valid passes.",
        cases: &["tcp: a reset out of the window changes nothing", "tcp: far out of the window"],
    },
    Difference {
        why: "An ICMP error of ours is an atomic datagram: DF is set and its ID says nothing (RFC 6864).",
        cases: &[
            "icmp: ping with one hop to live",
            "header: ttl 0",
            "header: ttl 1",
            "header: too big for the way out",
        ],
    },
    Difference {
        why: "Fragments are translated one by one as they come. Linux puts the packet together first, and so sends \
              nothing of one that never becomes whole.",
        cases: &[
            "fragments: from inside, the last missing",
            "fragments: from outside, the last missing",
            "fragments: number *",
        ],
    },
    Difference { why: "Source quench is deprecated and is not passed on (RFC 6633).", cases: &["icmp: source quench"] },
    Difference {
        why: "An ICMP error that quotes a header with a wrong checksum is dropped (RFC 5508 REQ-3).",
        cases: &["icmp error: wrong checksum in the quoted header"],
    },
    Difference {
        why: "Ports and protocols that are not the NAT's are the machine's own: its kernel answers them. The rules that Linux \
              is given here drop them.",
        cases: &["udp: unsolicited to a port below the range", "icmp: ping of the gateway from outside"],
    },
    Difference {
        why: "Only TCP, UDP and ICMP are translated: in others nothing tells one host's packets from another's. Linux gives \
              each protocol's answers to whichever host sent last. What comes in with one is the machine's own, and its \
              kernel answers.",
        cases: &["protocol *"],
    },
    Difference {
        why: "Nobody outside may send to an inside address, unless its network is exempt (`gateway.exempt`).",
        cases: &["from outside to an inside address"],
    },
    Difference {
        why: "The route back to a source must lead to where it came from (RFC 3704): nobody inside pretends to be outside.",
        cases: &["from inside with an outside source"],
    },
];
