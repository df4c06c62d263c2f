//! Pages: how a question about tables with millions of places is answered in bounded pieces.
//!
//! The control core has other things to do than to list: a question looks at no more than [`SCAN`] places, gives no more than
//! [`ROWS_MAX`] rows, and says where the next one goes on. Nothing is copied or locked in between, so what comes and goes
//! meanwhile may be in the answer or not; what stays is in it once.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Places of the tables that one question looks at.
pub(super) const SCAN: usize = 1 << 14;

/// Rows of one answer.
pub const ROWS_MAX: usize = 1000;

/// Where in the tables to go on: worker, and the last place that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cursor {
    pub(super) worker: u32,
    pub(super) place: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.worker, self.place)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('.').and_then(|(worker, place)| Some((worker.parse().ok()?, place.parse().ok()?)));
        let (worker, place) = parts.ok_or_else(|| format!("'{text}' is not what an earlier answer ended with"))?;
        Ok(Self { worker, place })
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}

impl TryFrom<String> for Cursor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Some of the rows there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// In the order of the tables.
    pub rows: Vec<T>,
    /// Where to go on, if there may be more.
    pub next: Option<Cursor>,
}

/// Goes through what is in the workers' tables, from a cursor on, until `look` has enough (false) or [`SCAN`] places were
/// looked at. Returns where to go on.
pub(super) fn scan<'a, T: 'a>(
    tables: impl Iterator<Item = &'a [Option<T>]>,
    after: Option<Cursor>,
    mut look: impl FnMut(usize, u32, &T) -> bool,
) -> Option<Cursor> {
    let start = after.unwrap_or_default();
    let mut seen = 0;
    for (worker, table) in tables.enumerate().skip(start.worker as usize) {
        let is_first = worker as u32 == start.worker && after.is_some();
        let first = if is_first { start.place.saturating_add(1) as usize } else { 0 };
        for (place, what) in table.iter().enumerate().skip(first) {
            seen += 1;
            let goes_on = what.as_ref().is_none_or(|what| look(worker, place as u32, what));
            if !goes_on || seen == SCAN {
                return Some(Cursor { worker: worker as u32, place: place as u64 });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is found in questions of `limit` rows, and how many questions that took.
    fn all(tables: &[Vec<Option<u32>>], limit: usize) -> (Vec<u32>, usize) {
        let (mut found, mut after, mut questions) = (Vec::new(), None, 0);
        loop {
            let before = found.len();
            questions += 1;
            after = scan(tables.iter().map(Vec::as_slice), after, |_, _, what| {
                found.push(*what);
                found.len() - before < limit
            });
            if after.is_none() {
                return (found, questions);
            }
        }
    }

    #[test]
    fn what_is_there_is_found_once_whatever_the_pages_size() {
        let tables = [vec![Some(1), None, Some(2)], vec![], vec![None, Some(3), Some(4), None]];
        for limit in [1, 2, 3, 100] {
            assert_eq!(all(&tables, limit).0, [1, 2, 3, 4], "{limit}");
        }
    }

    #[test]
    fn a_question_looks_at_a_bounded_part_of_empty_tables() {
        let tables = [vec![None; 2 * SCAN], vec![None; SCAN / 2], vec![Some(7)]];
        assert_eq!(all(&tables, 10), (vec![7], 3));
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_one_from_nowhere_finds_nothing() {
        let cursor = Cursor { worker: 3, place: 1 << 40 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert_eq!("7".parse::<Cursor>().unwrap_err(), "'7' is not what an earlier answer ended with");
        let tables = [vec![Some(1)]];
        for after in [cursor, Cursor { worker: 0, place: u64::MAX }] {
            assert_eq!(scan(tables.iter().map(Vec::as_slice), Some(after), |_, _, _| panic!("nothing is there")), None);
        }
    }
}
