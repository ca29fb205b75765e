//! Times: what is read is written back as the same instant, and jiff agrees where it reads the same text.
#![no_main]

use ingestd::encode::timestamp::{append_rfc3339, parse_rfc3339};
use libfuzzer_sys::fuzz_target;

/// The years 1 to 9999: an offset leads out of what four digits can say.
const WRITABLE: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

fuzz_target!(|data: &[u8]| {
    let Some(instant) = parse_rfc3339(data).ok().filter(|instant| WRITABLE.contains(&instant.0)) else { return };
    let mut text = String::new();
    append_rfc3339(&mut text, instant);
    assert_eq!(parse_rfc3339(text.as_bytes()), Ok(instant), "{text}");
    // jiff takes a leap second for the second before it.
    let shown = String::from_utf8_lossy(data);
    if !shown.contains(":60")
        && let Ok(theirs) = shown.parse::<jiff::Timestamp>()
    {
        assert!(theirs.as_microsecond().abs_diff(instant.0) <= 1, "{shown}: {theirs} and {text}");
    }
});
