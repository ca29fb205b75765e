//! Ready-made requests over many keep-alive connections, all from one thread: a load that leaves the cores to the
//! server. Where [`super::load`] makes each body anew and repeats what was refused, a flood changes the tag in a body
//! that is there, notes each answer and goes on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::load::{Outcome, Sent, body};
use super::raw::head_of;
use super::server::{Ingestd, Reply};

/// Events of one batch.
pub const BATCH_EVENTS: u64 = 1000;
/// Requests under way at most; more that are due are counted as unsent.
const CONNECTIONS_MAX: usize = 6000;
/// Pause of a connection of [`Pace::Closed`] that was turned away.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Stands for the tag in the ready-made body: as long as a tag, and nowhere else in it.
const TAG_PLACE: &str = "tag-goes-here";

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each connection sends its next request once the last one was answered.
    Closed { connections: usize },
    /// Each request is sent when it is due, whatever has become of the earlier ones.
    Open { requests_per_second: f64 },
}

/// What a flood is made of.
#[derive(Clone, Copy, Debug)]
pub struct FloodOptions {
    /// When requests are sent.
    pub pace: Pace,
    /// Batches of [`BATCH_EVENTS`] to send; `u64::MAX` until [`Flood::stop`].
    pub batches: u64,
    /// Where to: `/v1/ingest/batch` and its query.
    pub target: &'static str,
    /// Bytes that are added to each payload, over what [`body`] makes.
    pub filler_bytes: usize,
    /// Makes the tags differ from those of another flood.
    pub seed: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// A flood under way.
pub struct Flood {
    shared: Arc<Shared>,
    thread: JoinHandle<Flooded>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Flooded {
    /// The accepted batches. Those that were refused are not among them: no row of them may be there.
    pub outcome: Outcome,
    /// Requests sent.
    pub sent: u64,
    /// Requests that were due while [`CONNECTIONS_MAX`] were under way.
    pub unsent: u64,
    /// From the first request to the last one sent.
    pub took: Duration,
    /// Answers by status and, for refusals, by their code.
    pub answers: BTreeMap<String, u64>,
    /// How long accepted batches took to be answered.
    pub latencies: Vec<Duration>,
    /// What no client should see, by kind: other answers, refusals without `Retry-After`, broken connections.
    pub faults: BTreeMap<String, u64>,
}

/// Lets this process and the servers that it starts have as many connections as the system allows.
pub fn allow_connections() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the maximum it may");
}

impl Flood {
    /// Starts to send to `server`.
    pub fn start(server: &Ingestd, options: FloodOptions) -> Self {
        let shared = Arc::new(Shared::default());
        let address = server.address().parse().expect("an address");
        let thread = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || Sender::new(address, options, shared).run())
        };
        Self { shared, thread }
    }

    /// Batches accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Batches refused so far.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Waits for all batches to be sent and answered.
    pub fn finish(self) -> Flooded {
        self.thread.join().expect("the flood did its work")
    }

    /// Sends no more, and waits for the answers to what was sent.
    pub fn stop(self) -> Flooded {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

/// A request with places for the tag.
struct Template {
    message: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    fn new(address: SocketAddr, options: &FloodOptions) -> Self {
        let (target, filler) = (options.target, "x".repeat(options.filler_bytes));
        let payload = format!(r#""payload":{{"filler":"{filler}","#);
        let body = body(TAG_PLACE, None, 0, BATCH_EVENTS).replace(r#""payload":{"#, &payload);
        let text = format!(
            "POST {target} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let places = text.match_indices(TAG_PLACE).map(|(place, _)| place).collect();
        Self { message: text.into_bytes(), places }
    }

    fn put_tag(&self, message: &mut [u8], tag: &str) {
        assert_eq!(tag.len(), TAG_PLACE.len(), "the tag fits its places");
        for place in &self.places {
            message[*place..place + tag.len()].copy_from_slice(tag.as_bytes());
        }
    }
}

/// Everything on the thread of a flood.
struct Sender {
    address: SocketAddr,
    options: FloodOptions,
    template: Template,
    shared: Arc<Shared>,
    next: Cell<u64>,
    under_way: Cell<usize>,
    messages: RefCell<Vec<Vec<u8>>>,
    idle: RefCell<Vec<TcpStream>>,
    result: RefCell<Flooded>,
}

impl Sender {
    fn new(address: SocketAddr, options: FloodOptions, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            address,
            options,
            template: Template::new(address, &options),
            shared,
            next: Cell::new(0),
            under_way: Cell::new(0),
            messages: RefCell::default(),
            idle: RefCell::default(),
            result: RefCell::default(),
        })
    }

    fn run(self: Rc<Self>) -> Flooded {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        let begun = Instant::now();
        local.block_on(&runtime, Rc::clone(&self).send_all());
        let took = begun.elapsed();
        // What is still under way.
        runtime.block_on(local);
        let mut result = self.result.take();
        result.took = took;
        (result.outcome.refused, result.outcome.seed) =
            (self.shared.refused.load(Ordering::Relaxed), self.options.seed);
        result
    }

    async fn send_all(self: Rc<Self>) {
        match self.options.pace {
            Pace::Closed { connections } => {
                let tasks = (0..connections).map(|_| tokio::task::spawn_local(Rc::clone(&self).one_by_one()));
                for task in tasks.collect::<Vec<_>>() {
                    task.await.expect("a connection did its work");
                }
            }
            Pace::Open { requests_per_second } => self.when_due(requests_per_second).await,
        }
    }

    async fn one_by_one(self: Rc<Self>) {
        while let Some(number) = self.take_number() {
            if !self.send(number).await {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    async fn when_due(self: Rc<Self>, requests_per_second: f64) {
        let begun = tokio::time::Instant::now();
        while let Some(number) = self.take_number() {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(number as f64 / requests_per_second)).await;
            // A sender that is late must still read answers.
            tokio::task::yield_now().await;
            if self.under_way.get() < CONNECTIONS_MAX {
                let sender = Rc::clone(&self);
                tokio::task::spawn_local(async move { sender.send(number).await });
            } else {
                self.result.borrow_mut().unsent += 1;
            }
        }
    }

    fn take_number(&self) -> Option<u64> {
        let number = self.next.get();
        let goes_on = number < self.options.batches && !self.shared.stop.load(Ordering::Relaxed);
        goes_on.then(|| self.next.replace(number + 1))
    }

    /// Sends the batch `number` and notes what becomes of it; true when it was accepted.
    async fn send(&self, number: u64) -> bool {
        let tag = format!("{:06x}-{number:06x}", self.options.seed & 0xFF_FFFF);
        let begun = Instant::now();
        self.result.borrow_mut().sent += 1;
        self.under_way.set(self.under_way.get() + 1);
        let reply = tokio::time::timeout(super::WAIT_MAX, self.exchange(&tag)).await;
        self.under_way.set(self.under_way.get() - 1);
        let reply = reply.unwrap_or_else(|_| Err(io::Error::other("no answer in time")));
        self.note(tag, begun.elapsed(), reply)
    }

    async fn exchange(&self, tag: &str) -> io::Result<Reply> {
        let mut stream = match self.idle_stream() {
            Some(stream) => stream,
            None => TcpStream::connect(self.address).await?,
        };
        let mut message = self.messages.borrow_mut().pop().unwrap_or_else(|| self.template.message.clone());
        self.template.put_tag(&mut message, tag);
        let written = stream.write_all(&message).await;
        self.messages.borrow_mut().push(message);
        written?;
        let reply = read_reply(&mut stream).await?;
        if reply.header("connection") != "close" {
            self.idle.borrow_mut().push(stream);
        }
        Ok(reply)
    }

    /// A connection that the server has not closed meanwhile.
    fn idle_stream(&self) -> Option<TcpStream> {
        let would_block = |stream: &TcpStream| {
            stream.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find(would_block)
    }

    fn note(&self, tag: String, took: Duration, reply: io::Result<Reply>) -> bool {
        let mut result = self.result.borrow_mut();
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // Its outcome is unknown.
                result.outcome.batches.push(Sent { tag, batch_id: None, events: BATCH_EVENTS, acked: false });
                *result.faults.entry(error.to_string()).or_default() += 1;
                return false;
            }
        };
        let is_accepted = matches!(reply.status, 200 | 202);
        let is_refused = matches!(reply.status, 429 | 503) && reply.header("retry-after").parse::<u64>().is_ok();
        let answer = if is_accepted {
            reply.status.to_string()
        } else {
            format!("{} {}", reply.status, reply.json()["code"].as_str().unwrap_or_default())
        };
        if is_accepted {
            self.shared.accepted.fetch_add(1, Ordering::Relaxed);
            result.outcome.batches.push(Sent { tag, batch_id: None, events: BATCH_EVENTS, acked: true });
            result.latencies.push(took);
        } else if is_refused {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        } else {
            *result.faults.entry(format!("{answer}: {}", reply.text())).or_default() += 1;
        }
        *result.answers.entry(answer).or_default() += 1;
        is_accepted
    }
}

async fn read_reply(stream: &mut TcpStream) -> io::Result<Reply> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let mut reply = head_of(&bytes[..end]);
            let length: usize = reply.header("content-length").parse().map_err(io::Error::other)?;
            reply.body = bytes.split_off(end + 4);
            while reply.body.len() < length {
                read_more(stream, &mut reply.body).await?;
            }
            return Ok(reply);
        }
        read_more(stream, &mut bytes).await?;
    }
}

async fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_buf(bytes).await? {
        0 => Err(io::Error::other("the connection ended before the answer")),
        _ => Ok(()),
    }
}
