//! Columns for reading.

use std::{fmt, time::Duration};

/// Rows under a header, each column as wide as its widest cell.
#[derive(Clone, Debug, Default)]
pub struct Table {
    titles: Vec<String>,
    is_right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a title that starts with `>` makes a right-aligned one, for numbers.
    pub fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self {
            titles: titles.iter().map(|title| title.trim_start_matches('>').to_owned()).collect(),
            is_right: titles.iter().map(|title| title.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Panics where it has another number of cells than there are columns.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.titles.len(), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// True where no row was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| &row[column]);
            cells.chain([&self.titles[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.titles.len()).map(width).collect();
        let has_titles = self.titles.iter().any(|title| !title.is_empty());
        for row in has_titles.then_some(&self.titles).into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), is_right) in row.iter().zip(&widths).zip(&self.is_right) {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if *is_right { (padding.as_str(), "") } else { ("", padding.as_str()) };
                line.push_str(before);
                line.push_str(cell);
                line.push_str(after);
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A time in the unit that suits it: `850 ns`, `12.3 us`, `4.50 ms`, `2.00 s`.
pub fn nanoseconds(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{} us", three_digits(nanos as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", three_digits(nanos as f64 / 1e6)),
        _ => format!("{} s", three_digits(nanos as f64 / 1e9)),
    }
}

/// A number of bytes in the decimal unit that suits it: `512 B`, `1.50 kB`, `52.4 MB`.
pub fn bytes(count: u64) -> String {
    let n = count as f64;
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{} kB", three_digits(n / 1e3)),
        1_000_000..1_000_000_000 => format!("{} MB", three_digits(n / 1e6)),
        _ => format!("{} GB", three_digits(n / 1e9)),
    }
}

/// A running time: `42s`, `3m 04s`, `5h 12m`, `8d 03h`.
pub fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

fn three_digits(n: f64) -> String {
    let decimals = if n < 9.995 {
        2
    } else if n < 99.95 {
        1
    } else {
        0
    };
    format!("{n:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["node", ">packets", "note"]);
        table.row(["ip4_input".into(), "7".into(), String::new()]);
        table.row(["tx".into(), "123456789".into(), "ok".into()]);
        assert_eq!(
            table.to_string(),
            "node         packets  note\n\
             ip4_input          7\n\
             tx         123456789  ok\n"
        );
    }

    #[test]
    fn a_table_without_titles_has_no_header_line() {
        let mut table = Table::new(["", ""]);
        table.row(["name".into(), "fra1".into()]);
        assert_eq!(table.to_string(), "name  fra1\n");
    }

    #[test]
    fn quantities_keep_three_digits() {
        assert_eq!(
            [999, 1_000, 12_340, 999_600, 4_500_000, 2_000_000_000].map(nanoseconds),
            ["999 ns", "1.00 us", "12.3 us", "1000 us", "4.50 ms", "2.00 s"]
        );
        assert_eq!([0, 1_500, 52_428_800].map(bytes), ["0 B", "1.50 kB", "52.4 MB"]);
        assert_eq!(
            [42, 184, 18_720, 702_000].map(|s| uptime(Duration::from_secs(s))),
            ["42s", "3m 04s", "5h 12m", "8d 03h"]
        );
    }
}
