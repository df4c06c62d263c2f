//! Tokens whose signature this node has verified: a client that opens session after session shows the same one, and to
//! verify a signature takes longer than all the rest of a session's setup.
//!
//! A token is known by its SHA-256, so no secret is kept and nobody can have another one taken for it. Only tokens
//! with a good signature are remembered, so strangers cannot fill the table; their time is looked at each time. There are
//! two generations of them: where the newer one is full it becomes the older one, and what nobody showed since the last time
//! is forgotten.

use std::{collections::HashMap, mem};

use ring::digest::{SHA256, digest};

use crate::rpc::token::{self, Claims, TokenError};

/// Tokens of a generation.
const GENERATION: usize = 2048;

type Hash = [u8; 32];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KnownTokens {
    /// Who signs them. Until the control centre has spoken once there is none, and no token is valid.
    key: Option<[u8; 32]>,
    newer: HashMap<Hash, Claims>,
    older: HashMap<Hash, Claims>,
}

impl KnownTokens {
    /// From now on this key signs tokens; those of another are worth nothing.
    pub(super) fn set_key(&mut self, key: [u8; 32]) {
        if self.key != Some(key) {
            *self = Self { key: Some(key), ..Self::default() };
        }
    }

    /// True once there is a key.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// What a token says, if it is good now.
    pub(super) fn verify(&mut self, token: &str, unix_seconds: u64) -> Result<Claims, TokenError> {
        let key = self.key.as_ref().ok_or(TokenError::Signature)?;
        let hash: Hash = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(claims) = self.newer.get(&hash) {
            return claims.check_time(unix_seconds).map(|()| claims.clone());
        }
        let claims = match self.older.remove(&hash) {
            Some(claims) => claims,
            None => token::verify_signature(token, key)?,
        };
        if self.newer.len() == GENERATION {
            self.older = mem::take(&mut self.newer);
        }
        self.newer.insert(hash, claims.clone());
        claims.check_time(unix_seconds).map(|()| claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::token::{SigningKey, issue};

    const NOW: u64 = 1_800_000_000;

    fn claims(number: usize) -> Claims {
        Claims {
            client: format!("client-{number}"),
            expires: NOW + 3600,
            not_before: NOW,
            exits: None,
            paths_max: 4,
            sessions_max: 10,
        }
    }

    #[test]
    fn a_known_token_is_as_good_as_it_was_and_no_longer_than_it_says() {
        let key = SigningKey::generate();
        let mut known = KnownTokens::default();
        let token = issue(&claims(1), &key);
        assert_eq!(known.verify(&token, NOW), Err(TokenError::Signature), "nobody signs yet");
        known.set_key(key.public());
        assert_eq!(known.verify(&token, NOW + 4000), Err(TokenError::Expired), "not known yet");
        for _ in 0..2 {
            assert_eq!(known.verify(&token, NOW), Ok(claims(1)));
        }
        assert_eq!(known.verify(&token, NOW - 100), Err(TokenError::NotYetValid));
        assert_eq!(known.verify(&token, NOW + 4000), Err(TokenError::Expired));
        let changed = token.replacen("starnet1.", "starnet1.A", 1);
        assert!(known.verify(&changed, NOW).is_err());
        assert!(known.verify(&token[..token.len() - 2], NOW).is_err());
    }

    #[test]
    fn with_another_key_no_old_token_is_good() {
        let (old, new) = (SigningKey::generate(), SigningKey::generate());
        let mut known = KnownTokens::default();
        known.set_key(old.public());
        let token = issue(&claims(1), &old);
        assert!(known.verify(&token, NOW).is_ok());
        known.set_key(old.public());
        assert_eq!(known.newer.len(), 1, "the same key again");
        known.set_key(new.public());
        assert_eq!(known.verify(&token, NOW), Err(TokenError::Signature));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for_and_those_in_use_stay() {
        let key = SigningKey::generate();
        let mut known = KnownTokens::default();
        known.set_key(key.public());
        let used = issue(&claims(0), &key);
        for number in 1..=2 * GENERATION + 10 {
            known.verify(&issue(&claims(number), &key), NOW).unwrap();
            known.verify(&used, NOW).unwrap();
            assert!(known.newer.len() <= GENERATION && known.older.len() <= GENERATION);
        }
        let count = known.newer.len() + known.older.len();
        assert!((GENERATION..2 * GENERATION).contains(&count), "{count}");
        // A token without a good signature takes no room.
        let stranger = SigningKey::generate();
        assert_eq!(known.verify(&issue(&claims(1), &stranger), NOW), Err(TokenError::Signature));
        assert_eq!(known.newer.len() + known.older.len(), count);
    }
}
