//! One body before all scanners, for tests and for the fuzz target.
//!
//! Known differences (docs/design/0002-own-json-scanner.md#context): serde_json (ignoring values) takes lone
//! surrogates, `\u0000`, any depth and any number as we do for well-formedness; simd-json refuses lone surrogates,
//! numbers beyond 64 bits or a double, and deep nesting, so only its acceptance says something.

use ingestd::json::peek::{PeekedPriority, peek_body, peek_head};
use ingestd::json::scan::oracle;
use ingestd::json::{BodyError, ScanLimits, Scratch, scan_body};
use ingestd::types::{Priority, UnixMicros};
use serde::de::IgnoredAny;

/// What the compared bodies are held to.
pub const LIMITS: ScanLimits = ScanLimits {
    events_max: 5,
    timestamp_min: UnixMicros(1_761_955_200_000_000),
    timestamp_max: UnixMicros(1_793_577_600_000_000),
};

/// Scans `body` both ways, holds the fast way to the oracle, and its syntax verdict to the other two parsers.
pub fn compare(scratch: &mut Scratch, body: &[u8]) -> Result<(), BodyError> {
    let shown = || String::from_utf8_lossy(&body[..body.len().min(2000)]).into_owned();
    let fast = scan_body(body, &LIMITS, scratch);
    match oracle::scan_body(body, &LIMITS) {
        Err(error) => assert_eq!(fast, Err(error), "{}", shown()),
        Ok(outcome) => {
            assert_eq!(fast, Ok(()), "{}", shown());
            assert_eq!(scratch.events(), outcome.events, "{}", shown());
            assert_eq!(scratch.rejects(), outcome.rejects, "{}", shown());
            assert_eq!(scratch.batch_id(), outcome.batch_id.as_deref(), "{}", shown());
            assert_eq!(scratch.priority(), outcome.priority, "{}", shown());
            compare_peeked(body, outcome.priority);
        }
    }
    let well_formed = !matches!(fast, Err(BodyError::Syntax { .. }));
    // serde_json does not look at the UTF-8 of what it ignores, so it is given a str.
    let serde = std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    assert_eq!(well_formed, serde, "serde_json: {}", shown());
    if simd_json::to_tape(&mut body.to_vec()).is_ok() {
        assert!(well_formed, "simd-json accepts: {}", shown());
    }
    for reject in scratch.rejects() {
        let (pointer, detail) = (reject.pointer(body), reject.detail());
        assert!(pointer.starts_with('/') && !detail.is_empty());
    }
    fast
}

/// A look at the envelope of a batch tells its priority, or nothing.
fn compare_peeked(body: &[u8], priority: Option<Priority>) {
    let scanned = priority.map_or(PeekedPriority::Absent, PeekedPriority::Given);
    let heads = [body.len() / 4, body.len() / 2, body.len()].map(|length| peek_head(&body[..length]));
    // A name that is spelled with escapes is not seen behind the events.
    let whole = (!body.contains(&b'\\')).then(|| peek_body(body));
    for peeked in heads.into_iter().chain(whole) {
        let shown = String::from_utf8_lossy(body);
        assert!(peeked == scanned || peeked == PeekedPriority::Unknown, "{peeked:?} of {shown}");
    }
}
