//! Streams of batches, each sent when it is due, whatever has become of the earlier ones; latencies count from then.
//!
//! A batch has an id, so it is sent again until it is acknowledged: after a refusal, and after a connection that broke.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Failure;

/// Pause before a batch is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long one batch may take to be acknowledged, all its tries together.
const BATCH_WAIT_MAX: Duration = Duration::from_secs(180);
/// Makes events of about 400 bytes.
const FILLER_BYTES: usize = 200;

/// What a stream sends.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Ids of batches begin with it.
    pub name: String,
    /// Priority of the batches.
    pub priority: u64,
    /// Events of a batch.
    pub events: u64,
    /// From one batch to the next.
    pub every: Duration,
    /// Batches at most.
    pub batches_max: u64,
    /// Ack level.
    pub ack: &'static str,
    /// Timestamp of all events; without one they get the time at which they are received, so that the primary key cannot
    /// hide a batch that landed twice.
    pub timestamp: Option<String>,
}

/// A batch, and what became of it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its id.
    pub id: String,
    /// Its events.
    pub events: u64,
    /// When it was due, after the stream's begin.
    pub due: Duration,
    /// From then until it was acknowledged.
    pub took: Duration,
    /// Servers that acknowledged it: 1, or 0 to 2 where it was sent to two.
    pub acks: u64,
}

/// A stream in the end.
#[derive(Debug, Default)]
pub struct Ended {
    /// All batches, in the order in which they were answered.
    pub sent: Vec<Sent>,
    /// What no client should see: another answer, or none at all.
    pub fault: Option<String>,
}

/// What all batches of a stream have in common.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    refused: AtomicU64,
}

/// A stream under way. Dropping it ends it.
pub struct Stream {
    shared: Arc<Shared>,
    spec: Spec,
    thread: Option<JoinHandle<Result<Ended, String>>>,
}

impl Stream {
    /// Starts to send to `urls`: to one server, or each batch's id with another body to the second one.
    pub fn start(urls: &[String], spec: Spec) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = {
            let (urls, spec, shared) = (urls.to_vec(), spec.clone(), Arc::clone(&shared));
            std::thread::spawn(move || run(&urls, spec, shared))
        };
        Self { shared, spec, thread: Some(thread) }
    }

    /// Batches acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Times that a batch was refused (429, 503) so far.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Bytes of a batch, about what the journal has of it.
    pub fn batch_bytes(&self) -> u64 {
        body(&self.spec, 0, 0).len() as u64
    }

    /// Sends nothing new from now on.
    pub fn cease(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until everything sent is acknowledged.
    pub fn finish(mut self) -> Result<Ended, Failure> {
        self.cease();
        let thread = self.thread.take().ok_or("it has ended already")?;
        Ok(thread.join().map_err(|_| "a stream panicked")??)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cease();
    }
}

fn run(urls: &[String], spec: Spec, shared: Arc<Shared>) -> Result<Ended, String> {
    let parse = |url: &String| format!("{url}/v1/ingest/batch?ack={}", spec.ack).parse::<Uri>();
    let targets = urls.iter().map(|url| Ok(Target { uri: parse(url)?, idle: RefCell::default() }));
    let targets =
        targets.collect::<Result<Vec<_>, hyper::http::uri::InvalidUri>>().map_err(|error| error.to_string())?;
    let sender = Rc::new(Sender { targets, spec, shared, sent: RefCell::default(), fault: Cell::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let local = LocalSet::new();
    local.block_on(&runtime, Rc::clone(&sender).send_all());
    Ok(Ended { sent: sender.sent.take(), fault: sender.fault.take() })
}

/// A server and its connections that are not in use.
struct Target {
    uri: Uri,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
}

/// Everything on the thread of a stream.
struct Sender {
    targets: Vec<Target>,
    spec: Spec,
    shared: Arc<Shared>,
    sent: RefCell<Vec<Sent>>,
    /// See [`Ended::fault`].
    fault: Cell<Option<String>>,
}

impl Sender {
    async fn send_all(self: Rc<Self>) {
        let (begun, mut under_way) = (Instant::now(), JoinSet::new());
        for number in 0..self.spec.batches_max {
            let due = self.spec.every * number as u32;
            sleep_until(begun + due).await;
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let sender = Rc::clone(&self);
            under_way.spawn_local(async move { sender.send(number, begun, due).await });
            while under_way.try_join_next().is_some() {}
        }
        under_way.join_all().await;
    }

    async fn send(&self, number: u64, begun: Instant, due: Duration) {
        let tries = (0..self.targets.len()).map(|target| self.deliver(target, number));
        let outcomes = futures_util::future::join_all(tries).await;
        let mut acks = 0;
        for outcome in outcomes {
            match outcome {
                Ok(acked) => acks += u64::from(acked),
                Err(error) => self.fault.set(Some(error)),
            }
        }
        if acks > 0 {
            self.shared.acked.fetch_add(1, Ordering::Relaxed);
        }
        let took = begun.elapsed().saturating_sub(due);
        self.sent.borrow_mut().push(Sent { id: self.id(number), events: self.spec.events, due, took, acks });
    }

    /// Sends the batch until it is acknowledged; false when its id is known with another body.
    async fn deliver(&self, target: usize, number: u64) -> Result<bool, String> {
        let body = Bytes::from(body(&self.spec, number, target));
        let begun = Instant::now();
        loop {
            let left = BATCH_WAIT_MAX.saturating_sub(begun.elapsed());
            match timeout(left, self.exchange(&self.targets[target], body.clone())).await {
                Err(_) => return Err(format!("{} was not acknowledged within {BATCH_WAIT_MAX:?}", self.id(number))),
                Ok(Ok(200 | 202)) => return Ok(true),
                Ok(Ok(409)) if self.targets.len() > 1 => return Ok(false),
                Ok(Ok(429 | 503)) => drop(self.shared.refused.fetch_add(1, Ordering::Relaxed)),
                Ok(Ok(status)) => return Err(format!("{} was answered {status}", self.id(number))),
                // A connection that was closed while it was idle, or broke.
                Ok(Err(_)) => {}
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// The status of the answer.
    async fn exchange(&self, target: &Target, body: Bytes) -> Result<u16, Failure> {
        let idle = std::iter::from_fn(|| target.idle.borrow_mut().pop()).find(SendRequest::is_ready);
        let address = target.uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connect(&address).await?,
        };
        let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::post(path)
            .header("Host", &address)
            .header("Content-Type", "application/json")
            .body(Full::new(body))?;
        let answer = connection.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        target.idle.borrow_mut().push(connection);
        Ok(status)
    }

    fn id(&self, number: u64) -> String {
        id(&self.spec, number)
    }
}

async fn connect(address: &str) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

fn id(spec: &Spec, number: u64) -> String {
    format!("{}-{number:06}", spec.name)
}

/// The batch `number` of `spec`, as the server `target` gets it. Two events each have the same `pair`, and no event has
/// metadata: rules of single partitions ask for them.
fn body(spec: &Spec, number: u64, target: usize) -> String {
    let (id, filler) = (id(spec, number), "x".repeat(FILLER_BYTES));
    let event_type = spec.name.split('-').next().unwrap_or_default();
    let timestamp = spec.timestamp.as_ref().map_or(String::new(), |text| format!(r#""timestamp":"{text}","#));
    let mut text = format!(r#"{{"batch_id":"{id}","priority":{},"events":["#, spec.priority);
    for event in 0..spec.events {
        let comma = if event == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"event_id":"{id}/{event}","service_name":"bench","event_type":"{event_type}",{timestamp}"payload":{{"number":{event},"pair":"{id}/{}","target":{target},"filler":"{filler}"}}}}"#,
            event / 2
        );
    }
    text.push_str("]}");
    text
}
