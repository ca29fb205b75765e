//! Closing a connection without losing the last answer on it (RFC 9112, section 9.6).
//!
//! A client may still be sending the body of a request that was answered early, such as one over a limit.
//! Closing at once would reset the connection, and the client would see its write fail instead of the answer.
//! So the sending side is closed first, and what the client sends is read and thrown away until it closes too,
//! or its time is up.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::limits::{LINGER_READ_BYTES, LINGER_WAIT_MAX};

/// A stream that lingers when it is shut down.
pub struct Lingering {
    stream: TcpStream,
    /// False when nobody can be sending: then closing is the end.
    wanted: Rc<Cell<bool>>,
    /// Set once our side is closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    /// Wraps `stream`; `wanted` is looked at when it is shut down.
    pub fn new(stream: TcpStream, wanted: Rc<Cell<bool>>) -> Self {
        Self { stream, wanted, until: None }
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

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.until.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if !this.wanted.get() {
            return Poll::Ready(Ok(()));
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_WAIT_MAX)));
        Self::poll_linger(&mut this.stream, until, cx).map(Ok)
    }
}
