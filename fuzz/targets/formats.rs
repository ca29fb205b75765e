//! NDJSON lines and CloudEvents against the scanner of our own batches.
#![no_main]

#[path = "../../tests/support/formats.rs"]
mod formats;
#[path = "../../tests/support/scanners.rs"]
mod scanners;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    data.split(|&byte| byte == b'\n').for_each(formats::check_line);
    formats::check_cloud_events(data);
    // Most of what can go wrong is in what becomes metadata.
    let before: &[u8] = br#"[{"specversion":"1.0","id":"i","source":"s","type":"t","#;
    formats::check_cloud_events(&[before, data, b"}]"].concat());
});
