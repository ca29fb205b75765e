//! One event as one tuple of PostgreSQL's binary COPY, written on the worker and sent as it is.
//!
//! ```text
//!  int16 9                                  number of fields
//!  int32 length, bytes   event_id           text
//!  int32 length, bytes   service_name       text
//!  int32 length, bytes   event_type         text
//!  int32 length, bytes   payload            jsonb: version byte 1, then the JSON text as sent
//!  int32 8, int64        "timestamp"        microseconds since 2000-01-01T00:00:00Z
//!  int32 length, bytes   metadata           jsonb, or length -1 and no bytes: NULL
//!  int32 length, bytes   batch_id           text        ┐
//!  int32 2, int16        priority           int2        ├ the same for the whole batch: made once
//!  int32 8, int64        ingested_at        timestamptz ┘
//! ```
//!
//! Integers are big-endian. Source: PostgreSQL's documentation of COPY, "Binary Format"; `jsonb_recv` in
//! `src/backend/utils/adt/jsonb.c`; `timestamptz_recv` in `timestamp.c`.
//!
//! Reading tuples back is for the cold paths: bisection, dead letters, partitions.

use std::str;

use crate::encode::timestamp::append_rfc3339;
use crate::json::{EventSpans, Span, TextSpan};
use crate::types::{BATCH_ID_BYTES_MAX, Priority, UnixMicros};

/// The columns of `COPY events (…)`, in the order of a tuple's fields.
pub const COPY_COLUMNS: &str =
    r#"event_id, service_name, event_type, payload, "timestamp", metadata, batch_id, priority, ingested_at"#;
/// What a binary COPY begins with: signature, flags 0, no header extension.
pub const COPY_HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What a binary COPY ends with: a field count of -1.
pub const COPY_TRAILER: [u8; 2] = [0xFF, 0xFF];

const FIELD_COUNT: u16 = 9;
const JSONB_VERSION: u8 = 1;
const NULL: i32 = -1;
/// 2000-01-01T00:00:00Z, where PostgreSQL's clock begins, in Unix microseconds.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Field count, six lengths, two jsonb versions and the timestamp: what a tuple has besides its event's text
/// and the batch's fields.
const EVENT_OVERHEAD_BYTES: usize = 2 + 6 * 4 + 2 + 8;
const BATCH_FIELDS_BYTES_MAX: usize = 4 + BATCH_ID_BYTES_MAX + (4 + 2) + (4 + 8);

/// The fields that all events of a batch share, encoded once.
#[derive(Clone, Debug)]
pub struct RowContext {
    received_at: UnixMicros,
    batch_fields: [u8; BATCH_FIELDS_BYTES_MAX],
    batch_fields_bytes: usize,
}

impl RowContext {
    /// The batch `batch_id` of `priority`, received at `received_at`.
    ///
    /// # Panics
    /// When `batch_id` is longer than [`BATCH_ID_BYTES_MAX`]: callers validate it first.
    pub fn new(batch_id: &str, priority: Priority, received_at: UnixMicros) -> Self {
        assert!(batch_id.len() <= BATCH_ID_BYTES_MAX);
        let mut context = Self { received_at, batch_fields: [0; BATCH_FIELDS_BYTES_MAX], batch_fields_bytes: 0 };
        context.push(&(batch_id.len() as i32).to_be_bytes());
        context.push(batch_id.as_bytes());
        context.push(&2i32.to_be_bytes());
        context.push(&i16::from(priority.get()).to_be_bytes());
        context.push(&8i32.to_be_bytes());
        context.push(&postgres_micros(received_at).to_be_bytes());
        context
    }

    /// Most bytes that the tuples of `events` events take whose texts are parts of `body_bytes` of JSON: room
    /// for a block, reserved once.
    pub fn tuple_bytes_max(&self, body_bytes: usize, events: usize) -> usize {
        body_bytes + events * (EVENT_OVERHEAD_BYTES + self.batch_fields_bytes)
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.batch_fields_bytes + bytes.len();
        self.batch_fields[self.batch_fields_bytes..end].copy_from_slice(bytes);
        self.batch_fields_bytes = end;
    }
}

/// Appends the tuple of `event`, whose spans are into `body`; without a timestamp the receive time counts.
pub fn append_tuple(out: &mut Vec<u8>, body: &[u8], event: &EventSpans, row: &RowContext) {
    out.extend_from_slice(&FIELD_COUNT.to_be_bytes());
    append_text(out, body, event.event_id);
    append_text(out, body, event.service_name);
    append_text(out, body, event.event_type);
    append_jsonb(out, body, event.payload);
    let timestamp = postgres_micros(event.timestamp.unwrap_or(row.received_at));
    let mut field = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    field[4..].copy_from_slice(&timestamp.to_be_bytes());
    out.extend_from_slice(&field);
    match event.metadata {
        Some(metadata) => append_jsonb(out, body, metadata),
        None => out.extend_from_slice(&NULL.to_be_bytes()),
    }
    out.extend_from_slice(&row.batch_fields[..row.batch_fields_bytes]);
}

#[inline]
fn append_text(out: &mut Vec<u8>, body: &[u8], text: TextSpan) {
    out.extend_from_slice(&(text.decoded_bytes(body) as i32).to_be_bytes());
    text.append_to(out, body);
}

#[inline]
fn append_jsonb(out: &mut Vec<u8>, body: &[u8], json: Span) {
    let [a, b, c, d] = (json.bytes() as i32 + 1).to_be_bytes();
    out.extend_from_slice(&[a, b, c, d, JSONB_VERSION]);
    out.extend_from_slice(json.of(body));
}

fn postgres_micros(instant: UnixMicros) -> i64 {
    instant.0.saturating_sub(POSTGRES_EPOCH_MICROS)
}

/// A tuple's fields, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleView<'a> {
    /// The event's id.
    pub event_id: &'a str,
    /// Who sent it.
    pub service_name: &'a str,
    /// What it is.
    pub event_type: &'a str,
    /// JSON text as the client sent it.
    pub payload: &'a str,
    /// When it happened: the partition key.
    pub timestamp: UnixMicros,
    /// JSON text as the client sent it.
    pub metadata: Option<&'a str>,
    /// The batch it came in.
    pub batch_id: &'a str,
    /// The batch's priority.
    pub priority: Priority,
    /// When the batch was received.
    pub ingested_at: UnixMicros,
}

/// Why bytes are not a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TupleError {
    /// They end inside it.
    #[error("the bytes end inside a tuple")]
    Truncated,
    /// Something that [`append_tuple`] never writes.
    #[error("malformed tuple: {0}")]
    Malformed(&'static str),
}

/// Reads the tuple at the start of `bytes`; returns it with its length in bytes.
///
/// # Errors
/// [`TupleError`] when the bytes are not what [`append_tuple`] writes.
pub fn decode_tuple(bytes: &[u8]) -> Result<(TupleView<'_>, usize), TupleError> {
    let mut fields = Fields { rest: bytes };
    if fields.chunk()? != FIELD_COUNT.to_be_bytes() {
        return Err(TupleError::Malformed("number of fields"));
    }
    let view = TupleView {
        event_id: fields.text()?,
        service_name: fields.text()?,
        event_type: fields.text()?,
        payload: fields.jsonb()?.ok_or(TupleError::Malformed("payload is NULL"))?,
        timestamp: fields.instant()?,
        metadata: fields.jsonb()?,
        batch_id: fields.text()?,
        priority: fields.priority()?,
        ingested_at: fields.instant()?,
    };
    Ok((view, bytes.len() - fields.rest.len()))
}

/// The tuples of a block, each as its raw bytes and its fields. Ends after the first error.
pub fn tuples(block_tuples: &[u8]) -> impl Iterator<Item = Result<(&[u8], TupleView<'_>), TupleError>> {
    let mut rest = block_tuples;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let decoded = decode_tuple(rest);
        let (raw, after) = rest.split_at(decoded.map_or(rest.len(), |(_, bytes)| bytes));
        rest = after;
        Some(decoded.map(|(view, _)| (raw, view)))
    })
}

/// The fields of a tuple that have not been read yet.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], TupleError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(TupleError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn chunk<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], TupleError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(TupleError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// The next field's bytes; `None` for NULL.
    fn field(&mut self) -> Result<Option<&'a [u8]>, TupleError> {
        match i32::from_be_bytes(self.chunk()?) {
            NULL => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| TupleError::Malformed("negative field length"))?;
                self.take(length).map(Some)
            }
        }
    }

    fn text(&mut self) -> Result<&'a str, TupleError> {
        let bytes = self.field()?.ok_or(TupleError::Malformed("a text is NULL"))?;
        str::from_utf8(bytes).map_err(|_| TupleError::Malformed("a text is not UTF-8"))
    }

    fn jsonb(&mut self) -> Result<Option<&'a str>, TupleError> {
        match self.field()? {
            None => Ok(None),
            Some([JSONB_VERSION, json @ ..]) => {
                str::from_utf8(json).map(Some).map_err(|_| TupleError::Malformed("a jsonb is not UTF-8"))
            }
            Some(_) => Err(TupleError::Malformed("jsonb version")),
        }
    }

    fn fixed<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], TupleError> {
        let bytes = self.field()?.and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(TupleError::Malformed("length of a fixed-size field"))
    }

    fn instant(&mut self) -> Result<UnixMicros, TupleError> {
        Ok(UnixMicros(i64::from_be_bytes(self.fixed()?).saturating_add(POSTGRES_EPOCH_MICROS)))
    }

    fn priority(&mut self) -> Result<Priority, TupleError> {
        let priority = u8::try_from(i16::from_be_bytes(self.fixed()?)).ok().and_then(Priority::new);
        priority.ok_or(TupleError::Malformed("priority"))
    }
}

impl TupleView<'_> {
    /// Appends the event as the JSON object that a client would send, `payload` and `metadata` verbatim.
    pub fn to_json(&self, out: &mut String) {
        for (opening, text) in [
            ("{\"event_id\":", self.event_id),
            (",\"service_name\":", self.service_name),
            (",\"event_type\":", self.event_type),
        ] {
            out.push_str(opening);
            append_json_string(out, text);
        }
        out.push_str(",\"payload\":");
        out.push_str(self.payload);
        out.push_str(",\"timestamp\":\"");
        append_rfc3339(out, self.timestamp);
        out.push('"');
        if let Some(metadata) = self.metadata {
            out.push_str(",\"metadata\":");
            out.push_str(metadata);
        }
        out.push('}');
    }
}

fn append_json_string(out: &mut String, text: &str) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\0'..' ' => {
                out.push_str("\\u00");
                out.extend([HEX[character as usize >> 4], HEX[character as usize & 15]]);
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECEIVED_AT: UnixMicros = UnixMicros(1_793_491_200_000_001);

    fn row(batch_id: &str) -> RowContext {
        RowContext::new(batch_id, Priority::new(7).expect("valid"), RECEIVED_AT)
    }

    /// A body that is only the parts of one event, back to back.
    fn event(texts: [&str; 3], payload: &str, metadata: Option<&str>) -> (Vec<u8>, EventSpans) {
        let mut body = Vec::new();
        let mut span = |part: &str| {
            let start = body.len();
            body.extend_from_slice(part.as_bytes());
            Span::new(start, body.len())
        };
        let mut text = |part: &str| TextSpan { span: span(part), escaped: part.contains('\\') };
        let [event_id, service_name, event_type] = texts.map(&mut text);
        let spans = EventSpans {
            event_id,
            service_name,
            event_type,
            payload: span(payload),
            metadata: metadata.map(&mut span),
            timestamp: None,
        };
        (body, spans)
    }

    #[test]
    fn a_tuple_is_laid_out_as_postgresql_documents_it() {
        let (body, mut spans) = event(["e1", "s", "t"], "{}", None);
        spans.timestamp = Some(UnixMicros(POSTGRES_EPOCH_MICROS + 2));
        let mut out = vec![0xAA];
        append_tuple(&mut out, &body, &spans, &row("b9"));
        let mut expected = vec![0xAA, 0, 9];
        expected.extend_from_slice(b"\0\0\0\x02e1\0\0\0\x01s\0\0\0\x01t\0\0\0\x03\x01{}");
        expected
            .extend_from_slice(b"\0\0\0\x08\0\0\0\0\0\0\0\x02\xff\xff\xff\xff\0\0\0\x02b9\0\0\0\x02\0\x07\0\0\0\x08");
        expected.extend_from_slice(&(RECEIVED_AT.0 - POSTGRES_EPOCH_MICROS).to_be_bytes());
        assert_eq!(out, expected);
    }

    #[test]
    fn without_a_timestamp_the_receive_time_counts() {
        let (body, spans) = event(["e1", "s", "t"], "{}", None);
        let mut out = Vec::new();
        append_tuple(&mut out, &body, &spans, &row("b"));
        let (view, _) = decode_tuple(&out).expect("decodes");
        assert_eq!((view.timestamp, view.ingested_at), (RECEIVED_AT, RECEIVED_AT));
    }

    #[test]
    fn a_tuple_becomes_the_json_that_was_sent() {
        let (body, mut spans) = event([r#"a\"\u0001é\\"#, "s", "t"], r#"{"x": 1.50}"#, Some("{ }"));
        spans.timestamp = Some(UnixMicros(1_500_000));
        let mut out = Vec::new();
        append_tuple(&mut out, &body, &spans, &row("b"));
        let mut json = String::from("> ");
        decode_tuple(&out).expect("decodes").0.to_json(&mut json);
        let expected = concat!(
            r#"> {"event_id":"a\"\u0001é\\","service_name":"s","event_type":"t","payload":{"x": 1.50},"#,
            r#""timestamp":"1970-01-01T00:00:01.500000Z","metadata":{ }}"#
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn a_tuple_cut_anywhere_is_truncated_not_misread() {
        let (body, spans) = event(["e1", "s", "t"], "{}", Some("{}"));
        let mut out = Vec::new();
        append_tuple(&mut out, &body, &spans, &row("b"));
        for cut in 0..out.len() {
            assert_eq!(decode_tuple(&out[..cut]), Err(TupleError::Truncated), "cut at {cut}");
        }
    }

    #[test]
    fn a_block_of_tuples_is_read_to_its_end_or_first_damage() {
        let (body, spans) = event(["e1", "s", "t"], "{}", None);
        let mut out = Vec::new();
        for _ in 0..3 {
            append_tuple(&mut out, &body, &spans, &row("b"));
        }
        let raw: Vec<u8> = tuples(&out).flat_map(|tuple| tuple.expect("decodes").0.to_vec()).collect();
        assert_eq!(raw, out);
        let third = out.len() / 3;
        let found: Vec<_> = tuples(&out[..2 * third + 5]).map(|tuple| tuple.map(|(raw, _)| raw.len())).collect();
        assert_eq!(found, [Ok(third), Ok(third), Err(TupleError::Truncated)]);
        assert_eq!(tuples(&[]).count(), 0);
    }

    #[test]
    fn the_copy_frame_is_the_documented_one() {
        assert_eq!(&COPY_HEADER[..11], b"PGCOPY\n\xff\r\n\0");
        assert_eq!(&COPY_HEADER[11..], &[0; 8]);
        assert_eq!(i16::from_be_bytes(COPY_TRAILER), -1);
        assert_eq!(COPY_COLUMNS.split(", ").count(), usize::from(FIELD_COUNT));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_encoded_is_decoded(
            texts in prop::array::uniform3("[ -!#-\\[\\]-~é€😀]{1,40}(\\\\(n|u00e9|ud83d\\\\ude00|\\\\))?"),
            payload in "\\{[ -~]{0,200}\\}",
            metadata in prop::option::of("\\{[ -~]{0,50}\\}"),
            timestamp in prop::option::of(-62_000_000_000_000_000i64..253_402_300_799_000_000),
            batch_id in "[A-Za-z0-9._:-]{1,128}",
        ) {
            let (body, mut spans) = event([&texts[0], &texts[1], &texts[2]], &payload, metadata.as_deref());
            spans.timestamp = timestamp.map(UnixMicros);
            let row = row(&batch_id);
            let mut out = Vec::new();
            append_tuple(&mut out, &body, &spans, &row);
            prop_assert!(out.len() <= row.tuple_bytes_max(body.len(), 1));
            out.extend_from_slice(b"next");
            let (view, bytes) = decode_tuple(&out).expect("decodes");
            prop_assert_eq!(bytes, out.len() - 4);
            prop_assert_eq!(view, TupleView {
                event_id: &spans.event_id.decode(&body),
                service_name: &spans.service_name.decode(&body),
                event_type: &spans.event_type.decode(&body),
                payload: &payload,
                timestamp: spans.timestamp.unwrap_or(RECEIVED_AT),
                metadata: metadata.as_deref(),
                batch_id: &batch_id,
                priority: Priority::new(7).expect("valid"),
                ingested_at: RECEIVED_AT,
            });
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_tuple(&bytes);
            prop_assert!(tuples(&bytes).count() <= bytes.len());
        }
    }
}
