//! The connections: each takes the next request that is due, sends it, and waits for its answer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::events::Events;
use super::pace::Schedule;
use super::secure::Secure;
use super::tally::{Outcome, Tally};
use crate::status::model::rfc3339;
use crate::sys::clock::wall_now;

/// An answer is some hundred bytes; errors list at most a hundred events.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Where requests go, and how.
pub(super) struct Target {
    /// `host:port`.
    pub authority: String,
    /// Set for `https://`.
    pub secure: Option<Secure>,
    /// `Authorization`, where the server asks for keys.
    pub authorization: Option<HeaderValue>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// An answer: status, and the body.
pub(super) type Answer = (u16, Bytes);

/// Why there was none.
#[derive(Clone, Debug)]
pub(super) struct NoAnswer {
    /// One line.
    pub why: String,
    /// The request was sent, or some of it: what became of it is not known.
    pub was_sent: bool,
}

impl NoAnswer {
    fn after_sending(why: impl ToString) -> Self {
        Self { why: why.to_string(), was_sent: true }
    }
}

/// One connection, opened when it is needed.
pub(super) struct Connection {
    target: Rc<Target>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// Not open yet.
    pub(super) fn new(target: &Rc<Target>) -> Self {
        Self { target: Rc::clone(target), sender: None }
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn send(&mut self, method: Method, path: &Uri, body: Bytes) -> Result<Answer, NoAnswer> {
        let timeout = self.target.timeout;
        let answered = tokio::time::timeout(timeout, self.exchange(method, path, body)).await;
        let answer =
            answered.unwrap_or_else(|_| Err(NoAnswer::after_sending(format!("no response within {timeout:?}"))));
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn exchange(&mut self, method: Method, path: &Uri, body: Bytes) -> Result<Answer, NoAnswer> {
        let mut open = self.sender.take();
        if let Some(sender) = &mut open
            && sender.ready().await.is_err()
        {
            // The server closes connections that it is done with: that is no failure of a request.
            open = None;
        }
        let mut sender = match open {
            Some(sender) => sender,
            None => self.open().await.map_err(|error| {
                let why = format!("cannot connect to {}: {error}", self.target.authority);
                NoAnswer { why, was_sent: false }
            })?,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.target.authority)
            .header("content-type", "application/json");
        let request = match &self.target.authorization {
            Some(key) => request.header(AUTHORIZATION, key),
            None => request,
        };
        let request = request.body(Full::new(body)).map_err(NoAnswer::after_sending)?;
        let response = sender.send_request(request).await.map_err(NoAnswer::after_sending)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(NoAnswer::after_sending)?.to_bytes();
        self.sender = Some(sender);
        Ok((status, body))
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error>> {
        let stream = TcpStream::connect(&self.target.authority).await?;
        stream.set_nodelay(true)?;
        match &self.target.secure {
            None => shake_hands(stream).await,
            Some(Secure { connector, name }) => shake_hands(connector.connect(name.clone(), stream).await?).await,
        }
    }
}

async fn shake_hands<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end shows in the sender.
    tokio::task::spawn_local(async { connection.await.ok() });
    Ok(sender)
}

/// A run: what all connections share.
pub(super) struct Run {
    /// Where to.
    pub target: Rc<Target>,
    /// `/v1/ingest/batch` with its query.
    pub path: Uri,
    /// When requests are due.
    pub schedule: Schedule,
    /// A permit for each of them.
    pub due: Arc<Semaphore>,
    /// How many were taken.
    pub taken: Cell<u64>,
    /// When what is left is given up.
    pub give_up_at: Instant,
    /// Events of a request.
    pub batch: usize,
    /// The priorities, in turn.
    pub priorities: Vec<u8>,
    /// Whose turn it is.
    pub turn: Cell<usize>,
    /// Where bodies come from.
    pub events: RefCell<Events>,
    /// What became of it.
    pub tally: RefCell<Tally>,
}

impl Run {
    /// Sends everything over `connections` connections.
    pub(super) async fn send_all(self: &Rc<Self>, connections: usize) {
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let run = Rc::clone(self);
            tasks.spawn_local(async move { run.send_until_end().await });
        }
        tasks.join_all().await;
    }

    async fn send_until_end(&self) {
        let mut connection = Connection::new(&self.target);
        loop {
            // Before the request is due, so that making it does not count.
            let mut body = Vec::new();
            let priority = self.next_priority();
            self.events.borrow_mut().write_body(&mut body, self.batch, priority, &rfc3339(wall_now()));
            // A closed semaphore would mean the end, too; nobody closes it.
            let Ok(permit) = self.due.acquire().await else { return };
            permit.forget();
            let number = self.taken.get();
            if number >= self.schedule.requests || Instant::now() >= self.give_up_at {
                return;
            }
            self.taken.set(number + 1);
            let (due, sent_at) = (self.schedule.due(number), Instant::now());
            let answer = connection.send(Method::POST, &self.path, body.into()).await;
            let outcome = Outcome::of(&answer);
            let late = sent_at.saturating_duration_since(due);
            self.tally.borrow_mut().record(priority, self.batch, late, due.elapsed(), outcome);
        }
    }

    fn next_priority(&self) -> u8 {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.priorities.len());
        self.priorities[turn]
    }
}
