//! The fast scanner against the slow one, serde_json, and the rows that it makes.
#![no_main]

use ingestd::encode::tuple::{RowContext, append_tuple, decode_tuple};
use ingestd::json::peek::{PeekedPriority, peek_body, peek_head};
use ingestd::json::scan::oracle;
use ingestd::json::{BodyError, ScanLimits, Scratch, scan_body};
use ingestd::types::{Priority, UnixMicros};
use libfuzzer_sys::fuzz_target;

const LIMITS: ScanLimits = ScanLimits {
    events_max: 5,
    timestamp_min: UnixMicros(1_761_955_200_000_000),
    timestamp_max: UnixMicros(1_793_577_600_000_000),
};

fuzz_target!(|data: &[u8]| {
    compare(data);
    // Most of what can go wrong is in a payload.
    let before: &[u8] = br#"{"events":[{"event_id":"e","service_name":"s","event_type":"t","payload":"#;
    compare(&[before, data, b"}]}"].concat());
});

fn compare(body: &[u8]) {
    let mut scratch = Scratch::new();
    let fast = scan_body(body, &LIMITS, &mut scratch);
    let well_formed = !matches!(fast, Err(BodyError::Syntax { .. }));
    let serde = std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
    assert_eq!(well_formed, serde, "serde_json");
    match oracle::scan_body(body, &LIMITS) {
        Err(error) => assert_eq!(fast, Err(error)),
        Ok(outcome) => {
            assert_eq!(fast, Ok(()));
            assert_eq!(scratch.events(), outcome.events);
            assert_eq!(scratch.rejects(), outcome.rejects);
            assert_eq!(scratch.batch_id(), outcome.batch_id.as_deref());
            assert_eq!(scratch.priority(), outcome.priority);
            compare_peeked(body, outcome.priority);
            compare_rows(body, &scratch);
        }
    }
}

fn compare_peeked(body: &[u8], priority: Option<Priority>) {
    let scanned = priority.map_or(PeekedPriority::Absent, PeekedPriority::Given);
    let whole = (!body.contains(&b'\\')).then(|| peek_body(body));
    for peeked in [peek_head(body), peek_head(&body[..body.len() / 2])].into_iter().chain(whole) {
        assert!(peeked == scanned || peeked == PeekedPriority::Unknown, "{peeked:?}");
    }
}

fn compare_rows(body: &[u8], scratch: &Scratch) {
    let row = RowContext::new("batch", Priority::default(), LIMITS.timestamp_max);
    let mut tuples = Vec::new();
    for event in scratch.events() {
        let start = tuples.len();
        append_tuple(&mut tuples, body, event, &row);
        let (view, bytes) = decode_tuple(&tuples[start..]).expect("what was encoded can be decoded");
        assert_eq!(bytes, tuples.len() - start);
        assert_eq!(view.payload.as_bytes(), event.payload.of(body));
    }
    assert!(tuples.len() <= row.tuple_bytes_max(body.len(), scratch.events().len()));
}
