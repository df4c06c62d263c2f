//! Questions whose answers come page by page: asked until there are enough rows, each page taken as it comes, so that a
//! million rows are never in one place.

use std::path::Path;

use serde_json::Value;

use super::operator::{self, AskError};
use crate::control::page::{Cursor, ROWS_MAX};

/// A piece of an answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Piece {
    /// The answer has no pages; this is all of it.
    Whole(Value),
    /// Some rows, at least one.
    Rows(Vec<Value>),
    /// No more rows; where to go on, if there may be more.
    End(Option<Cursor>),
}

/// Asks the process at `socket` for at most `limit` rows (zero: all there are). `question` writes the question for the rows
/// behind a cursor and their number; `take` gets the pieces.
///
/// # Errors
/// As the process refuses, or does not answer, or as `take` fails.
pub fn ask<E: From<AskError>>(
    socket: &Path,
    question: impl Fn(Option<Cursor>, usize) -> String,
    after: Option<Cursor>,
    limit: usize,
    take: impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    read(|after, rows| Ok(operator::ask(socket, &question(after, rows))?), after, limit, take)
}

fn read<E>(
    mut ask: impl FnMut(Option<Cursor>, usize) -> Result<Value, E>,
    mut after: Option<Cursor>,
    limit: usize,
    mut take: impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let mut count = 0;
    loop {
        let left = if limit == 0 { ROWS_MAX } else { (limit - count).min(ROWS_MAX) };
        let mut answer = ask(after, left)?;
        if !answer.is_object() {
            return take(Piece::Whole(answer));
        }
        if let Value::Array(rows) = answer["rows"].take()
            && !rows.is_empty()
        {
            count += rows.len();
            take(Piece::Rows(rows))?;
        }
        after = serde_json::from_value(answer["next"].take()).unwrap_or(None);
        if after.is_none() || (limit > 0 && count >= limit) {
            return take(Piece::End(after));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::json;

    use super::*;

    /// Rows 0 to 4, two a page, the third page empty.
    fn answer(after: Option<Cursor>, rows: usize) -> Result<Value, Infallible> {
        assert!(rows > 0);
        Ok(match after.map(|cursor| cursor.to_string()).as_deref() {
            None => json!({ "rows": [0, 1], "next": "0.1" }),
            Some("0.1") => json!({ "rows": [2, 3], "next": "0.3" }),
            Some("0.3") => json!({ "rows": [], "next": "0.9" }),
            _ => json!({ "rows": [4], "next": null }),
        })
    }

    fn pieces(limit: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let Ok(()) = read(answer, None, limit, |piece| {
            pieces.push(piece);
            Ok(())
        });
        pieces
    }

    #[test]
    fn pages_are_taken_until_there_are_no_more_or_enough() {
        let rows = |rows: &[u32]| Piece::Rows(rows.iter().map(|row| json!(row)).collect());
        assert_eq!(pieces(0), [rows(&[0, 1]), rows(&[2, 3]), rows(&[4]), Piece::End(None)]);
        assert_eq!(pieces(4), [rows(&[0, 1]), rows(&[2, 3]), Piece::End(Some("0.3".parse().unwrap()))]);
    }

    #[test]
    fn an_answer_without_pages_is_taken_whole() {
        let mut seen = Vec::new();
        let whole = |_, _| Ok::<_, Infallible>(json!([1, 2]));
        let Ok(()) = read(whole, None, 7, |piece| {
            seen.push(piece);
            Ok(())
        });
        assert_eq!(seen, [Piece::Whole(json!([1, 2]))]);
    }
}
