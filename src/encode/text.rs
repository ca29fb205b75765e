//! Tuples as lines of PostgreSQL's text COPY, for tables that are spread over a Citus cluster.
//!
//! ```text
//!  ingest_shard ⇥ event_id ⇥ service_name ⇥ event_type ⇥ payload ⇥ "timestamp" ⇥ metadata ⇥ batch_id ⇥ priority ⇥ ingested_at ⏎
//! ```
//!
//! A coordinator that gets binary rows parses every jsonb and prints it again for the worker; columns of a text COPY it
//! passes on as they are, all but the distribution column. NULL is `\N`; backslash, tab, line feed and carriage return are
//! escaped, in a payload as elsewhere: the worker takes the escapes away and parses what the client sent. Instants are in
//! UTC with their offset, years before 1 with `BC`, so neither time zone nor date style of a session matters.
//!
//! Lines are made from the tuples of a block when they are copied: journal, quarantine and dead letters know one encoding.
//! Source: PostgreSQL's documentation of COPY, "Text Format".

use crate::encode::timestamp::civil_of;
use crate::encode::tuple::TupleView;
use crate::sharding::IngestShard;
use crate::types::UnixMicros;

/// The columns of a line, in their order.
pub const TEXT_COPY_COLUMNS: &str = r#"ingest_shard, event_id, service_name, event_type, payload, "timestamp", metadata, batch_id, priority, ingested_at"#;

/// Writes the lines of one batch.
pub struct Lines {
    /// The first field and the last three, which are the same for the whole batch.
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Lines {
    /// For rows that go to `shard`.
    pub fn new(shard: IngestShard) -> Self {
        let mut head = Vec::new();
        append_number(&mut head, shard.0.into());
        Self { head, tail: Vec::new() }
    }

    /// Appends the line of `event`, which is of the same batch as those before it.
    pub fn append(&mut self, out: &mut Vec<u8>, event: &TupleView<'_>) {
        if self.tail.is_empty() {
            append_escaped(&mut self.tail, event.batch_id);
            self.tail.push(b'\t');
            append_number(&mut self.tail, event.priority.get().into());
            self.tail.push(b'\t');
            append_instant(&mut self.tail, event.ingested_at);
            self.tail.push(b'\n');
        }
        out.extend_from_slice(&self.head);
        for text in [event.event_id, event.service_name, event.event_type, event.payload] {
            out.push(b'\t');
            append_escaped(out, text);
        }
        out.push(b'\t');
        append_instant(out, event.timestamp);
        out.push(b'\t');
        match event.metadata {
            Some(metadata) => append_escaped(out, metadata),
            None => out.extend_from_slice(b"\\N"),
        }
        out.push(b'\t');
        out.extend_from_slice(&self.tail);
    }
}

fn append_escaped(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = first_special(rest) {
        out.extend_from_slice(&rest[..at]);
        out.push(b'\\');
        out.push(match rest[at] {
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            backslash => backslash,
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Where the first byte of `text` is that must be escaped.
fn first_special(text: &[u8]) -> Option<usize> {
    let at = memchr::memchr3(b'\\', b'\n', b'\t', text);
    memchr::memchr(b'\r', &text[..at.unwrap_or(text.len())]).or(at)
}

/// Appends `YYYY-MM-DD hh:mm:ss.ffffff+00[ BC]`.
fn append_instant(out: &mut Vec<u8>, instant: UnixMicros) {
    let civil = civil_of(instant);
    // Year 0 is 1 BC.
    let year = if civil.year > 0 { civil.year } else { 1 - civil.year };
    if year < 1000 {
        append_digits(out, year.unsigned_abs(), 4);
    } else {
        append_number(out, year);
    }
    for (separator, number) in
        [(b'-', civil.month), (b'-', civil.day), (b' ', civil.hour), (b':', civil.minute), (b':', civil.second)]
    {
        out.push(separator);
        append_digits(out, number.into(), 2);
    }
    out.push(b'.');
    append_digits(out, civil.micros.into(), 6);
    out.extend_from_slice(if civil.year > 0 { b"+00" } else { b"+00 BC" });
}

/// Appends the last `digits` digits of `number`.
fn append_digits(out: &mut Vec<u8>, number: u64, digits: u32) {
    out.extend((0..digits).rev().map(|place| b'0' + (number / 10_u64.pow(place) % 10) as u8));
}

fn append_number(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.push(b'-');
    }
    let number = number.unsigned_abs();
    append_digits(out, number, number.checked_ilog10().unwrap_or(0) + 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::tuple::{RowContext, append_tuple, decode_tuple};
    use crate::json::{EventSpans, Span, TextSpan};
    use crate::types::Priority;

    const NOVEMBER: UnixMicros = UnixMicros(1_793_491_200_000_001);

    fn tuple_of(texts: [&str; 4], metadata: Option<&str>, timestamp: UnixMicros) -> Vec<u8> {
        let mut body = Vec::new();
        let mut span = |part: &str| {
            let start = body.len();
            body.extend_from_slice(part.as_bytes());
            Span::new(start, body.len())
        };
        let [event_id, service_name, event_type, payload] = texts.map(&mut span);
        let text = |span| TextSpan { span, escaped: false };
        let metadata = metadata.map(&mut span);
        let spans = EventSpans {
            event_id: text(event_id),
            service_name: text(service_name),
            event_type: text(event_type),
            payload,
            metadata,
            timestamp: Some(timestamp),
        };
        let mut tuple = Vec::new();
        append_tuple(&mut tuple, &body, &spans, &RowContext::new("b:1", Priority::new(7).expect("valid"), NOVEMBER));
        tuple
    }

    fn line(texts: [&str; 4], metadata: Option<&str>, timestamp: UnixMicros) -> String {
        let mut out = Vec::new();
        let tuple = tuple_of(texts, metadata, timestamp);
        Lines::new(IngestShard(-7)).append(&mut out, &decode_tuple(&tuple).expect("a tuple").0);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_line_is_laid_out_as_postgresql_documents_it() {
        assert_eq!(
            line(["e1", "s", "t", r#"{"a": "\n é"}"#], None, UnixMicros(0)),
            concat!(
                "-7\te1\ts\tt\t",
                r#"{"a": "\\n é"}"#,
                "\t1970-01-01 00:00:00.000000+00\t\\N\tb:1\t7\t2026-11-01 00:00:00.000001+00\n"
            )
        );
    }

    #[test]
    fn what_has_a_meaning_in_a_line_is_escaped() {
        let texts = ["\\N", "a\tb\nc\rd", "\r\r\\.", "{\r\n\t}"];
        let line = line(texts, Some("{}"), UnixMicros(0));
        let fields: Vec<&str> = line.trim_end_matches('\n').split('\t').collect();
        assert_eq!(fields[1..5], [r"\\N", r"a\tb\nc\rd", r"\r\r\\.", r"{\r\n\t}"]);
        assert_eq!(fields[6], "{}");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn instants_of_every_age_are_written_in_full() {
        let written = |micros| {
            let mut out = Vec::new();
            append_instant(&mut out, UnixMicros(micros));
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(written(-1), "1969-12-31 23:59:59.999999+00");
        assert_eq!(written(253_402_300_799_999_999), "9999-12-31 23:59:59.999999+00");
        assert_eq!(written(253_402_300_800_000_000), "10000-01-01 00:00:00.000000+00");
        assert_eq!(written(-62_135_596_800_000_000), "0001-01-01 00:00:00.000000+00");
        assert_eq!(written(-62_135_596_800_000_001), "0001-12-31 23:59:59.999999+00 BC");
    }
}
