//! `starnet token`: the key tokens are signed with, and tokens.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;

use super::{Failure, print};
use crate::{
    limits,
    rpc::{
        files::{self, Secrecy},
        token::{self, Claims, SigningKey},
    },
};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Make the signing key (Ed25519) of a control centre
    Key {
        /// Where to write it
        #[arg(long, value_name = "FILE", default_value = "token.key")]
        key: PathBuf,
        /// Replace an existing one: tokens signed with it are worth nothing then
        #[arg(long)]
        force: bool,
    },
    /// Issue a token to a client
    Issue {
        /// The signing key
        #[arg(long, value_name = "FILE", default_value = "token.key")]
        key: PathBuf,
        /// Whose it is: a name for logs, and its sessions are counted together
        #[arg(long, value_name = "NAME")]
        client: String,
        /// How long it is valid: a number and s, m, h or d
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration)]
        valid: Duration,
        /// The exits it is for, separated by commas; default: any
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        exits: Option<Vec<String>>,
        /// Most paths of one session
        #[arg(long, value_name = "COUNT", default_value_t = limits::PATHS_MAX as u8,
              value_parser = clap::value_parser!(u8).range(1..=limits::PATHS_MAX as i64))]
        paths: u8,
        /// Most sessions at one entry
        #[arg(long, value_name = "COUNT", default_value_t = 16)]
        sessions: u32,
        /// Where to write the token (mode 0600); default: print it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Key { key, force } => SigningKey::generate().save(key, *force).map_err(Failure::runtime),
        Command::Issue { key, client, valid, exits, paths, sessions, out } => {
            let key = SigningKey::load(key).map_err(Failure::runtime)?;
            let now = token::unix_seconds();
            let claims = Claims {
                client: client.clone(),
                expires: now.saturating_add(valid.as_secs()),
                not_before: now,
                exits: exits.clone(),
                paths_max: *paths,
                sessions_max: *sessions,
            };
            let line = format!("{}\n", token::issue(&claims, &key));
            match out {
                Some(path) => files::write(path, line.as_bytes(), Secrecy::Private, true).map_err(Failure::runtime),
                None => print(&line),
            }
        }
    }
}

/// Reads `90s`, `15m`, `12h` or `30d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a number and s, m, h or d, like 30d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for text in ["", "30", "d", "0h", "3 d", "-1d", "99999999999999999999d", "5é"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_issued_token_is_valid_and_says_what_was_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (key, out) = (folder.path().join("token.key"), folder.path().join("alice.token"));
        run(&Command::Key { key: key.clone(), force: false }).unwrap();
        run(&Command::Issue {
            key: key.clone(),
            client: "alice".into(),
            valid: Duration::from_secs(60),
            exits: Some(vec!["ams1".into()]),
            paths: 2,
            sessions: 3,
            out: Some(out.clone()),
        })
        .unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        let public = SigningKey::load(&key).unwrap().public();
        let claims = token::verify(text.trim(), &public, token::unix_seconds()).unwrap();
        assert_eq!((claims.client.as_str(), claims.paths_max, claims.sessions_max), ("alice", 2, 3));
        assert_eq!(claims.exits, Some(vec!["ams1".to_owned()]));
    }
}
