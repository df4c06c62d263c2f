//! `starnet show sessions` and `starnet show paths`: questions as they go over the operator's socket.

use super::show::Topic;
use crate::control::{page::ROWS_MAX, show_sessions::SessionQuestion};

/// The text of a question about [`Topic::Sessions`] or [`Topic::Paths`].
pub fn question(topic: Topic, question: &SessionQuestion) -> String {
    format!("{} {}", topic.name(), serde_json::to_string(question).expect("a question can be written"))
}

/// Reads such a question; none: it is about something else. The topic's name alone asks for the first page.
pub fn read(text: &str) -> Option<Result<(Topic, SessionQuestion), String>> {
    let (name, question) = text.split_once(' ').unwrap_or((text, ""));
    let topic = Topic::from_name(name).filter(|topic| matches!(topic, Topic::Sessions | Topic::Paths))?;
    if question.is_empty() {
        return Some(Ok((topic, SessionQuestion { limit: ROWS_MAX, ..SessionQuestion::default() })));
    }
    let read = serde_json::from_str(question).map(|question| (topic, question));
    Some(read.map_err(|error| format!("not a question about {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::show_sessions::{Role, SessionFilter};

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let filter = SessionFilter { role: Some(Role::Relay), state: Some("open".into()), ..SessionFilter::default() };
        let asked = SessionQuestion { filter, after: Some("1.7".parse().unwrap()), limit: 10 };
        for topic in [Topic::Sessions, Topic::Paths] {
            assert_eq!(read(&question(topic, &asked)), Some(Ok((topic, asked.clone()))));
        }
        assert_eq!(read("sessions").unwrap().unwrap().1.limit, ROWS_MAX);
        assert!(read("paths {").unwrap().unwrap_err().starts_with("not a question about paths: "));
        assert_eq!(read("peers"), None);
    }
}
