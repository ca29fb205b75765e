//! A client's connection: by when it has to send and to read, and how it ends.
//!
//! ```text
//!  accepted ─▶ head ─ whole ─▶ handling ─ answered ─▶ idle ─ first byte ─▶ head …
//!               │ HEADER_TIMEOUT_SECONDS               │ KEEP_ALIVE_SECONDS
//!               └───────────────▶ closed ◀─────────────┘
//! ```
//!
//! Closing loses no answer (RFC 9112, section 9.6): a client may still be sending the body of a request that was
//! answered early, such as one over a limit. Closing at once would reset the connection, and the client would see its
//! write fail instead of the answer. So the sending side is closed first, and what the client sends is read and thrown
//! away until it closes too, or its time is up.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::limits::{LINGER_READ_BYTES, LINGER_WAIT_MAX, WRITE_WAIT_MAX};

/// How long a connection may wait for its client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// `HEADER_TIMEOUT_SECONDS`: from a request's first byte, or the connection's begin, to the end of its head.
    pub head: Duration,
    /// `KEEP_ALIVE_SECONDS`: from an answer to the next request's first byte.
    pub idle: Duration,
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
    /// False when nobody can be sending: then closing is the end.
    lingers: Cell<bool>,
}

impl Progress {
    fn new() -> Self {
        Self { phase: Cell::new(Phase::Head), since: Cell::new(Instant::now()), lingers: Cell::new(false) }
    }

    /// A request's head is here.
    pub fn request_begins(&self) {
        self.enter(Phase::Handling);
    }

    /// Its answer is ready; `leaves_body`: a part of the request was not read, and the connection is closed for it.
    pub fn request_ends(&self, leaves_body: bool) {
        self.lingers.set(leaves_body);
        self.enter(Phase::Idle);
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
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
}

impl ClientStream {
    /// Takes `stream`, and gives what those who answer its requests tell it with.
    pub fn new(stream: TcpStream, patience: Patience) -> (Self, Rc<Progress>) {
        let progress = Rc::new(Progress::new());
        let reading = Box::pin(sleep_until(progress.since.get() + patience.head));
        let told = Rc::clone(&progress);
        (Self { stream, patience, progress, reading, writing: None, closed: None }, told)
    }

    fn read_deadline(&self) -> Option<Instant> {
        let wait_max = match self.progress.phase.get() {
            Phase::Head => self.patience.head,
            Phase::Idle => self.patience.idle,
            Phase::Handling => return None,
        };
        Some(self.progress.since.get() + wait_max)
    }

    /// `written`, or an error when the client has not read for too long.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let timer = self.writing.get_or_insert_with(|| Box::pin(sleep(WRITE_WAIT_MAX)));
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
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_ready() {
            if this.progress.phase.get() == Phase::Idle {
                this.progress.enter(Phase::Head);
            }
            return read;
        }
        let Some(deadline) = this.read_deadline() else { return Poll::Pending };
        if this.reading.deadline() != deadline {
            this.reading.as_mut().reset(deadline);
        }
        ready!(this.reading.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
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
        if !this.progress.lingers.get() {
            return Poll::Ready(Ok(()));
        }
        let until = this.closed.get_or_insert_with(|| Box::pin(sleep(LINGER_WAIT_MAX)));
        Self::poll_linger(&mut this.stream, until, cx).map(Ok)
    }
}
