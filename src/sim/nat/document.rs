//! Checks the tables of requirements in `docs/NAT.md`: tests that are named there exist, no requirement is without one, and
//! no test is without its row.

use std::{collections::BTreeSet, fs, path::Path};

const DOCUMENT: &str = include_str!("../../../docs/NAT.md");

/// The tables, with the tests on a virtual clock and those with real packets.
const TABLES: [(&str, [&str; 2]); 6] = [
    ("### RFC 4787", [include_str!("rfc4787.rs"), include_str!("../../../tests/nat/rfc4787.rs")]),
    ("### RFC 5382", [include_str!("rfc5382.rs"), include_str!("../../../tests/nat/rfc5382.rs")]),
    ("### RFC 5508", [include_str!("rfc5508.rs"), include_str!("../../../tests/nat/rfc5508.rs")]),
    ("### RFC 7857", [include_str!("rfc7857.rs"), include_str!("../../../tests/nat/rfc7857.rs")]),
    ("### RFC 6888", [include_str!("rfc6888.rs"), include_str!("../../../tests/nat/rfc6888.rs")]),
    ("### Bugs others shipped", [include_str!("shipped.rs"), include_str!("../../../tests/nat/shipped.rs")]),
];

/// Files whose every test stands in the section about IPv6, whose tests may be anybody's.
const FILES_OF_IPV6: [&str; 4] = [
    include_str!("rfc6146.rs"),
    include_str!("forwarded6.rs"),
    include_str!("../../../tests/e2e/gateway6.rs"),
    include_str!("../../../tests/e2e/overlay6.rs"),
];

/// The cells of a section's rows, without the heading.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = DOCUMENT.split(heading).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n#").next().expect("there is always a first part");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What stands in backticks; of other tests than this file's the text of the cell speaks.
fn names(cell: &'static str) -> Vec<&'static str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The tests of a file, or of its module of tests.
fn tests(source: &str) -> BTreeSet<&str> {
    let after = source.split("#[test]\n").skip(1);
    let named = after.filter_map(|rest| rest.trim_start().strip_prefix("fn ")?.split('(').next());
    named.collect()
}

/// Adds what is in the Rust files of a folder.
fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            _ if path.is_dir() => read_sources(&path, sources),
            Some(extension) if extension == "rs" => *sources += &fs::read_to_string(&path).unwrap(),
            _ => {}
        }
    }
}

/// True for what no field, file or type is called: tests are named by sentences.
fn is_sentence(name: &str) -> bool {
    name.matches('_').count() > 2 && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

#[test]
fn every_requirement_has_tests_and_every_test_its_requirement() {
    for (heading, sources) in TABLES {
        let rows = rows(heading);
        assert!(!rows.is_empty(), "{heading} has no table");
        let mut named = [BTreeSet::new(), BTreeSet::new()];
        for row in &rows {
            let [requirement, what, virtual_clock, real_packets] = row[..] else {
                panic!("{heading}: not four cells: {row:?}")
            };
            if what.starts_with("Does not apply: ") {
                assert_eq!((virtual_clock, real_packets), ("", ""), "{heading}, {requirement}");
                continue;
            }
            assert!(!names(virtual_clock).is_empty(), "{heading}, {requirement}: no test");
            assert!(!real_packets.is_empty(), "{heading}, {requirement}: neither a test nor a reason");
            let is_plain = real_packets.starts_with('`') && !real_packets.contains("tests/");
            named[0].extend(names(virtual_clock));
            named[1].extend(names(real_packets).into_iter().filter(|_| is_plain));
        }
        for (named, source) in named.iter().zip(sources) {
            let tests = tests(source);
            let missing: Vec<_> = named.difference(&tests).collect();
            let unnamed: Vec<_> = tests.difference(named).collect();
            assert!(missing.is_empty() && unnamed.is_empty(), "{heading}: missing {missing:?}, unnamed {unnamed:?}");
        }
    }
}

#[test]
fn every_row_about_ipv6_has_tests_and_every_test_its_row() {
    let mut named = BTreeSet::new();
    for row in rows("## IPv6") {
        let [requirement, _, cell] = row[..] else { panic!("not three cells: {row:?}") };
        assert!(!names(cell).is_empty(), "{requirement}: no test");
        named.extend(names(cell));
    }
    for source in FILES_OF_IPV6 {
        let tests = tests(source);
        let unnamed: Vec<_> = tests.difference(&named).collect();
        assert!(!tests.is_empty() && unnamed.is_empty(), "unnamed {unnamed:?}");
    }
}

#[test]
fn every_test_and_file_that_the_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["src", "tests"] {
        read_sources(&root.join(folder), &mut sources);
    }
    let tests = tests(&sources);
    let missing: Vec<_> = names(DOCUMENT)
        .into_iter()
        .filter(|name| match name {
            name if name.starts_with("src/") || name.starts_with("tests/") => !root.join(name).exists(),
            name => is_sentence(name) && !tests.contains(name),
        })
        .collect();
    assert!(tests.len() > 500 && missing.is_empty(), "missing {missing:?}");
}
