//! Events one by one, batches by count, size and age.
//!
//! ```text
//!  send ─ room for its bytes, a place in the queue ─▶ task: gather ─ cut ─▶ requests under way (a few) ─▶ server
//!   waits while there is none (back-pressure)                                 │ not taken
//!                                                                             ▼ on_failure
//! ```
//!
//! An event keeps its room until its batch is answered, so the bytes of all events here are bounded. Nothing is dropped
//! silently: an event is taken by the server, or `on_failure` gets it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answer::BatchReply;
use crate::client::Client;
use crate::error::Error;
use crate::event::{Ack, BatchOptions, Event, Invalid};

/// When a [`Sender`] sends, and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct SenderOptions {
    /// Events of a batch at most; at least 1.
    pub batch_events_max: usize,
    /// Bytes of a batch's events at most, about; one event may be larger.
    pub batch_bytes_max: usize,
    /// How long an event waits for others.
    pub age_max: Duration,
    /// Events that wait to be gathered at most; at least 1.
    pub queue_events_max: usize,
    /// Bytes of all events that are not answered yet, about; [`Sender::send`] waits while there is no room.
    pub memory_bytes_max: usize,
    /// Requests under way at once; at least 1.
    pub requests_max: usize,
    /// 0–10.
    pub priority: u8,
    /// When batches are answered; `None`: as the server is set.
    pub ack: Option<Ack>,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self {
            batch_events_max: 1000,
            batch_bytes_max: 1 << 20,
            age_max: Duration::from_millis(500),
            queue_events_max: 10_000,
            memory_bytes_max: 64 << 20,
            requests_max: 4,
            priority: 0,
            ack: None,
        }
    }
}

/// Events that the server did not take, and why.
#[derive(Debug)]
pub struct Failed {
    /// The events.
    pub events: Vec<Event>,
    /// Under this id. After [`Error::GaveUp`] the server may have taken them after all: sent again under it, they land
    /// once.
    pub batch_id: String,
    /// Why.
    pub error: Error,
}

/// What became of the events of a [`Sender`] so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Taken by the server.
    pub accepted: u64,
    /// Given to `on_failure`.
    pub failed: u64,
}

/// Gathers events into batches; see [`Client::sender`]. When it is dropped its task still sends what it holds, as long as
/// the runtime lives; [`Self::close`] waits for that.
#[derive(Debug)]
pub struct Sender {
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    room_bytes: usize,
}

#[derive(Debug)]
enum Message {
    Event(Held),
    Flush(oneshot::Sender<Delivered>),
}

/// An event, and its room.
#[derive(Debug)]
struct Held {
    event: Event,
    bytes: usize,
    _room: OwnedSemaphorePermit,
}

type OnFailure = Box<dyn FnMut(Failed) + Send>;

impl Sender {
    pub(crate) fn start(client: Client, options: SenderOptions, on_failure: OnFailure) -> Self {
        let (queue, messages) = mpsc::channel(options.queue_events_max.max(1));
        let room_bytes = options.memory_bytes_max.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let task = Task {
            client,
            options,
            on_failure,
            gathered: Vec::new(),
            gathered_bytes: 0,
            send_at: None,
            requests: JoinSet::new(),
            delivered: Delivered::default(),
        };
        tokio::spawn(task.run(messages));
        Self { queue, room: Arc::new(Semaphore::new(room_bytes)), room_bytes }
    }

    /// Takes an event; waits while there is no room for it.
    ///
    /// # Errors
    /// [`Error::Closed`] where the runtime has ended.
    pub async fn send(&self, event: Event) -> Result<(), Error> {
        let bytes = event.bytes();
        // An event larger than all room waits until it is alone.
        let wanted = bytes.min(self.room_bytes) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(wanted).await.map_err(|_| Error::Closed)?;
        self.queue.send(Message::Event(Held { event, bytes, _room: room })).await.map_err(|_| Error::Closed)
    }

    /// Sends what is gathered, and waits until everything before is answered.
    ///
    /// # Errors
    /// [`Error::Closed`] where the runtime has ended.
    pub async fn flush(&self) -> Result<Delivered, Error> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Message::Flush(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)
    }

    /// Flushes, and ends.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn close(self) -> Result<Delivered, Error> {
        self.flush().await
    }
}

/// A request that has ended.
type Ended = (Vec<Held>, String, Result<BatchReply, Error>);

struct Task {
    client: Client,
    options: SenderOptions,
    on_failure: OnFailure,
    gathered: Vec<Held>,
    gathered_bytes: usize,
    /// When the oldest of them is old enough.
    send_at: Option<Instant>,
    requests: JoinSet<Ended>,
    delivered: Delivered,
}

impl Task {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        loop {
            let send_at = self.send_at;
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Message::Event(held)) => self.gather(held).await,
                    Some(Message::Flush(answer)) => {
                        self.finish().await;
                        // Who asked may have gone.
                        let _ = answer.send(self.delivered);
                    }
                    None => return self.finish().await,
                },
                () = async { tokio::time::sleep_until(send_at.unwrap_or_else(Instant::now)).await }, if send_at.is_some() => {
                    self.cut().await;
                }
                Some(ended) = self.requests.join_next() => self.settle(ended),
            }
        }
    }

    async fn gather(&mut self, held: Held) {
        if !self.gathered.is_empty() && self.gathered_bytes + held.bytes > self.options.batch_bytes_max {
            self.cut().await;
        }
        self.gathered_bytes += held.bytes;
        self.gathered.push(held);
        self.send_at = self.send_at.or_else(|| Some(Instant::now() + self.options.age_max));
        if self.gathered.len() >= self.options.batch_events_max || self.gathered_bytes >= self.options.batch_bytes_max {
            self.cut().await;
        }
    }

    /// Sends what is gathered, once fewer than the most requests are under way.
    async fn cut(&mut self) {
        self.send_at = None;
        if self.gathered.is_empty() {
            return;
        }
        while self.requests.len() >= self.options.requests_max.max(1) {
            if let Some(ended) = self.requests.join_next().await {
                self.settle(ended);
            }
        }
        self.gathered_bytes = 0;
        let held = std::mem::take(&mut self.gathered);
        let (client, options) = (self.client.clone(), self.options);
        self.requests.spawn(async move {
            let batch_id = uuid::Uuid::now_v7().to_string();
            let events: Vec<Event> = held.iter().map(|held| held.event.clone()).collect();
            let SenderOptions { priority, ack, .. } = options;
            // One bad event must not take a thousand good ones with it.
            let batch = BatchOptions { batch_id: Some(batch_id.clone()), priority, ack, invalid: Invalid::Skip };
            let outcome = client.send_batch(&events, batch).await;
            (held, batch_id, outcome)
        });
    }

    /// Sends all, and waits for all answers.
    async fn finish(&mut self) {
        self.cut().await;
        while let Some(ended) = self.requests.join_next().await {
            self.settle(ended);
        }
    }

    fn settle(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        // Nobody aborts requests, and a panic in one is a bug that must not pass for a delivery.
        let (held, batch_id, outcome) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let events = held.into_iter().map(|held| held.event);
        let (events, error): (Vec<Event>, Error) = match outcome {
            Ok(reply) if reply.errors.is_empty() => {
                self.delivered.accepted += events.len() as u64;
                return;
            }
            Ok(reply) => {
                let is_refused = |index: usize| reply.errors.iter().any(|error| error.index == Some(index));
                let all = events.len();
                let refused = events.enumerate().filter(|(index, _)| is_refused(*index)).map(|(_, event)| event);
                let refused: Vec<Event> = refused.collect();
                self.delivered.accepted += (all - refused.len()) as u64;
                (refused, Error::EventsRefused(reply.errors))
            }
            Err(error) => (events.collect(), error),
        };
        self.delivered.failed += events.len() as u64;
        (self.on_failure)(Failed { events, batch_id, error });
    }
}
