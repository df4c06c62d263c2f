//! Metrics as text, for Prometheus and what reads its format (text format 0.0.4, names as OpenMetrics has them).
//!
//! A *family* is a name, what kind of number it is, one sentence, and its samples, told apart by labels. What is written
//! here has a bounded number of samples whatever the traffic: by worker, graph node, reason and neighbour, never by
//! session, host or flow.

use std::fmt::{Display, Write};

/// What the answer's `Content-Type` says.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of number a family has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows, and begins at zero with the process. Its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Quantiles of what was observed since the start of the process, and how often that was.
    Summary,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Summary => "summary",
        }
    }
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// A family whose samples are being written. One that gets no sample is not in the text.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
    kind: Kind,
    help: &'a str,
    is_begun: bool,
}

impl Exposition {
    /// Begins a family. Its name is one that no other has.
    pub fn family<'a>(&'a mut self, kind: Kind, name: &'a str, help: &'a str) -> Family<'a> {
        debug_assert_eq!(kind == Kind::Counter, name.ends_with("_total"), "{name}");
        debug_assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'));
        Family { text: &mut self.text, name, kind, help, is_begun: false }
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, kind: Kind, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help).sample(&[], value);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// A sample with these labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    /// Quantiles of a summary, and of how many observations.
    pub fn quantiles(&mut self, labels: &[(&str, &str)], count: u64, quantiles: &[(&str, f64)]) {
        let mut with_quantile = labels.to_vec();
        for (quantile, value) in quantiles {
            with_quantile.push(("quantile", quantile));
            self.line("", &with_quantile, value);
            with_quantile.pop();
        }
        self.line("_count", labels, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        if !self.is_begun {
            self.is_begun = true;
            let (name, kind) = (self.name, self.kind.name());
            self.text.push_str("# HELP ");
            self.text.push_str(name);
            self.text.push(' ');
            escape(self.text, self.help, false);
            self.write(format_args!("\n# TYPE {name} {kind}\n"));
        }
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (number, (label, value)) in labels.iter().enumerate() {
            self.write(format_args!("{}{label}=\"", if number == 0 { '{' } else { ',' }));
            escape(self.text, value, true);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    fn write(&mut self, text: std::fmt::Arguments) {
        self.text.write_fmt(text).expect("a String takes whatever is written");
    }
}

/// Line feeds and backslashes have to be escaped everywhere, quotes in the values of labels.
fn escape(text: &mut String, raw: &str, is_quoted: bool) {
    for character in raw.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\\' => text.push_str("\\\\"),
            '"' if is_quoted => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

/// Nanoseconds in the unit of metrics.
pub fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// The labels of a sample, by name.
    type Labels = BTreeMap<String, String>;

    /// A text that was read back: kinds and sentences by family, samples by name and labels.
    #[derive(Debug, Default)]
    pub(crate) struct Parsed {
        pub(crate) kinds: BTreeMap<String, String>,
        pub(crate) helps: BTreeMap<String, String>,
        pub(crate) samples: BTreeMap<(String, Labels), f64>,
    }

    impl Parsed {
        /// The value of a sample.
        pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            self.samples.get(&(name.to_owned(), labels)).copied()
        }
    }

    /// Reads a text as Prometheus does, and panics where it is none: a family is in one piece, its HELP and TYPE come once
    /// and before its samples, and no sample comes twice.
    pub(crate) fn parse(text: &str) -> Parsed {
        let mut parsed = Parsed::default();
        let mut family = String::new();
        let mut over = BTreeSet::new();
        assert!(text.is_empty() || text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(over.insert(name.to_owned()), "{name} is there twice");
                family = name.to_owned();
                parsed.helps.insert(name.to_owned(), help.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family, "TYPE follows HELP");
                assert!(["counter", "gauge", "summary"].contains(&kind));
                assert_eq!(parsed.kinds.insert(name.to_owned(), kind.to_owned()), None);
            } else {
                let (name, labels, value) = sample(line);
                let base = name.strip_suffix("_count").filter(|base| *base == family).unwrap_or(&name);
                assert_eq!(base, family, "a sample outside its family: {line}");
                assert!(parsed.kinds.contains_key(&family), "a sample before its TYPE: {line}");
                let twice = parsed.samples.insert((name, labels), value);
                assert_eq!(twice, None, "twice: {line}");
            }
        }
        parsed
    }

    fn sample(line: &str) -> (String, Labels, f64) {
        let end = line.find(['{', ' ']).unwrap();
        let (name, mut rest) = line.split_at(end);
        let mut labels = Labels::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, value) = rest.split_once("=\"").unwrap();
                let (value, after) = unescape(value);
                assert_eq!(labels.insert(label.to_owned(), value), None, "a label twice: {line}");
                rest = after;
                match rest.split_at(1) {
                    (",", more) => rest = more,
                    ("}", more) => break rest = more,
                    _ => panic!("neither , nor }} after a label: {line}"),
                }
            }
        }
        let value = rest.strip_prefix(' ').unwrap();
        (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    }

    /// The text up to the closing quote, and what is behind it.
    fn unescape(quoted: &str) -> (String, &str) {
        let mut text = String::new();
        let mut characters = quoted.char_indices();
        while let Some((place, character)) = characters.next() {
            match character {
                '"' => return (text, &quoted[place + 1..]),
                '\\' => match characters.next().unwrap().1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                other => text.push(other),
            }
        }
        panic!("no closing quote: {quoted}");
    }

    #[test]
    fn a_family_is_its_sentence_its_kind_and_its_samples() {
        let mut text = Exposition::default();
        let mut family = text.family(Kind::Counter, "starnet_received_packets_total", "Packets received.");
        family.sample(&[("worker", "0")], 7);
        family.sample(&[("worker", "1"), ("core", "3")], u64::MAX);
        text.family(Kind::Gauge, "starnet_nothing", "A family without samples.");
        let mut family = text.family(Kind::Summary, "starnet_residence_seconds", "Rx to tx.");
        family.quantiles(&[], 3, &[("0.5", seconds(1_500)), ("1", seconds(2_000_000_000))]);
        assert_eq!(
            text.finish(),
            "# HELP starnet_received_packets_total Packets received.\n\
             # TYPE starnet_received_packets_total counter\n\
             starnet_received_packets_total{worker=\"0\"} 7\n\
             starnet_received_packets_total{worker=\"1\",core=\"3\"} 18446744073709551615\n\
             # HELP starnet_residence_seconds Rx to tx.\n\
             # TYPE starnet_residence_seconds summary\n\
             starnet_residence_seconds{quantile=\"0.5\"} 0.0000015\n\
             starnet_residence_seconds{quantile=\"1\"} 2\n\
             starnet_residence_seconds_count 3\n"
        );
    }

    #[test]
    fn what_has_a_meaning_in_the_format_is_escaped() {
        let mut text = Exposition::default();
        let odd = "a \"b\"\\c\nd, {e}";
        text.family(Kind::Gauge, "starnet_odd", "Says \"x\\y\"\nand more.").sample(&[("odd", odd), ("even", "")], -1);
        let text = text.finish();
        assert!(text.starts_with("# HELP starnet_odd Says \"x\\\\y\"\\nand more.\n"), "{text}");
        assert_eq!(parse(&text).value("starnet_odd", &[("odd", odd), ("even", "")]), Some(-1.0));
    }
}
