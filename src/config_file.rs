//! A TOML file as the source of a configuration: what is wrong in it is told by file, line and field.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::de::DeserializeOwned;
use toml::Spanned;

/// What is wrong with a configuration file, in one line: `node.toml:3: node.workers: what is allowed`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// The text of a configuration file and where it is.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
}

impl ConfigFile {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self { path: path.to_owned(), text }),
            Err(error) => Err(ConfigError(format!("{}: cannot be read: {error}", path.display()))),
        }
    }

    /// A file that has been read already.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the text as `T`, in which fields to be checked later are [`Spanned`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let message = plain_words(error.message());
            let span = error.span().unwrap_or(0..0);
            let mut field = self.field_at(span.start);
            if let Some(missing) = quoted_after(&message, "missing field ") {
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(missing);
                return self.error(&field, span, "is missing");
            }
            self.error(&field, span, message)
        })
    }

    /// An error about `field`, whose value is at `span`.
    pub fn error(&self, field: &str, span: Range<usize>, message: impl fmt::Display) -> ConfigError {
        let line = self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1;
        let separator = if field.is_empty() { "" } else { ": " };
        ConfigError(format!("{}:{line}: {field}{separator}{message}", self.path.display()))
    }

    /// Reads the string in `field` as a `T`; the error shows the string and says what is `allowed`.
    pub fn parse_field<T: FromStr>(
        &self,
        field: &str,
        value: &Spanned<String>,
        allowed: impl fmt::Display,
    ) -> Result<T, ConfigError> {
        let text = value.get_ref();
        text.parse().map_err(|_| self.error(field, value.span(), format_args!("'{text}' is not {allowed}")))
    }

    /// The number in `field`, or an error where it is not in `allowed`.
    pub fn number_in<T>(
        &self,
        field: &str,
        value: &Spanned<T>,
        allowed: std::ops::RangeInclusive<T>,
    ) -> Result<T, ConfigError>
    where
        T: PartialOrd + Copy + fmt::Display,
    {
        let number = *value.get_ref();
        if allowed.contains(&number) {
            return Ok(number);
        }
        let (first, last) = (allowed.start(), allowed.end());
        Err(self.error(field, value.span(), format_args!("{number} is not allowed: {first} to {last}")))
    }

    /// The file that `field` names, relative to this file; an error where it cannot be opened.
    pub fn existing_file(&self, field: &str, value: &Spanned<String>) -> Result<PathBuf, ConfigError> {
        let path = self.resolve(value.get_ref());
        match std::fs::File::open(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(self.error(field, value.span(), format_args!("{}: {error}", path.display()))),
        }
    }

    /// A path as written in this file, relative to the folder of this file.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// The field that the text at `offset` belongs to: `table.key`, as far as it shows from the lines up to there.
    fn field_at(&self, offset: usize) -> String {
        let end = self.text[offset.min(self.text.len())..].find('\n').map_or(self.text.len(), |n| offset + n);
        let mut table = "";
        let mut key = "";
        for line in self.text[..end].lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                (table, key) = (name.trim_start_matches('['), "");
            } else if let Some((name, _)) = line.split_once('=') {
                key = name.trim();
            }
        }
        match (table, key) {
            ("", key) => key.to_owned(),
            (table, "") => table.to_owned(),
            (table, key) => format!("{table}.{key}"),
        }
    }
}

/// serde's names of types, for readers who do not know them.
fn plain_words(message: &str) -> String {
    let mut message = message.trim().replace('\n', "; ");
    for number in ["usize", "u8", "u16", "u32", "u64"] {
        message = message.replace(&format!("expected {number}"), "expected a whole number");
    }
    message.replace("expected a sequence", "expected a list")
}

fn quoted_after<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_prefix('`')?.split('`').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Root {
        table: Table,
    }

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Table {
        count: Spanned<u32>,
        name: Spanned<String>,
    }

    fn error_of(text: &str) -> String {
        ConfigFile::new("dir/file.toml", text).parse::<Root>().unwrap_err().to_string()
    }

    #[test]
    fn a_missing_field_is_named_with_its_table() {
        assert_eq!(error_of("[table]\ncount = 1\n"), "dir/file.toml:1: table.name: is missing");
        assert_eq!(error_of(""), "dir/file.toml:1: table: is missing");
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_known_ones() {
        let text = "[table]\ncount = 1\nname = 'a'\n\ncolour = 2\n";
        assert_eq!(error_of(text), "dir/file.toml:5: table.colour: unknown field `colour`, expected `count` or `name`");
    }

    #[test]
    fn a_wrong_type_is_told_in_plain_words() {
        assert_eq!(
            error_of("[table]\ncount = \"many\"\nname = 'a'\n"),
            "dir/file.toml:2: table.count: invalid type: string \"many\", expected a whole number"
        );
    }

    #[test]
    fn a_value_out_of_range_is_told_with_the_range() {
        let file = ConfigFile::new("f.toml", "[table]\nname = 'a'\ncount = 9\n");
        let root: Root = file.parse().unwrap();
        assert_eq!(
            file.number_in("table.count", &root.table.count, 1..=4).unwrap_err().to_string(),
            "f.toml:3: table.count: 9 is not allowed: 1 to 4"
        );
        assert_eq!(
            file.parse_field::<u8>("table.name", &root.table.name, "a digit").unwrap_err().to_string(),
            "f.toml:2: table.name: 'a' is not a digit"
        );
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let file = ConfigFile::new("/etc/starnet/node.toml", "");
        assert_eq!(file.resolve("ca.pem"), Path::new("/etc/starnet/ca.pem"));
        assert_eq!(file.resolve("/tmp/ca.pem"), Path::new("/tmp/ca.pem"));
    }

    #[test]
    fn a_file_that_is_not_there_is_one_line() {
        let error = ConfigFile::read(Path::new("/nonexistent/node.toml")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/node.toml: cannot be read: "), "{error}");
    }
}
