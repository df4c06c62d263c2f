//! Tokens: what a client may do, signed by the control centre, checked by every node without asking it.
//!
//! ```text
//! starnet1.<base64url(postcard(Claims))>.<base64url(Ed25519 signature of all before the last dot)>
//! ```
//!
//! The signature covers the version as well, so a token cannot be taken for one of another version. The only place
//! where wall-clock time counts; [`SKEW_SECONDS`] is how far two clocks may be apart.

use std::{
    fmt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use super::{
    files::{self, FileError, Secrecy},
    messages::{FailureReason, NodeName},
};

/// How far the clocks of the control centre and a node may be apart, seconds.
pub const SKEW_SECONDS: u64 = 60;

/// Longest token that is looked at, bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;

const VERSION: &str = "starnet1";

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whose it is: a name for logs and for counting the sessions of one client.
    pub client: String,
    /// Not valid from this second on (Unix time).
    pub expires: u64,
    /// Not valid before this second (Unix time).
    pub not_before: u64,
    /// The exits it is for; `None`: any.
    pub exits: Option<Vec<NodeName>>,
    /// Most paths of one session.
    pub paths_max: u8,
    /// Most sessions at one entry.
    pub sessions_max: u32,
}

impl Claims {
    /// True where the token is for this exit.
    pub fn allows_exit(&self, exit: &str) -> bool {
        self.exits.as_ref().is_none_or(|exits| exits.iter().any(|name| name == exit))
    }

    /// An error unless now is within its time.
    pub fn check_time(&self, unix_seconds: u64) -> Result<(), TokenError> {
        if unix_seconds.saturating_add(SKEW_SECONDS) < self.not_before {
            return Err(TokenError::NotYetValid);
        }
        if unix_seconds.saturating_sub(SKEW_SECONDS) >= self.expires {
            return Err(TokenError::Expired);
        }
        Ok(())
    }
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of the form of a token, or too long.
    #[error("the token is malformed; copy it whole")]
    Malformed,
    /// Of another version.
    #[error("the token is of another version; ask for a new one")]
    Version,
    /// Not signed by this key, or changed since.
    #[error("the token's signature is wrong: it was changed, or another control centre issued it")]
    Signature,
    /// Its time has not come.
    #[error("the token is not valid yet; check the clock")]
    NotYetValid,
    /// Its time is over.
    #[error("the token has expired; ask for a new one")]
    Expired,
}

impl From<TokenError> for FailureReason {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Expired => Self::TokenExpired,
            _ => Self::Unauthorised,
        }
    }
}

/// The key tokens are signed with.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl fmt::Debug for SigningKey {
    /// The public half only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a new key from the system's random source. Panics where that has failed: nothing safe is left to do.
    pub fn generate() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system's random source works");
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("ring reads what it wrote");
        Self { pair, pkcs8: pkcs8.as_ref().to_vec() }
    }

    /// Reads a key that [`SigningKey::save`] wrote: PKCS#8 (RFC 5958) in PEM.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let bytes = files::read(path, "make it with 'starnet token key'")?;
        let wrong = |why: &dyn fmt::Display| FileError::Content {
            path: path.to_owned(),
            problem: format!("not an Ed25519 key in PKCS#8 PEM ({why}); make one with 'starnet token key'"),
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|e| wrong(&e))?;
        let pkcs8 = der.secret_pkcs8_der().to_vec();
        // Keys of other tools (RFC 8410) hold the private half alone.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).map_err(|e| wrong(&e))?;
        Ok(Self { pair, pkcs8 })
    }

    /// Writes the key, for its owner only. Replaces an existing one only with `force`: tokens signed with the old
    /// one are worth nothing then.
    pub fn save(&self, path: &Path, force: bool) -> Result<(), FileError> {
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        let text = STANDARD.encode(&self.pkcs8);
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        files::write(path, pem.as_bytes(), Secrecy::Private, force)
    }

    /// The public half, which [`verify`] takes.
    pub fn public(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }
}

/// Signs a token.
pub fn issue(claims: &Claims, key: &SigningKey) -> String {
    let claims = postcard::to_stdvec(claims).expect("plain data encodes into memory");
    let mut token = format!("{VERSION}.{}", URL_SAFE_NO_PAD.encode(claims));
    let signature = key.pair.sign(token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// Checks a token's signature and time and returns what it says.
///
/// # Errors
/// See [`verify_signature`] and [`Claims::check_time`].
pub fn verify(token: &str, key: &[u8; 32], unix_seconds: u64) -> Result<Claims, TokenError> {
    let claims = verify_signature(token, key)?;
    claims.check_time(unix_seconds).map(|()| claims)
}

/// Checks a token's signature and returns what it says, whether its time has come or not. Nothing of the claims is decoded
/// before the signature is known to be good.
///
/// # Errors
/// [`TokenError::Malformed`] also where the token is longer than [`TOKEN_BYTES_MAX`].
pub fn verify_signature(token: &str, key: &[u8; 32]) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (version, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    if version != VERSION {
        return Err(TokenError::Version);
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
    UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
    match postcard::take_from_bytes::<Claims>(&claims) {
        Ok((claims, [])) => Ok(claims),
        _ => Err(TokenError::Malformed),
    }
}

/// The wall clock, for [`verify`]: seconds since 1970. A clock before that reads as zero.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn claims() -> Claims {
        Claims {
            client: "alice".into(),
            expires: NOW + 3600,
            not_before: NOW,
            exits: Some(vec!["exit-1".into()]),
            paths_max: 4,
            sessions_max: 10,
        }
    }

    #[test]
    fn a_token_says_what_was_signed() {
        let key = SigningKey::generate();
        let token = issue(&claims(), &key);
        assert!(token.is_ascii() && !token.contains([' ', '+', '/', '=']), "{token}");
        assert_eq!(verify(&token, &key.public(), NOW), Ok(claims()));
        assert!(claims().allows_exit("exit-1") && !claims().allows_exit("exit-2"));
        assert!(Claims { exits: None, ..claims() }.allows_exit("exit-2"));
    }

    #[test]
    fn a_token_holds_from_its_first_to_its_last_second_give_or_take_the_skew() {
        let key = SigningKey::generate();
        let token = issue(&claims(), &key);
        let at = |now| verify(&token, &key.public(), now).map(|_| ());
        assert_eq!(at(NOW - SKEW_SECONDS - 1), Err(TokenError::NotYetValid));
        assert_eq!(at(NOW - SKEW_SECONDS), Ok(()));
        assert_eq!(at(NOW + 3600 + SKEW_SECONDS - 1), Ok(()));
        assert_eq!(at(NOW + 3600 + SKEW_SECONDS), Err(TokenError::Expired));
        assert_eq!(at(0), Err(TokenError::NotYetValid));
        assert_eq!(at(u64::MAX), Err(TokenError::Expired));
        assert_eq!(FailureReason::from(TokenError::Expired), FailureReason::TokenExpired);
    }

    #[test]
    fn no_changed_or_shortened_token_passes() {
        let key = SigningKey::generate();
        let token = issue(&claims(), &key);
        for at in 0..token.len() {
            assert!(verify(&token[..at], &key.public(), NOW).is_err(), "cut at {at}");
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(verify(std::str::from_utf8(&bytes).unwrap(), &key.public(), NOW).is_err(), "changed at {at}");
        }
        assert!(verify(&format!("{token}A"), &key.public(), NOW).is_err());
        assert!(verify(&format!("{token}."), &key.public(), NOW).is_err());
    }

    #[test]
    fn another_key_or_version_is_refused_by_name() {
        let key = SigningKey::generate();
        let token = issue(&claims(), &key);
        assert_eq!(verify(&token, &SigningKey::generate().public(), NOW), Err(TokenError::Signature));
        let other = token.replace("starnet1.", "starnet2.");
        assert_eq!(verify(&other, &key.public(), NOW), Err(TokenError::Version));
        assert_eq!(verify(&"A".repeat(TOKEN_BYTES_MAX + 1), &key.public(), NOW), Err(TokenError::Malformed));
    }

    #[test]
    fn a_key_comes_back_from_its_file_and_its_tokens_stay_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token.key");
        let key = SigningKey::generate();
        key.save(&path, false).unwrap();
        assert!(matches!(SigningKey::generate().save(&path, false), Err(FileError::Exists { .. })));
        let loaded = SigningKey::load(&path).unwrap();
        assert_eq!(verify(&issue(&claims(), &loaded), &key.public(), NOW), Ok(claims()));

        std::fs::write(&path, "not a key").unwrap();
        let error = SigningKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("token.key") && error.contains("starnet token key"), "{error}");
        let error = SigningKey::load(&dir.path().join("absent.key")).unwrap_err().to_string();
        assert!(error.contains("absent.key") && error.contains("starnet token key"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_at_all_makes_verify_panic_or_pass(text in ".{0,300}", tail in "[A-Za-z0-9_-]{0,200}") {
            let key = [7u8; 32];
            prop_assert!(verify(&text, &key, NOW).is_err());
            let shaped = format!("starnet1.{tail}.{tail}");
            prop_assert!(verify(&shaped, &key, NOW).is_err());
        }
    }
}
