//! What `starnet show sessions` and `show paths` ask of the control core: sessions, a page at a time.

use serde::{Deserialize, Serialize};

use super::{
    Control,
    page::{self, Cursor, Page, ROWS_MAX},
    sessions::{Part, Session},
    show::{self, SessionView},
};
use crate::{Nanos, dataplane::conntrack::CtIndex};

/// What a node is in a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Role {
    Entry,
    Relay,
    Exit,
}

/// Which sessions are meant; all conditions at once, and none means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct SessionFilter {
    /// Of sessions: those of this client (the name in its token)
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
    /// Of sessions: those in which the node is this
    #[arg(long)]
    pub role: Option<Role>,
    /// Of sessions: those whose number begins with these hexadecimal digits
    #[arg(long, value_name = "DIGITS")]
    pub session: Option<String>,
    /// Of sessions: those that begin at this entry
    #[arg(long, value_name = "NODE")]
    pub entry: Option<String>,
    /// `opening`, `open`, `ageing` or `closing`; the command line has it in common with the NAT's.
    #[arg(skip)]
    pub state: Option<String>,
}

/// A question about sessions, or about their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionQuestion {
    /// Which ones.
    pub filter: SessionFilter,
    /// From where on; none: from the start.
    pub after: Option<Cursor>,
    /// Sessions at most.
    pub limit: usize,
}

impl SessionFilter {
    /// Decided on the session itself: a view of each would be made for nothing.
    fn takes(&self, session: &Session) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let role = match session.part {
            Part::Entry(_) => Role::Entry,
            Part::Relay(_) => Role::Relay,
            Part::Exit(_) => Role::Exit,
        };
        is(&self.client, &session.client)
            && is(&self.entry, &session.name.entry)
            && is(&self.state, session.state.name())
            && self.role.is_none_or(|wanted| wanted == role)
            && self.session.as_deref().is_none_or(|digits| has_prefix(&session.name.session, digits))
    }
}

/// True where the number, in hexadecimal digits, begins with `digits`.
fn has_prefix(number: &[u8], digits: &str) -> bool {
    let mut nibbles = number.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.chars().all(|digit| digit.to_digit(16).is_some_and(|digit| nibbles.next().map(u32::from) == Some(digit)))
}

impl Control {
    /// A page of sessions, by worker and slot.
    pub fn session_page(&self, question: &SessionQuestion, now: Nanos) -> Page<SessionView> {
        let limit = question.limit.clamp(1, ROWS_MAX);
        let mut rows = Vec::new();
        let tables = self.workers.iter().map(|tables| tables.sessions.as_slice());
        let next = page::scan(tables, question.after, |worker, slot, session| {
            if question.filter.takes(session) {
                rows.push(show::view(&self.workers[worker], CtIndex::new(worker, slot), session, now));
            }
            rows.len() < limit
        });
        Page { rows, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::harness::Net;

    #[test]
    fn sessions_are_listed_page_by_page_and_by_what_they_are() {
        let mut net = Net::new(&["in", "left", "out"], 1, |_, _| ());
        for number in 0..7 {
            let client = if number % 2 == 0 { "even" } else { "odd" };
            let open = net.tunnel(client, number, &["in-left-out"]);
            net.open(open);
        }
        let now = net.now;
        let list = |net: &mut Net, node: &str, filter: SessionFilter, limit| {
            let (mut rows, mut after) = (Vec::new(), None);
            loop {
                let question = SessionQuestion { filter: filter.clone(), after, limit };
                let page = net.node(node).control.session_page(&question, now);
                assert!(page.rows.len() <= limit);
                rows.extend(page.rows.into_iter().map(|row| row.session));
                after = page.next;
                if after.is_none() {
                    return rows;
                }
            }
        };
        for node in ["in", "left", "out"] {
            let all = list(&mut net, node, SessionFilter::default(), 100);
            assert_eq!(all.len(), 7, "{node}");
            for limit in [1, 3] {
                assert_eq!(
                    list(&mut net, node, SessionFilter::default(), limit),
                    all,
                    "{node}: the same in pages of {limit}"
                );
            }
        }
        let of = |filter: SessionFilter| SessionFilter { state: Some("open".into()), ..filter };
        let default = SessionFilter::default;
        for (filter, count) in [
            (of(default()), 7),
            (of(SessionFilter { client: Some("odd".into()), ..default() }), 3),
            (of(SessionFilter { role: Some(Role::Entry), entry: Some("in".into()), ..default() }), 7),
            (of(SessionFilter { role: Some(Role::Exit), ..default() }), 0),
            (SessionFilter { state: Some("closing".into()), ..default() }, 0),
            (SessionFilter { session: Some("03".into()), ..default() }, 1),
            (SessionFilter { session: Some("030".into()), ..default() }, 1),
            (SessionFilter { session: Some("0x".into()), ..default() }, 0),
        ] {
            assert_eq!(list(&mut net, "in", filter.clone(), 2).len(), count, "{filter:?}");
        }
        let [entries, relays, exits] = ["in", "left", "out"].map(|node| {
            let summary = net.node(node).control.summary(now);
            (summary.entries, summary.relays, summary.exits)
        });
        assert_eq!((entries, relays, exits), ((7, 0, 0), (0, 7, 0), (0, 0, 7)));
    }
}
