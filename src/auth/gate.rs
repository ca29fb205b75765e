//! The decision: who sends this request, and may they?

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use hyper::header::{AUTHORIZATION, HeaderMap};

use super::clients::Clients;
use super::key::{Fingerprint, Services};
use super::keyring::{Entry, Keyring};
use super::rate::{Exceeded, RateLimit, RateLimits, Rates, Standing, Unit};
use super::scope::{Scope, Scopes};
use crate::limits::{CLIENT_KEPT, FAILED_ATTEMPTS_AT_ONCE, FAILED_ATTEMPTS_PER_SECOND};

/// Who sends a request, and what they may.
pub struct Caller {
    owner: Arc<str>,
    scopes: Scopes,
    key: Option<Arc<Entry>>,
    rates: Option<Arc<Rates>>,
    standing: Standing,
}

impl Caller {
    /// Whose batches these are: the key's id, `""` without keys.
    pub fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    /// Whether what `scope` allows is allowed.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.allow(scope)
    }

    /// Whose events the caller may send; `None`: everybody's.
    pub fn services(&self) -> Option<&Services> {
        self.key.as_ref().map(|entry| &entry.key.services).filter(|services| !services.are_all())
    }

    /// Takes `units` from the caller's bucket, all or none.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn take(&self, unit: Unit, units: u32) -> Result<(), Denied> {
        let Some(rates) = &self.rates else { return Ok(()) };
        rates.take(unit, units, &self.standing).map_err(|exceeded| Denied::Rate(unit, exceeded))
    }

    /// The values of `RateLimit-Policy` and `RateLimit`, where anything is limited.
    pub fn rate_headers(&self) -> Option<(String, String)> {
        self.rates.as_ref()?.headers(&self.standing)
    }
}

/// Why a request is not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There is no key in it.
    Missing,
    /// The key in it is none of ours, or not readable.
    Wrong,
    /// The key in it is none of ours, and neither were too many others from this address: the answer is to wait.
    WrongTooOften,
    /// The key may not do this.
    Forbidden(Scope),
    /// The caller has used up what it may use.
    Rate(Unit, Exceeded),
}

enum Doors {
    /// No keys: everybody may do everything, at the rates of their address.
    Open { by_address: ArcSwapOption<Clients<Rates>>, limits: ArcSwap<RateLimits> },
    /// Keys decide.
    Keys(ArcSwap<Keyring>),
}

/// Where every request passes.
pub struct Gate {
    doors: Doors,
    failed: Clients<Rates>,
}

impl Gate {
    /// A gate that asks for no key and holds every address to `limits`.
    pub fn open(limits: RateLimits) -> Self {
        let by_address = ArcSwapOption::from(by_address(limits));
        Self::new(Doors::Open { by_address, limits: ArcSwap::from_pointee(limits) })
    }

    /// A gate that asks for a key of `keyring`.
    pub fn with_keys(keyring: Keyring) -> Self {
        Self::new(Doors::Keys(ArcSwap::from_pointee(keyring)))
    }

    fn new(doors: Doors) -> Self {
        Self { doors, failed: Clients::new(CLIENT_KEPT, || Rates::new(failed_attempts())) }
    }

    /// Whether requests need a key.
    pub fn asks_for_keys(&self) -> bool {
        matches!(self.doors, Doors::Keys(_))
    }

    /// The keys in force, where keys are asked for.
    pub fn keyring(&self) -> Option<Arc<Keyring>> {
        match &self.doors {
            Doors::Open { .. } => None,
            Doors::Keys(keyring) => Some(keyring.load_full()),
        }
    }

    /// Takes `keyring` for the one in force; a gate that asks for no keys stays so.
    pub fn replace_keys(&self, keyring: Keyring) {
        if let Doors::Keys(current) = &self.doors {
            current.store(Arc::new(keyring));
        }
    }

    /// Takes `limits` for those in force, where addresses are held to them; unchanged ones change nothing.
    pub fn replace_limits(&self, limits: RateLimits) {
        if let Doors::Open { by_address: current, limits: known } = &self.doors
            && **known.load() != limits
        {
            known.store(Arc::new(limits));
            current.store(by_address(limits));
        }
    }

    /// Forgets idle addresses. Called now and then.
    pub fn forget_idle(&self, now: Instant) {
        self.failed.forget_idle(now);
        if let Doors::Open { by_address, .. } = &self.doors
            && let Some(clients) = &*by_address.load()
        {
            clients.forget_idle(now);
        }
    }

    /// Who sends a request from `address` with `headers`, over a connection with the verified `certificate`. Where no
    /// keys are asked for it is `everybody`, the owner `""`. `None`: it has no key.
    ///
    /// # Errors
    /// [`Denied::Wrong`] or [`Denied::WrongTooOften`].
    pub fn identify(
        &self,
        address: IpAddr,
        certificate: Option<Fingerprint>,
        headers: &HeaderMap,
        everybody: &Arc<str>,
    ) -> Result<Option<Caller>, Denied> {
        let keyring = match &self.doors {
            Doors::Open { by_address, .. } => {
                let rates = by_address.load().as_ref().map(|clients| clients.of(address));
                return Ok(Some(Caller {
                    owner: Arc::clone(everybody),
                    scopes: Scopes::ALL,
                    key: None,
                    rates,
                    standing: Standing::default(),
                }));
            }
            Doors::Keys(keyring) => keyring.load(),
        };
        let entry = match (token_in(headers), certificate) {
            (Sent::Token(token), _) => keyring.by_token(token).ok_or_else(|| self.wrong(address))?,
            (Sent::Unreadable, _) => return Err(self.wrong(address)),
            (Sent::Nothing, Some(certificate)) => match keyring.by_certificate(certificate) {
                Some(entry) => entry,
                None => return Ok(None),
            },
            (Sent::Nothing, None) => return Ok(None),
        };
        Ok(Some(Caller {
            owner: Arc::clone(&entry.key.id),
            scopes: entry.key.scopes,
            rates: (!entry.rates.limits().is_empty()).then(|| Arc::clone(&entry.rates)),
            key: Some(Arc::clone(entry)),
            standing: Standing::default(),
        }))
    }

    /// A wrong key from `address`. Nobody guesses 256 bits; what is slowed is the noise of trying, and never a right key
    /// from the same address.
    fn wrong(&self, address: IpAddr) -> Denied {
        match self.failed.of(address).take(Unit::Requests, 1, &Standing::default()) {
            Err(Exceeded::Wait(_)) => Denied::WrongTooOften,
            Ok(()) | Err(Exceeded::Never(_)) => Denied::Wrong,
        }
    }
}

/// Buckets for each address; `None` when nothing is limited.
fn by_address(limits: RateLimits) -> Option<Arc<Clients<Rates>>> {
    // Long enough for a bucket to be full again, so that being forgotten gives nobody anything.
    let refill = |limit: RateLimit| u64::from(limit.burst.get() / limit.per_second.get());
    let kept = [limits.events, limits.requests].into_iter().flatten().map(refill).max()?;
    let kept = CLIENT_KEPT.max(Duration::from_secs(kept + 1));
    Some(Arc::new(Clients::new(kept, move || Rates::new(limits))))
}

fn failed_attempts() -> RateLimits {
    let number = |value| NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN);
    let limit = RateLimit::new(number(FAILED_ATTEMPTS_PER_SECOND), Some(number(FAILED_ATTEMPTS_AT_ONCE)));
    RateLimits { events: None, requests: Some(limit) }
}

enum Sent<'a> {
    Nothing,
    Unreadable,
    Token(&'a str),
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750) or `X-API-Key: TOKEN`; both must agree.
fn token_in(headers: &HeaderMap) -> Sent<'_> {
    let mut sent = Sent::Nothing;
    let bearer = headers.get_all(AUTHORIZATION).iter().map(|value| value.to_str().ok().and_then(bearer));
    let plain = headers.get_all("x-api-key").iter().map(|value| value.to_str().ok().map(str::trim));
    for token in bearer.chain(plain) {
        sent = match (sent, token) {
            (Sent::Nothing, Some(token)) => Sent::Token(token),
            (Sent::Token(known), Some(token)) if known == token => Sent::Token(known),
            _ => Sent::Unreadable,
        };
    }
    sent
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::super::key::{ApiKey, Token};
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = given.iter().map(|(name, value)| {
            (hyper::header::HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    fn gate() -> (Gate, Token) {
        let token = Token::random().expect("random");
        let key = ApiKey {
            id: Arc::from(&*token.id),
            name: "test".to_owned(),
            token: Fingerprint::of(token.text.as_bytes()),
            scopes: Scopes::default().with(Scope::Read),
            services: Services::default(),
            limits: RateLimits::default(),
            certificate: Some(Fingerprint::of(b"certificate")),
        };
        (Gate::with_keys(Keyring::new(vec![key], RateLimits::default(), None)), token)
    }

    fn owner(
        gate: &Gate,
        certificate: Option<Fingerprint>,
        given: &[(&'static str, &str)],
    ) -> Result<Option<String>, Denied> {
        let caller = gate.identify(ADDRESS, certificate, &headers(given), &Arc::from(""))?;
        Ok(caller.map(|caller| caller.owner().to_string()))
    }

    #[test]
    fn a_key_may_come_in_either_header_and_must_be_one() {
        let (gate, token) = gate();
        let (text, id) = (&*token.text, Ok(Some(token.id.clone())));
        assert_eq!(owner(&gate, None, &[]), Ok(None));
        for scheme in ["Bearer", "bearer", "BEARER "] {
            assert_eq!(owner(&gate, None, &[("authorization", &format!("{scheme} {text}"))]), id);
        }
        assert_eq!(owner(&gate, None, &[("x-api-key", text)]), id);
        let bearer = format!("Bearer {text}");
        assert_eq!(owner(&gate, None, &[("authorization", &bearer), ("x-api-key", text)]), id);
        for wrong in [
            &[("authorization", text)][..],
            &[("authorization", "Basic dTpw")],
            &[("authorization", &bearer), ("x-api-key", "another")],
            &[("authorization", &bearer), ("authorization", "Basic dTpw")],
            &[("x-api-key", "")],
        ] {
            assert_eq!(owner(&gate, None, wrong), Err(Denied::Wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_certificate_counts_where_no_token_is_sent() {
        let (gate, token) = gate();
        let (known, other) = (Some(Fingerprint::of(b"certificate")), Some(Fingerprint::of(b"other")));
        assert_eq!(owner(&gate, known, &[]), Ok(Some(token.id.clone())));
        assert_eq!(owner(&gate, other, &[]), Ok(None));
        assert_eq!(owner(&gate, other, &[("x-api-key", &token.text)]), Ok(Some(token.id.clone())));
        assert_eq!(owner(&gate, known, &[("x-api-key", "wrong")]), Err(Denied::Wrong));
    }

    #[test]
    fn wrong_keys_are_slowed_and_right_ones_are_not() {
        let (gate, token) = gate();
        for _ in 0..FAILED_ATTEMPTS_AT_ONCE {
            assert_eq!(owner(&gate, None, &[("x-api-key", "wrong")]), Err(Denied::Wrong));
        }
        assert!(matches!(owner(&gate, None, &[("x-api-key", "wrong")]), Err(Denied::WrongTooOften)));
        assert!(owner(&gate, None, &[("x-api-key", &token.text)]).is_ok());
        let elsewhere = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
        let answer = gate.identify(elsewhere, None, &headers(&[("x-api-key", "wrong")]), &Arc::from(""));
        assert!(matches!(answer, Err(Denied::Wrong)));
    }

    #[test]
    fn an_open_gate_holds_addresses_to_their_rate() {
        let limits =
            |rate| RateLimits { events: None, requests: NonZeroU32::new(rate).map(|rate| RateLimit::new(rate, None)) };
        let gate = Gate::open(limits(2));
        let take = |address| {
            let caller =
                gate.identify(address, None, &HeaderMap::new(), &Arc::from("")).expect("open").expect("somebody");
            assert!(caller.may(Scope::Admin) && caller.services().is_none());
            caller.take(Unit::Requests, 1)
        };
        assert_eq!((take(ADDRESS), take(ADDRESS)), (Ok(()), Ok(())));
        assert!(matches!(take(ADDRESS), Err(Denied::Rate(Unit::Requests, Exceeded::Wait(_)))));
        gate.replace_limits(limits(2));
        assert!(take(ADDRESS).is_err(), "unchanged limits give nobody a new burst");
        assert_eq!(take(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1))), Ok(()));
        gate.replace_limits(RateLimits::default());
        assert_eq!(take(ADDRESS), Ok(()));
    }
}
