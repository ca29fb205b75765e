//! A client's connection: how it begins, by when the client has to send and to read, and how it ends.
//!
//! ```text
//!  accepted ─▶ head ─ whole ─▶ handling ─ answered ─▶ idle ─ first byte ─▶ head …
//!               │ HEADER_TIMEOUT_SECONDS               │ KEEP_ALIVE_SECONDS
//!               └───────────────▶ closed ◀─────────────┘
//! ```
//!
//! With HTTP/2 a connection is idle while it has no open stream. Its frames (PING, SETTINGS, the begin of a header
//! block) are no reason to wait for longer: only a request is, so from idle it goes to handling at once.
//!
//! Closing loses no answer (RFC 9112, section 9.6): a client may still be sending the body of a request that was
//! answered early, such as one over a limit, or the rest of what is no request. Closing at once would reset the connection, and the client would see its
//! write fail instead of the answer. So the sending side is closed first, and what the client sends is read and thrown
//! away until it closes too, or its time is up.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::limits::{HTTP2_GOAWAY_WAIT_MAX, LINGER_READ_BYTES, LINGER_WAIT_MAX};

/// How long a connection may wait for its client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// `HEADER_TIMEOUT_SECONDS`: from a request's first byte, or the connection's begin, to the end of its head.
    pub head: Duration,
    /// `KEEP_ALIVE_SECONDS`: from an answer to the next request's first byte.
    pub idle: Duration,
    /// `WRITE_TIMEOUT_SECONDS`: how long an answer may wait until its client reads on.
    pub write: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    /// How fast a body has to come is its reader's business.
    Handling,
    Idle,
}

/// What those who answer tell the stream.
#[derive(Debug)]
pub struct Progress {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// False when nobody can be sending a body: then closing is the end, but for a head that is no request.
    lingers: Cell<bool>,
    /// Requests without an answer yet: one at most with HTTP/1.
    open: Cell<u32>,
    is_http2: Cell<bool>,
    /// When an HTTP/2 client was told to go.
    going_since: Cell<Option<Instant>>,
}

impl Progress {
    fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(Instant::now()),
            lingers: Cell::new(false),
            open: Cell::new(0),
            is_http2: Cell::new(false),
            going_since: Cell::new(None),
        }
    }

    /// The client speaks HTTP/2. It may be sending at any time, so that closing always lingers.
    pub fn is_http2(&self) {
        self.is_http2.set(true);
        self.lingers.set(true);
    }

    /// The client is refused without a look at what it still sends.
    pub fn is_refused(&self) {
        self.lingers.set(true);
    }

    /// The client was told to open no more streams.
    pub fn goes_away(&self) {
        self.going_since.set(Some(Instant::now()));
    }

    /// A request's head is here; it is under way until the result is dropped.
    pub fn request_begins(self: &Rc<Self>) -> UnderWay {
        self.open.set(self.open.get() + 1);
        self.enter(Phase::Handling);
        UnderWay(Rc::clone(self))
    }

    /// Ends when there was no request for `wait_max`.
    pub async fn idle_for(&self, wait_max: Duration) {
        loop {
            let since = if self.phase.get() == Phase::Idle { self.since.get() } else { Instant::now() };
            sleep_until(since + wait_max).await;
            if self.phase.get() == Phase::Idle && self.since.get() <= since {
                return;
            }
        }
    }

    /// True when the client may still be sending: a body that was answered early, or what follows a head that could
    /// not be read and was answered as soon as that was clear.
    fn lingers_at_close(&self) -> bool {
        self.lingers.get() || self.phase.get() == Phase::Head
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    fn read_deadline(&self, patience: Patience) -> Option<Instant> {
        let since = self.since.get();
        match self.phase.get() {
            Phase::Head => Some(since + patience.head),
            Phase::Handling => None,
            Phase::Idle if !self.is_http2.get() => Some(since + patience.idle),
            // It is told to go before it is cut off.
            Phase::Idle => {
                let going_since = self.going_since.get().unwrap_or(since + patience.idle);
                Some(going_since.max(since) + HTTP2_GOAWAY_WAIT_MAX)
            }
        }
    }
}

/// A request under way; with HTTP/2 it may be taken back at any time.
#[derive(Debug)]
pub struct UnderWay(Rc<Progress>);

impl UnderWay {
    /// Its answer is ready; `leaves_body`: a part of the request was not read, and the connection is closed for it.
    pub fn answered(self, leaves_body: bool) {
        self.0.lingers.set(leaves_body || self.0.is_http2.get());
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0 {
            self.0.enter(Phase::Idle);
        }
    }
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// HTTP/2's preface: the client knows that the server speaks it (RFC 9113, 3.3).
    Http2,
    /// A handshake of TLS (RFC 8446, 5.1).
    Tls,
    /// Anything else, for HTTP/1 to find out.
    Http1,
}

/// A client's connection preface (RFC 9113, 3.4). No request of HTTP/1 begins with it.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The content type of a handshake record.
const TLS_HANDSHAKE: u8 = 22;

/// What begins with `bytes`; `None` when that takes more of them.
fn opening_of(bytes: &[u8]) -> Option<Opening> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return Some(Opening::Tls);
    }
    if !HTTP2_PREFACE.starts_with(bytes) {
        return Some(Opening::Http1);
    }
    (bytes.len() == HTTP2_PREFACE.len()).then_some(Opening::Http2)
}

/// What was read to see how a connection begins, for those who read next.
#[derive(Default)]
struct Ahead {
    bytes: [u8; HTTP2_PREFACE.len()],
    filled: usize,
    taken: usize,
}

impl Ahead {
    fn seen(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Moves into `buffer` what fits; true when that was anything.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let bytes = &self.bytes[self.taken..self.filled];
        let count = bytes.len().min(buffer.remaining());
        buffer.put_slice(&bytes[..count]);
        self.taken += count;
        count > 0
    }
}

/// The stream of one connection.
pub struct ClientStream {
    stream: TcpStream,
    patience: Patience,
    progress: Rc<Progress>,
    reading: Pin<Box<Sleep>>,
    /// Set while the client does not read.
    writing: Option<Pin<Box<Sleep>>>,
    /// Set once our side is closed.
    closed: Option<Pin<Box<Sleep>>>,
    ahead: Ahead,
}

impl ClientStream {
    /// Takes `stream`, and gives what those who answer its requests tell it with.
    pub fn new(stream: TcpStream, patience: Patience) -> (Self, Rc<Progress>) {
        let progress = Rc::new(Progress::new());
        let reading = Box::pin(sleep_until(progress.since.get() + patience.head));
        let told = Rc::clone(&progress);
        (Self { stream, patience, progress, reading, writing: None, closed: None, ahead: Ahead::default() }, told)
    }

    /// Reads as much as tells how the connection begins; those who read next get it all the same.
    ///
    /// # Errors
    /// The connection fails, or nothing comes in time.
    pub async fn opening(&mut self) -> io::Result<Opening> {
        poll_fn(|cx| self.poll_opening(cx)).await
    }

    /// True when the client has sent anything.
    pub fn has_begun(&self) -> bool {
        !self.ahead.seen().is_empty()
    }

    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Opening>> {
        loop {
            if let Some(opening) = opening_of(self.ahead.seen()) {
                return Poll::Ready(Ok(opening));
            }
            let mut bytes = [0; HTTP2_PREFACE.len()];
            let filled = self.ahead.filled;
            let mut buffer = ReadBuf::new(&mut bytes[filled..]);
            ready!(self.poll_receive(cx, &mut buffer))?;
            let count = buffer.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(Opening::Http1));
            }
            self.ahead.bytes[filled..filled + count].copy_from_slice(&bytes[filled..filled + count]);
            self.ahead.filled += count;
        }
    }

    /// Receives into `buffer` as long as the client has time.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_overdue() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            if self.progress.phase.get() == Phase::Idle && !self.progress.is_http2.get() {
                self.progress.enter(Phase::Head);
            }
            return read;
        }
        let Some(deadline) = self.progress.read_deadline(self.patience) else { return Poll::Pending };
        if self.reading.deadline() != deadline {
            self.reading.as_mut().reset(deadline);
        }
        ready!(self.reading.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// True when a client of HTTP/2 keeps the connection busy without a request: what it sends changes no deadline, and
    /// may be enough that nobody ever waits for more.
    fn is_overdue(&self) -> bool {
        self.progress.is_http2.get()
            && self.progress.read_deadline(self.patience).is_some_and(|deadline| deadline <= Instant::now())
    }

    /// `written`, or an error when the client has not read for too long.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.is_overdue() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let patience = self.patience.write;
        let timer = self.writing.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads and throws away until the client closes or the time is up.
    fn poll_linger(stream: &mut TcpStream, until: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; LINGER_READ_BYTES];
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.give(buffer) {
            return Poll::Ready(Ok(()));
        }
        this.poll_receive(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.bounded(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closed.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if !this.progress.lingers_at_close() {
            return Poll::Ready(Ok(()));
        }
        let until = this.closed.get_or_insert_with(|| Box::pin(sleep(LINGER_WAIT_MAX)));
        Self::poll_linger(&mut this.stream, until, cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_preface_is_http_2() {
        for bytes in 0..HTTP2_PREFACE.len() {
            assert_eq!(opening_of(&HTTP2_PREFACE[..bytes]), None);
        }
        assert_eq!(opening_of(HTTP2_PREFACE), Some(Opening::Http2));
        for other in [&b"POST /v1"[..], b"G", b"PRI * HTTP/2.1", b"PRI * HTTP/2.0\r\n\r\nXX"] {
            assert_eq!(opening_of(other), Some(Opening::Http1), "{other:?}");
        }
        assert_eq!(opening_of(b"\x16\x03\x01"), Some(Opening::Tls));
    }

    #[test]
    fn what_was_looked_at_is_read_again() {
        let mut ahead = Ahead { filled: 5, ..Ahead::default() };
        ahead.bytes[..5].copy_from_slice(b"POST ");
        let mut bytes = [0; 3];
        let mut buffer = ReadBuf::new(&mut bytes);
        assert!(ahead.give(&mut buffer));
        assert_eq!(buffer.filled(), b"POS");
        buffer.clear();
        assert!(ahead.give(&mut buffer));
        assert_eq!(buffer.filled(), b"T ");
        assert!(!ahead.give(&mut buffer));
    }

    #[test]
    fn a_connection_is_idle_when_its_last_request_is_answered_or_gone() {
        let progress = Rc::new(Progress::new());
        progress.is_http2();
        let patience =
            Patience { head: Duration::from_secs(10), idle: Duration::from_secs(75), write: Duration::from_secs(30) };
        assert!(progress.read_deadline(patience).is_some());
        let (one, two) = (progress.request_begins(), progress.request_begins());
        one.answered(true);
        assert_eq!(progress.read_deadline(patience), None, "another stream is open");
        drop(two);
        assert!(progress.read_deadline(patience).is_some());
        assert!(progress.lingers.get());
    }
}
