//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! Nothing internal gets into them: no SQL, no paths, no keys; `detail` is written here or by the scanner.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::codes::is_listed;

use crate::http::headers::protect;

/// The verdict on one event, or on the batch itself (then `index` is null).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorItem {
    /// Position of the event in the batch, from 0.
    #[schema(required)]
    pub index: Option<u32>,
    /// The event's id, if it could be read.
    #[schema(required)]
    pub event_id: Option<String>,
    /// JSON Pointer (RFC 6901) into the body.
    pub pointer: String,
    /// Stable code.
    pub code: &'static str,
    /// What is wrong and what is expected.
    pub detail: String,
}

/// A refusal.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<ErrorItem>,
    errors_total: usize,
    /// Boxed, as a refusal is part of many results.
    particulars: Option<Box<Particulars>>,
    /// Headers that belong to it: `Retry-After`, `Allow`, what is accepted instead.
    headers: Vec<(HeaderName, HeaderValue)>,
    close: bool,
}

/// What few problems say.
#[derive(Debug, Default)]
struct Particulars {
    byte_offset: Option<usize>,
    batch_id: Option<String>,
}

/// An error (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document<'a> {
    /// The kind of problem: its code as a URN.
    #[schema(format = "uri", pattern = "^urn:ingestd:problem:[a-z0-9_]+$")]
    r#type: String,
    /// The HTTP status in words.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// The stable name of the problem.
    code: &'a str,
    /// What is wrong and what to do, for humans.
    detail: &'a str,
    /// Byte offset in the body, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    byte_offset: Option<usize>,
    /// The id to send the batch again with, from the client or generated: with `outcome_unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]+$")]
    batch_id: Option<&'a str>,
    /// Verdicts; at most 100 are listed.
    #[serde(skip_serializing_if = "<[ErrorItem]>::is_empty")]
    #[schema(required = false, max_items = 100)]
    errors: &'a [ErrorItem],
    /// Total number of verdicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    errors_total: Option<usize>,
}

impl Problem {
    /// A problem of `status` with a stable `code`: one of [`crate::http::codes::CODES`].
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(is_listed(code, status.as_u16()), "{code} with {status} is not in http::codes");
        Self {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            errors_total: 0,
            particulars: None,
            headers: Vec::new(),
            close: false,
        }
    }

    /// 503 that asks the client to come back.
    pub fn unavailable(code: &'static str, detail: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(retry_after_seconds)
    }

    /// 405 with the methods that the resource has.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this resource supports {allow}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            .with_header(ALLOW, HeaderValue::from_static(allow))
    }

    /// 415 with the content codings that are accepted (RFC 9110, 15.5.16).
    pub fn unsupported_encoding(accepted: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail)
            .with_header(ACCEPT_ENCODING, HeaderValue::from_static(accepted))
    }

    /// Says when to come back.
    pub fn retry_after(self, seconds: u32) -> Self {
        self.with_header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// Adds a header to the response.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds verdicts: `errors` are listed, `total` is how many there are.
    pub fn with_errors(self, errors: Vec<ErrorItem>, total: usize) -> Self {
        Self { errors, errors_total: total, ..self }
    }

    /// Says `more`.
    pub fn adding(mut self, more: &str) -> Self {
        self.detail = format!("{}; {more}", self.detail);
        self
    }

    /// Says where in the body the problem is.
    pub fn at_byte(mut self, offset: usize) -> Self {
        self.particulars.get_or_insert_default().byte_offset = Some(offset);
        self
    }

    /// Names the batch that it is about.
    pub fn of_batch(mut self, batch_id: &str) -> Self {
        self.particulars.get_or_insert_default().batch_id = Some(batch_id.to_owned());
        self
    }

    /// Closes the connection after the answer: the rest of the request was not read.
    pub fn and_close(self) -> Self {
        Self { close: true, ..self }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The number of verdicts.
    pub fn errors_total(&self) -> usize {
        self.errors_total
    }

    /// The answer as it goes over the wire, where no request was read.
    pub fn into_bytes(self) -> Vec<u8> {
        let (mut head, body) = self.respond().into_parts();
        protect(&mut head.headers);
        let mut bytes = format!("HTTP/1.1 {}\r\ncontent-length: {}\r\n", head.status, body.len()).into_bytes();
        for (name, value) in &head.headers {
            bytes.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The answer.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        self.respond().map(|body| Full::new(Bytes::from(body)))
    }

    fn respond(self) -> Response<Vec<u8>> {
        let document = Document {
            r#type: format!("urn:ingestd:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            byte_offset: self.particulars.as_ref().and_then(|particulars| particulars.byte_offset),
            batch_id: self.particulars.as_ref().and_then(|particulars| particulars.batch_id.as_deref()),
            errors: &self.errors,
            errors_total: (self.errors_total > 0).then_some(self.errors_total),
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.headers);
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
