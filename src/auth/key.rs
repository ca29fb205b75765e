//! One API key, and the token that proves it.
//!
//! ```text
//!  token   ingestd_0123456789ab_<64 hexadecimal digits: 256 random bits>
//!                  └── id ────┘
//!  stored  SHA-256 of the whole token
//! ```
//!
//! The prefix lets secret scanners find a token that was committed or logged somewhere. The id is no secret: it names
//! the key in files, logs and the ledger. A token has 256 random bits, so its hash needs neither salt nor stretching.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use wildmatch::WildMatch;

use super::rate::RateLimits;
use super::scope::Scopes;

const PREFIX: &str = "ingestd_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// SHA-256 of a token, or of a certificate in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The fingerprint that `text` spells in hexadecimal digits; colons between bytes, as other tools print them, are
    /// fine.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        let bytes = HEXLOWER.decode(digits.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// Which services a key may send events of.
#[derive(Clone, Debug, Default)]
pub struct Services(Vec<WildMatch>);

impl Services {
    /// Those that match one of `patterns` (`*` any text, `?` one character); no pattern: all.
    pub fn matching<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        Self(patterns.into_iter().map(WildMatch::new).collect())
    }

    /// Whether everything is allowed.
    pub fn are_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether events of `service` are allowed.
    pub fn allow(&self, service: &str) -> bool {
        self.are_all() || self.0.iter().any(|pattern| pattern.matches(service))
    }
}

/// An API key as the file has it: everything but the token.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Names the key: the owner of its batches.
    pub id: Arc<str>,
    /// What people call it.
    pub name: String,
    /// Hash of its token.
    pub token: Fingerprint,
    /// What it may do.
    pub scopes: Scopes,
    /// Whose events it may send.
    pub services: Services,
    /// Its own limits; where it has none, the settings' hold.
    pub limits: RateLimits,
    /// The client certificate that counts as this key's token.
    pub certificate: Option<Fingerprint>,
}

/// A key's token: whoever has it has the key. Shown once, to the one who makes it.
pub struct Token {
    /// The key's id.
    pub id: String,
    /// The whole token.
    pub text: String,
}

impl Token {
    /// A new token, from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        let (id, secret) = bytes.split_at(ID_BYTES);
        let id = HEXLOWER.encode(id);
        let text = format!("{PREFIX}{id}_{}", HEXLOWER.encode(secret));
        Ok(Self { id, text })
    }

    /// The id in the token `text`, if it looks like a token.
    pub fn id_in(text: &str) -> Option<&str> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        (!id.is_empty() && secret.len() == 2 * SECRET_BYTES).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_its_id_and_256_random_bits() {
        let (one, other) = (Token::random().expect("random"), Token::random().expect("random"));
        assert_eq!(Token::id_in(&one.text), Some(&*one.id));
        assert_ne!((&one.id, &one.text), (&other.id, &other.text));
        assert_eq!(one.text.len(), "ingestd_".len() + 12 + 1 + 64);
        for bad in ["", "ingestd_", "ingestd_0123456789ab_", "ingestd__", &one.text[1..], &format!("{}0", one.text)] {
            assert_eq!(Token::id_in(bad), None, "{bad}");
        }
    }

    #[test]
    fn fingerprints_are_read_as_other_tools_print_them() {
        let fingerprint = Fingerprint::of(b"abc");
        // FIPS 180-2, appendix B.1.
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint.to_string(), hex);
        assert_eq!(Fingerprint::parse(hex), Some(fingerprint));
        let digits = hex.to_uppercase();
        let colons: Vec<_> = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]).collect();
        assert_eq!(Fingerprint::parse(&colons.join(":")), Some(fingerprint));
        assert_eq!(Fingerprint::parse(&hex[2..]), None);
        assert_eq!(Fingerprint::parse("x"), None);
    }

    #[test]
    fn services_match_by_pattern() {
        let services = Services::matching(["payment-*", "user"]);
        assert!(services.allow("payment-eu") && services.allow("payment-") && services.allow("user"));
        assert!(!services.allow("users") && !services.allow("a payment-eu") && !services.allow("Payment-eu"));
        assert!(Services::default().allow("anything"));
    }
}
