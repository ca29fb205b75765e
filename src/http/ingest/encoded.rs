//! From the bytes of a body to the block of its events.

use std::sync::Arc;

use memchr::memchr;
use uuid::{Timestamp, Uuid};

use super::agree;
use super::media::Format;
use super::verdict::{Verdicts, refuse_body};
use crate::auth::gate::Caller;
use crate::encode::block::{BLOCK_HEADER_BYTES_MAX, Block, BlockBuilder, BlockHeader};
use crate::encode::tuple::{RowContext, append_tuple};
use crate::http::problem::Problem;
use crate::http::query::{IngestQuery, Invalid};
use crate::http::worker::Worker;
use crate::json::{
    BodyError, EnvelopeReason, Reason, ScanLimits, Scratch, scan_body, scan_cloud_event, scan_cloud_events, scan_line,
};
use crate::limits::ERRORS_LISTED_MAX;
use crate::sys::clock::wall_now;
use crate::types::{BatchKey, BodyDigest, BodyDigester, Priority, UnixMicros};

/// A body that was understood: its block and what is told about its bad events.
pub(super) struct Encoded {
    pub block: Block,
    pub header: BlockHeader,
    pub id_is_clients: bool,
    pub verdicts: Verdicts,
}

/// Why there is nothing to take.
pub(super) enum Unfit {
    /// The request cannot be a repeat of one that was accepted, or there is no id to know it by.
    Refused(Problem),
    /// Events are bad, and were perhaps good when the batch came first: events age, and keys are narrowed.
    NowBad(Box<NowBad>),
}

/// A batch with bad events, under an id of its client's.
pub(super) struct NowBad {
    /// How it would have been taken.
    pub header: BlockHeader,
    pub verdicts: Verdicts,
}

impl From<Problem> for Unfit {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

/// `verdicts` on a batch that is not taken for them.
fn unfit(id_is_clients: bool, header: BlockHeader, verdicts: Verdicts) -> Unfit {
    match id_is_clients {
        true => Unfit::NowBad(Box::new(NowBad { header, verdicts })),
        false => Unfit::Refused(verdicts.refuse()),
    }
}

/// What a batch is encoded by, besides its body.
pub(super) struct Order<'a> {
    pub worker: &'a Worker,
    pub caller: &'a Caller,
    pub query: &'a IngestQuery,
    /// The id that header or query gave.
    pub id: Option<String>,
}

impl Order<'_> {
    /// Encodes a whole body, decompressed.
    pub fn encode(self, format: &Format, body: &[u8]) -> Result<Encoded, Unfit> {
        match format {
            Format::Lines => {
                let mut lines = Lines::new(self, body.len());
                lines.feed(body)?;
                lines.finish()
            }
            Format::CloudEventData(attributes) => {
                let data = self.data_member(body)?;
                let event = |members: &[u8]| [members, &data, b"}"].concat();
                let digest = BodyDigest::of(&event(&attributes.identity));
                self.encode_with(&event(&attributes.members), digest, scan_cloud_event)
            }
            Format::CloudEvent => self.encode_with(body, BodyDigest::of(body), scan_cloud_event),
            Format::CloudEvents => self.encode_with(body, BodyDigest::of(body), scan_cloud_events),
            Format::Batch => self.encode_with(body, BodyDigest::of(body), scan_body),
        }
    }

    /// Scans `body` by `scan` and encodes its good events.
    fn encode_with(
        self,
        body: &[u8],
        digest: BodyDigest,
        scan: impl FnOnce(&[u8], &ScanLimits, &mut Scratch) -> Result<(), BodyError>,
    ) -> Result<Encoded, Unfit> {
        let received_at = wall_now();
        let scratch = &mut *self.worker.scratch.borrow_mut();
        scan(body, &self.limits(received_at), scratch).map_err(|error| refuse_body(self.worker, error))?;
        let source = scratch.source(body);
        self.refuse_services(&source, scratch);
        let id = agree(scratch.batch_id(), self.id.as_deref())?;
        let mut verdicts = Verdicts::default();
        verdicts.add(self.worker, &source, 0, scratch.rejects(), self.listed_max());
        verdicts.good = scratch.events().len();
        let id_is_clients = id.is_some();
        let priority = scratch.priority().or(self.query.priority).unwrap_or_default();
        let mut header = self.header(id, priority, received_at, digest);
        header.events = u32::try_from(verdicts.good).unwrap_or(u32::MAX);
        if verdicts.refuse_all(self.query.invalid) {
            return Err(unfit(id_is_clients, header, verdicts));
        }
        let block = self.build_block(&source, scratch, &header);
        Ok(Encoded { block, header, id_is_clients, verdicts })
    }

    fn limits(&self, received_at: UnixMicros) -> ScanLimits {
        let settings = &self.worker.app.settings;
        let timestamps = settings.timestamps(received_at);
        ScanLimits {
            events_max: settings.events_max,
            timestamp_min: *timestamps.start(),
            timestamp_max: *timestamps.end(),
        }
    }

    /// Verdicts that are listed at most: all where the good events are taken, for what else would tell the bad ones.
    fn listed_max(&self) -> usize {
        match self.query.invalid {
            Invalid::Reject => ERRORS_LISTED_MAX,
            Invalid::Skip => usize::MAX,
        }
    }

    fn refuse_services(&self, source: &[u8], scratch: &mut Scratch) {
        if let Some(services) = self.caller.services() {
            scratch.refuse_services(source, |service| services.allow(service));
        }
    }

    /// The header of a block whose events are still to be counted.
    fn header(
        &self,
        id: Option<String>,
        priority: Priority,
        received_at: UnixMicros,
        digest: BodyDigest,
    ) -> BlockHeader {
        let id = id.unwrap_or_else(|| Uuid::new_v7(Timestamp::now(&self.worker.ids)).to_string());
        let key = BatchKey { owner: Arc::clone(self.caller.owner()), id: id.into_boxed_str() };
        BlockHeader { key, priority, events: 0, received_at, digest }
    }

    fn build_block(&self, source: &[u8], scratch: &Scratch, header: &BlockHeader) -> Block {
        let events = scratch.events();
        let row = RowContext::new(&header.key.id, header.priority, header.received_at);
        let bytes = BLOCK_HEADER_BYTES_MAX + row.tuple_bytes_max(source.len(), events.len());
        let mut builder = BlockBuilder::new(self.worker.app.blocks.take(bytes), header);
        for event in events {
            append_tuple(builder.tuples(), source, event, &row);
        }
        builder.finish(header.events)
    }

    /// The member `data` of a CloudEvent whose attributes are headers, from its comma on. It must be one JSON value:
    /// otherwise it could end the event and begin members of its own.
    fn data_member(&self, data: &[u8]) -> Result<Vec<u8>, Problem> {
        let scratch = &mut *self.worker.scratch.borrow_mut();
        scan_line(data, 0, &self.limits(wall_now()), scratch);
        if let [reject] = scratch.rejects()
            && let Reason::Syntax(kind) = reject.reason
        {
            let error = BodyError::Syntax { offset: reject.offset(), message: kind.message() };
            return Err(refuse_body(self.worker, error));
        }
        Ok(match data.trim_ascii() {
            [] => Vec::new(),
            data => [b",\"data\":", data].concat(),
        })
    }
}

/// NDJSON that is encoded as it comes: what is kept of it is its rows, and the line that is still to be ended.
pub(super) struct Lines<'a> {
    order: Order<'a>,
    limits: ScanLimits,
    header: BlockHeader,
    id_is_clients: bool,
    row: RowContext,
    builder: BlockBuilder,
    digester: BodyDigester,
    /// The beginning of a line that has not ended.
    rest: Vec<u8>,
    /// Where in the body the next line begins.
    offset: usize,
    verdicts: Verdicts,
}

impl<'a> Lines<'a> {
    /// Nothing yet of a body of about `bytes`.
    pub fn new(mut order: Order<'a>, bytes: usize) -> Self {
        let received_at = wall_now();
        let limits = order.limits(received_at);
        let id = order.id.take();
        let id_is_clients = id.is_some();
        let digest = BodyDigest::of(b"");
        let header = order.header(id, order.query.priority.unwrap_or_default(), received_at, digest);
        let row = RowContext::new(&header.key.id, header.priority, received_at);
        let builder = BlockBuilder::new(order.worker.app.blocks.take(BLOCK_HEADER_BYTES_MAX + bytes), &header);
        Self {
            order,
            limits,
            header,
            id_is_clients,
            row,
            builder,
            digester: BodyDigester::default(),
            rest: Vec::new(),
            offset: 0,
            verdicts: Verdicts::default(),
        }
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// 413 when there are too many events.
    pub fn feed(&mut self, mut data: &[u8]) -> Result<(), Problem> {
        self.digester.update(data);
        while let Some(end) = memchr(b'\n', data) {
            self.end_line(&data[..end])?;
            data = &data[end + 1..];
        }
        self.rest.extend_from_slice(data);
        Ok(())
    }

    /// The line that ends with `last`.
    fn end_line(&mut self, last: &[u8]) -> Result<(), Problem> {
        if self.rest.is_empty() {
            return self.judge(last);
        }
        let mut line = std::mem::take(&mut self.rest);
        line.extend_from_slice(last);
        self.judge(&line)?;
        line.clear();
        self.rest = line;
        Ok(())
    }

    fn judge(&mut self, line: &[u8]) -> Result<(), Problem> {
        let worker = self.order.worker;
        let scratch = &mut *worker.scratch.borrow_mut();
        let event = self.verdicts.events();
        scan_line(line, event, &self.limits, scratch);
        if scratch.events_total() > 0 && event == self.limits.events_max {
            return Err(refuse_body(worker, BodyError::TooManyEvents { events_max: self.limits.events_max }));
        }
        self.order.refuse_services(line, scratch);
        for event in scratch.events() {
            append_tuple(self.builder.tuples(), line, event, &self.row);
            self.verdicts.good += 1;
        }
        self.verdicts.add(worker, line, self.offset, scratch.rejects(), self.order.listed_max());
        self.offset += line.len() + 1;
        Ok(())
    }

    /// The block, now that the body has ended.
    ///
    /// # Errors
    /// What is wrong with the body as a whole, or with its events.
    pub fn finish(mut self) -> Result<Encoded, Unfit> {
        self.end_line(&[])?;
        if self.verdicts.events() == 0 {
            let reason = EnvelopeReason::EventsEmpty { bare: true };
            return Err(refuse_body(self.order.worker, BodyError::Envelope(reason)).into());
        }
        self.header.events = u32::try_from(self.verdicts.good).unwrap_or(u32::MAX);
        self.header.digest = self.digester.digest();
        let Self { header, id_is_clients, verdicts, mut builder, .. } = self;
        if verdicts.refuse_all(self.order.query.invalid) {
            return Err(unfit(id_is_clients, header, verdicts));
        }
        builder.set_digest(header.digest);
        let block = builder.finish(header.events);
        Ok(Encoded { block, header, id_is_clients, verdicts })
    }
}
