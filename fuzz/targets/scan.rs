//! The fast scanner against the slow one, serde_json and simd-json, and the rows that it makes.
#![no_main]

#[path = "../../tests/support/scanners.rs"]
mod scanners;

use ingestd::encode::tuple::{RowContext, append_tuple, decode_tuple};
use ingestd::json::Scratch;
use ingestd::types::Priority;
use libfuzzer_sys::fuzz_target;
use scanners::LIMITS;

fuzz_target!(|data: &[u8]| {
    compare(data);
    // Most of what can go wrong is in a payload.
    let before: &[u8] = br#"{"events":[{"event_id":"e","service_name":"s","event_type":"t","payload":"#;
    compare(&[before, data, b"}]}"].concat());
});

fn compare(body: &[u8]) {
    let mut scratch = Scratch::new();
    if scanners::compare(&mut scratch, body).is_ok() {
        compare_rows(body, &scratch);
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
