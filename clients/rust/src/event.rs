//! What is sent.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::error::Error;

/// An event. The server says what it may be; see its OpenAPI document.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// 1–256 bytes.
    pub event_id: String,
    /// 1–128 bytes.
    pub service_name: String,
    /// 1–128 bytes.
    pub event_type: String,
    /// RFC 3339; the time of receipt where it is `None`. Set it where the same event may be sent in two batches: events
    /// are the same when service, type, timestamp and id are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// A JSON object, as it is written.
    pub payload: Box<RawValue>,
    /// A JSON object, as it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
}

impl Event {
    /// An event with a payload, which must become a JSON object. A [`RawValue`] stays as it is, digit for digit.
    ///
    /// # Errors
    /// [`Error::Json`] where the payload is nothing that JSON can express.
    pub fn new(
        event_id: impl Into<String>,
        service_name: impl Into<String>,
        event_type: impl Into<String>,
        payload: &(impl Serialize + ?Sized),
    ) -> Result<Self, Error> {
        Ok(Self {
            event_id: event_id.into(),
            service_name: service_name.into(),
            event_type: event_type.into(),
            timestamp: None,
            payload: to_raw_value(payload)?,
            metadata: None,
        })
    }

    /// The same with a timestamp, RFC 3339.
    #[must_use]
    pub fn at(mut self, timestamp: impl Into<String>) -> Self {
        self.timestamp = Some(timestamp.into());
        self
    }

    /// The same with metadata, which must become a JSON object.
    ///
    /// # Errors
    /// [`Error::Json`] where it is nothing that JSON can express.
    pub fn with_metadata(mut self, metadata: &(impl Serialize + ?Sized)) -> Result<Self, Error> {
        self.metadata = Some(to_raw_value(metadata)?);
        Ok(self)
    }

    /// Bytes that it takes in a request, about.
    pub(crate) fn bytes(&self) -> usize {
        const NAMES_AND_QUOTES: usize = 96;
        let texts = [&self.event_id, &self.service_name, &self.event_type].map(String::len).iter().sum::<usize>();
        let timestamp = self.timestamp.as_ref().map_or(0, String::len);
        let metadata = self.metadata.as_ref().map_or(0, |metadata| metadata.get().len());
        NAMES_AND_QUOTES + texts + timestamp + metadata + self.payload.get().len()
    }
}

/// When a batch is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// When it is queued.
    Memory,
    /// When an fsync has made it survive power loss.
    Journal,
    /// When PostgreSQL has committed it.
    Commit,
}

impl Ack {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Journal => "journal",
            Self::Commit => "commit",
        }
    }
}

/// What one invalid event does to its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalid {
    /// The batch is refused, with verdicts.
    #[default]
    Reject,
    /// The good events are taken, the others are listed.
    Skip,
}

/// How a batch is sent.
#[derive(Clone, Debug, Default)]
pub struct BatchOptions {
    /// 1–128 of `A–Z a–z 0–9 . _ : -`, not `.` or `..`. `None`: a UUIDv7, the same for all attempts.
    pub batch_id: Option<String>,
    /// 0–10; 10 goes first.
    pub priority: u8,
    /// `None`: as the server is set.
    pub ack: Option<Ack>,
    /// What one invalid event does.
    pub invalid: Invalid,
}
