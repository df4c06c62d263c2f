//! The oracle: one packet script, played to starnet's gateway and to Linux's (`nft` masquerade) in the same topology.
//!
//! Where they differ, one of them is wrong or free to choose. Each difference must be explained in
//! [`differences`] (and so in docs/NAT.md), or the test fails; so it does if an explained one is no longer there, or
//! starnet does another thing than `differences.txt` says. With `ORACLE_WRITE=1` that file is written anew.

mod cases;
mod differences;
mod packet;
mod random;
#[allow(dead_code, reason = "the tests of requirements use the rest")]
mod rig;
mod script;

use std::{fmt::Write, path::Path, time::Duration};

use differences::EXPLAINED;
use rig::Rig;

/// How long silence lasts that counts as an end.
const QUIET: Duration = Duration::from_millis(15);

/// Of the random cases, unless `ORACLE_SEED` says otherwise.
const SEED: u64 = 1;

/// How many random cases, unless `ORACLE_CASES` says otherwise.
const RANDOM_CASES: u64 = 150;

fn project(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn told(name: &str, linux: &[String], starnet: &[String]) -> String {
    format!("{name}\n  linux\n    {}\n  starnet\n    {}\n", linux.join("\n    "), starnet.join("\n    "))
}

#[test]
fn starnet_and_linux_differ_where_it_is_explained_and_nowhere_else() {
    let (linux, starnet) = (Rig::nft(), Rig::starnet(""));
    let file = project("tests/oracle/differences.txt");
    let written = std::fs::read_to_string(&file).unwrap();
    let (mut found, mut unexplained) = (String::new(), String::new());
    let mut seen = vec![false; EXPLAINED.len()];
    for case in cases::all() {
        let (mut expected, mut ours) = (case.play(&linux, QUIET), case.play(&starnet, QUIET));
        // A mapping of another case may happen to have a port that should be nobody's: hardly twice.
        for _ in 0..2 {
            if expected != ours && !written.contains(&ours.join("\n    ")) {
                (expected, ours) = (case.play(&linux, QUIET), case.play(&starnet, QUIET));
            }
        }
        if expected == ours {
            continue;
        }
        let told = told(&case.name, &expected, &ours);
        match EXPLAINED.iter().position(|difference| difference.explains(&case.name)) {
            Some(place) => seen[place] = true,
            None => unexplained += &told,
        }
        found += &told;
    }
    assert!(unexplained.is_empty(), "nothing in differences.rs explains:\n{unexplained}");
    let gone: Vec<_> = EXPLAINED.iter().zip(&seen).filter(|(_, seen)| !**seen).map(|(d, _)| d.why).collect();
    assert!(gone.is_empty(), "explained, but no longer there: {gone:#?}");

    if std::env::var_os("ORACLE_WRITE").is_some() {
        std::fs::write(&file, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap();
    let (found, expected) = (ours_of(&found), ours_of(&expected));
    let changed: String =
        found.iter().zip(&expected).filter(|(a, b)| a != b).fold(String::new(), |mut all, (now, then)| {
            let _ = writeln!(all, "now  {now}\nthen {then}");
            all
        });
    assert!(found == expected, "not what differences.txt says:\n{changed}");
}

/// What starnet does, without what Linux does: that may be another thing in another kernel, and where a packet from outside
/// clashes with a mapping of another case Linux gives it a random source port.
fn ours_of(told: &str) -> Vec<&str> {
    let mut is_linux = false;
    let is_ours = |line: &&str| {
        is_linux = *line == "  linux" || is_linux && *line != "  starnet";
        !is_linux
    };
    told.lines().filter(is_ours).collect()
}

/// With its mapping and filtering set as Linux has them.
#[test]
fn in_random_cases_starnet_does_as_linux() {
    let like_linux = "[nat]\nmapping = \"endpoint-dependent\"\nfiltering = \"address-and-port-dependent\"\n";
    let (linux, starnet) = (Rig::nft(), Rig::starnet(like_linux));
    let seed = number("ORACLE_SEED", SEED);
    let mut different = String::new();
    for number in 0..number("ORACLE_CASES", RANDOM_CASES) {
        let case = random::case(seed, number);
        // Ports are chosen at random, and some choice may be another case's: hardly three times.
        let differs = || {
            let (expected, ours) = (case.play(&linux, QUIET), case.play(&starnet, QUIET));
            let first = expected.iter().zip(&ours).find(|(a, b)| a != b && !is_of_another_case(b));
            // After a segment that only one of them let through the two no longer know the same.
            let is_wrong = first.is_some_and(|(expected, ours)| !is_of_another_mind_on_tcp(expected, ours));
            is_wrong.then(|| told(&case.name, &expected, &ours))
        };
        if let Some(told) = differs().and_then(|_| differs()).and_then(|_| differs()) {
            different += &told;
        }
    }
    assert!(different.is_empty(), "{different}");
}

/// A port that this case's mapping has in one protocol may be that of another case's in another: then what is sent to it
/// goes to that one's host, whose port has no name here.
fn is_of_another_case(ours: &str) -> bool {
    let has_number = |host: &str| ours.split(host).skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    ours.contains(": Inside gets ") && (has_number("A:") || has_number("B:"))
}

/// Linux follows sequence numbers and states, and drops what does not fit; starnet lets an open connection's segments
/// through ([`EXPLAINED`], TCP windows).
fn is_of_another_mind_on_tcp(expected: &str, ours: &str) -> bool {
    expected.ends_with(": nothing") && ours.contains(" gets tcp ")
}

#[test]
fn the_document_has_every_difference() {
    let document = std::fs::read_to_string(project("docs/NAT.md")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let document = words(&document);
    for difference in EXPLAINED {
        assert!(document.contains(&words(difference.why)), "docs/NAT.md lacks: {}", difference.why);
    }
}
