//! The keys in force: found by token or by client certificate.

use std::collections::HashMap;
use std::sync::Arc;

use subtle::ConstantTimeEq as _;

use super::key::{ApiKey, Fingerprint, Token};
use super::rate::{RateLimits, Rates};

/// A key, and what its requests share.
pub struct Entry {
    /// The key.
    pub key: ApiKey,
    /// Its buckets.
    pub rates: Arc<Rates>,
}

/// All keys of one reading of the file.
#[derive(Default)]
pub struct Keyring {
    by_id: HashMap<Arc<str>, Arc<Entry>>,
    by_certificate: HashMap<Fingerprint, Arc<Entry>>,
}

impl Keyring {
    /// `keys`, where those without limits of their own have `limits`. A key whose limits are as they were in `before`
    /// keeps its buckets: reading the file again gives nobody a new burst.
    pub fn new(keys: Vec<ApiKey>, limits: RateLimits, before: Option<&Self>) -> Self {
        let mut keyring = Self::default();
        for key in keys {
            let limits = key.limits.or(limits);
            let known = before.and_then(|before| before.by_id.get(&key.id));
            let rates = match known {
                Some(known) if known.rates.limits() == limits => Arc::clone(&known.rates),
                _ => Arc::new(Rates::new(limits)),
            };
            let entry = Arc::new(Entry { key, rates });
            if let Some(certificate) = entry.key.certificate {
                keyring.by_certificate.insert(certificate, Arc::clone(&entry));
            }
            keyring.by_id.insert(Arc::clone(&entry.key.id), entry);
        }
        keyring
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when nobody has a key.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The keys' ids, in no order.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_id.keys()
    }

    /// The key that `token` proves. Which ids exist is no secret; how much of a token is right is: hashes are compared,
    /// in constant time.
    pub fn by_token(&self, token: &str) -> Option<&Arc<Entry>> {
        let entry = self.by_id.get(Token::id_in(token)?)?;
        let sent = Fingerprint::of(token.as_bytes());
        bool::from(sent.0.ct_eq(&entry.key.token.0)).then_some(entry)
    }

    /// The key of a client certificate that was verified.
    pub fn by_certificate(&self, certificate: Fingerprint) -> Option<&Arc<Entry>> {
        self.by_certificate.get(&certificate)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::key::Services;
    use super::super::rate::RateLimit;
    use super::super::scope::Scopes;
    use super::*;

    fn key(token: &Token, limits: RateLimits, certificate: Option<Fingerprint>) -> ApiKey {
        ApiKey {
            id: Arc::from(&*token.id),
            name: "test".to_owned(),
            token: Fingerprint::of(token.text.as_bytes()),
            scopes: Scopes::ALL,
            services: Services::default(),
            limits,
            certificate,
        }
    }

    #[test]
    fn a_key_is_found_by_its_whole_token_only() {
        let token = Token::random().expect("random");
        let certificate = Fingerprint::of(b"certificate");
        let keyring =
            Keyring::new(vec![key(&token, RateLimits::default(), Some(certificate))], RateLimits::default(), None);
        assert!(keyring.by_token(&token.text).is_some());
        let last = if token.text.ends_with('0') { '1' } else { '0' };
        let mut wrong = token.text.clone();
        wrong.pop();
        assert!(keyring.by_token(&wrong).is_none());
        wrong.push(last);
        assert!(keyring.by_token(&wrong).is_none());
        assert!(keyring.by_token(&Token::random().expect("random").text).is_none());
        assert!(keyring.by_token("").is_none());
        assert!(keyring.by_certificate(certificate).is_some());
        assert!(keyring.by_certificate(Fingerprint::of(b"other")).is_none());
    }

    #[test]
    fn buckets_survive_a_reading_unless_their_limits_changed() {
        let token = Token::random().expect("random");
        let limit = |per_second| RateLimits {
            events: NonZeroU32::new(per_second).map(|rate| RateLimit::new(rate, None)),
            requests: None,
        };
        let keys = || vec![key(&token, RateLimits::default(), None)];
        let rates = |keyring: &Keyring| Arc::clone(&keyring.by_token(&token.text).expect("found").rates);
        let first = Keyring::new(keys(), limit(5), None);
        let same = Keyring::new(keys(), limit(5), Some(&first));
        assert!(Arc::ptr_eq(&rates(&first), &rates(&same)));
        let changed = Keyring::new(keys(), limit(6), Some(&same));
        assert!(!Arc::ptr_eq(&rates(&same), &rates(&changed)));
    }
}
