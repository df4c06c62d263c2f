//! `starnet show`: asks a running process over its UNIX socket.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Failure, print};
use crate::{
    control::{
        page::Cursor,
        show_nat::{NatFilter, NatPart},
        show_sessions::{SessionFilter, SessionQuestion},
    },
    node::RUN_DIRECTORY,
    telemetry::{
        columns::{columns, without_zeroes},
        operator,
        pages::{self, Piece},
        show::Topic,
        show_nat, show_sessions,
    },
};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// What to show
    topic: Topic,
    /// Of the NAT: which part [default: summary]
    part: Option<NatPart>,
    #[command(flatten)]
    filter: NatFilter,
    #[command(flatten)]
    sessions: SessionFilter,
    /// Of sessions, and of the NAT's flows and hosts: rows at most; 0: all
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    limit: usize,
    /// Of the same: go on behind what an earlier answer ended with
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
    /// The socket of the process [default: the only one in /run/starnet]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON: raw numbers, the unit in the field's name
    #[arg(long)]
    json: bool,
    /// Also show what is zero: all drop counters, all edges of the graph
    #[arg(long)]
    all: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { topic, part, filter, sessions, limit, after, json, .. } = arguments;
    check(arguments)?;
    let socket = socket_of(arguments.socket.as_deref())?;
    match topic {
        Topic::Nat => {
            let part = part.unwrap_or(NatPart::Summary);
            let question = |after, limit| show_nat::question(part, filter, after, limit);
            let mut printer = Printer::new(*json, |rows| show_nat::columns(part, rows));
            pages::ask(&socket, question, *after, *limit, |piece| printer.take(piece))
        }
        Topic::Sessions | Topic::Paths => {
            let filter = SessionFilter { state: filter.state.clone(), ..sessions.clone() };
            let question = |after, limit| {
                show_sessions::question(*topic, &SessionQuestion { filter: filter.clone(), after, limit })
            };
            let mut printer = Printer::new(*json, |rows| columns(*topic, rows));
            pages::ask(&socket, question, *after, *limit, |piece| printer.take(piece))
        }
        _ => {
            let answer: Value = operator::ask(&socket, topic.name())?;
            let answer = if arguments.all { answer } else { without_zeroes(*topic, answer) };
            Printer::new(*json, |rows| columns(*topic, rows)).take(Piece::Whole(answer))
        }
    }
}

/// A filter that the topic does not have would be left out without a word.
fn check(Arguments { topic, part, filter, sessions, .. }: &Arguments) -> Result<(), Failure> {
    let is_nat = *topic == Topic::Nat;
    let is_sessions = matches!(topic, Topic::Sessions | Topic::Paths);
    let without_state = NatFilter { state: None, ..filter.clone() };
    let (of_nat, of_sessions) = (without_state != NatFilter::default(), *sessions != SessionFilter::default());
    let problem = match () {
        () if part.is_some() && !is_nat => "only 'nat' has parts: starnet show nat flows",
        () if of_nat && !is_nat => "--host, --protocol, --port, --outside and --owner are for 'nat'",
        () if of_sessions && !is_sessions => "--client, --role, --session and --entry are for 'sessions' and 'paths'",
        () if filter.state.is_some() && !is_nat && !is_sessions => "--state is for 'nat', 'sessions' and 'paths'",
        () => return Ok(()),
    };
    Err(Failure::Usage(format!("{problem} (see starnet show --help)")))
}

/// Prints an answer as its pieces come.
struct Printer<F> {
    is_json: bool,
    columns: F,
    rows: usize,
}

impl<F: Fn(Value) -> Result<String, String>> Printer<F> {
    fn new(is_json: bool, columns: F) -> Self {
        Self { is_json, columns, rows: 0 }
    }

    fn take(&mut self, piece: Piece) -> Result<(), Failure> {
        let text = if self.is_json { self.json(piece) } else { self.text(piece) };
        print(&text?)
    }

    fn text(&mut self, piece: Piece) -> Result<String, Failure> {
        let columns = |value| (self.columns)(value).map_err(Failure::Runtime);
        match piece {
            Piece::Whole(answer) => columns(answer),
            Piece::Rows(rows) => {
                self.rows += rows.len();
                columns(Value::Array(rows))
            }
            Piece::End(next) => {
                let none = if self.rows == 0 { columns(Value::Array(Vec::new()))? } else { String::new() };
                Ok(none + &next.map_or(String::new(), |next| format!("there may be more: --after {next}\n")))
            }
        }
    }

    /// One object, a row a line: `{"rows": […], "next": …}`.
    fn json(&mut self, piece: Piece) -> Result<String, Failure> {
        let begin = if self.rows == 0 { "{\n  \"rows\": [\n    " } else { ",\n    " };
        Ok(match piece {
            Piece::Whole(answer) => serde_json::to_string_pretty(&answer).map_err(Failure::runtime)? + "\n",
            Piece::Rows(rows) => {
                self.rows += rows.len();
                let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
                format!("{begin}{}", lines.join(",\n    "))
            }
            Piece::End(next) => {
                let next = serde_json::to_string(&next).map_err(Failure::runtime)?;
                let begin = if self.rows == 0 { "{\n  \"rows\": [" } else { "\n  " };
                format!("{begin}],\n  \"next\": {next}\n}}\n")
            }
        })
    }
}

/// The socket to ask: the one named, or the only one there is.
pub(super) fn socket_of(named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(socket) => Ok(socket.to_owned()),
        None => only_socket(Path::new(RUN_DIRECTORY)),
    }
}

/// The socket to ask where none was named.
fn only_socket(directory: &Path) -> Result<PathBuf, Failure> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut sockets: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "sock")).collect();
    sockets.sort();
    match sockets.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::Usage(format!("no socket in {}: say which with --socket", directory.display()))),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Failure::Usage(format!("several sockets, say which with --socket: {}", names.join(" "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed of these pieces.
    fn printed(is_json: bool, pieces: &[Piece]) -> String {
        let mut printer = Printer::new(is_json, |rows| Ok(format!("{rows}\n")));
        let mut text = String::new();
        for piece in pieces.iter().cloned() {
            let piece = if is_json { printer.json(piece) } else { printer.text(piece) };
            text += &piece.unwrap_or_else(|_| panic!("{text}"));
        }
        text
    }

    #[test]
    fn pages_are_printed_as_one_answer() {
        let rows = |rows: &[u32]| Piece::Rows(rows.iter().map(|row| Value::from(*row)).collect());
        let next = Some("0.7".parse().unwrap());
        for (pieces, json, text) in [
            (vec![Piece::End(None)], serde_json::json!({ "rows": [], "next": null }), "[]\n"),
            (
                vec![rows(&[1, 2]), rows(&[3]), Piece::End(next)],
                serde_json::json!({ "rows": [1, 2, 3], "next": "0.7" }),
                "[1,2]\n[3]\nthere may be more: --after 0.7\n",
            ),
            (vec![Piece::Whole(serde_json::json!([4]))], serde_json::json!([4]), "[4]\n"),
        ] {
            assert_eq!(serde_json::from_str::<Value>(&printed(true, &pieces)).unwrap(), json);
            assert_eq!(printed(false, &pieces), text);
        }
    }

    #[test]
    fn filters_that_a_topic_does_not_have_are_refused() {
        #[derive(clap::Parser, Debug)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let refused = |line: &str| {
            let words = std::iter::once("show").chain(line.split(' '));
            let Line { arguments } = clap::Parser::try_parse_from(words).unwrap();
            check(&arguments).is_err()
        };
        for line in
            ["sessions --client a --role exit --state open", "nat flows --state udp --port 53", "paths --entry a"]
        {
            assert!(!refused(line), "{line}");
        }
        for line in ["sessions --host 10.0.0.1", "nat --client a", "peers --state open", "sessions flows"] {
            assert!(refused(line), "{line}");
        }
    }

    #[test]
    fn the_only_socket_needs_no_name_and_two_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        let refusal = || match only_socket(folder.path()).unwrap_err() {
            Failure::Usage(text) | Failure::Runtime(text) => text,
        };
        assert!(refusal().starts_with("no socket in "));
        file("ports");
        file("a.sock");
        assert_eq!(only_socket(folder.path()).unwrap(), folder.path().join("a.sock"));
        file("b.sock");
        assert!(refusal().starts_with("several sockets, say which with --socket: "));
    }
}
