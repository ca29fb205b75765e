//! One connection: which protocol it speaks, and its requests.
//!
//! With TLS both agree on the protocol in the handshake (ALPN). Without, HTTP/2 is spoken with a client that begins with
//! its preface, HTTP/1 with all others. Absent on purpose: `Upgrade: h2c`, which RFC 9113 has given up.

use std::convert::Infallible;
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONNECTION;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::auth::key::Fingerprint;
use crate::http::connections::Connected;
use crate::http::peer::Peer;
use crate::http::problem::Problem;
use crate::http::route;
use crate::http::stream::{ClientStream, Opening, Progress};
use crate::http::tls::{ALPN_HTTP2, Tls};
use crate::http::worker::{Worker, drained};
use crate::limits::{
    HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES_MAX, HTTP2_HEADER_TABLE_BYTES, HTTP2_LOCAL_RESETS_MAX,
    HTTP2_RESETS_PENDING_MAX, HTTP2_SEND_BUFFER_BYTES_MAX, HTTP2_STREAM_WINDOW_BYTES, HTTP2_STREAMS_MAX,
};

/// Turns true at shutdown.
type Drain = watch::Receiver<bool>;

/// Serves `stream` until its client has enough, or its time is up, or `drain` turns true and what is under way is answered.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: Peer, _connected: Connected, mut drain: Drain) {
    // Answers are small and awaited: do not hold them back. A failure only costs latency.
    let _ = stream.set_nodelay(true);
    let (mut stream, progress) = ClientStream::new(stream, worker.app.patience);
    let Some(opening) = opening(&mut stream, &mut drain).await else { return };
    let acceptor = worker.app.tls.as_ref().map(Tls::acceptor);
    let requests = Requests { worker, peer: Rc::new(peer), progress };
    match (opening, acceptor) {
        // Boxed, as they differ in size: there may be many idle connections of plain HTTP/1.
        (Opening::Tls, Some(acceptor)) => Box::pin(serve_tls(stream, acceptor, requests, drain)).await,
        (_, Some(_)) => Box::pin(refuse_plain(stream, &requests.progress)).await,
        (Opening::Http2, None) => Box::pin(serve_http2(stream, requests, drain)).await,
        (Opening::Http1 | Opening::Tls, None) => serve_http1(stream, requests, drain).await,
    }
}

/// How `stream` begins; `None` when that is not worth waiting for any more.
async fn opening(stream: &mut ClientStream, drain: &mut Drain) -> Option<Opening> {
    let begun = tokio::select! {
        biased;
        opening = stream.opening() => Some(opening),
        () = drained(drain) => None,
    };
    let opening = match begun {
        Some(opening) => opening,
        // Who has begun a request gets its answer.
        None if stream.has_begun() => stream.opening().await,
        None => return None,
    };
    opening.inspect_err(|error| tracing::debug!(%error, "connection closed")).ok()
}

/// Shakes hands, and serves what was agreed on. The stream's deadline for the first head bounds the handshake too.
async fn serve_tls(stream: ClientStream, acceptor: TlsAcceptor, mut requests: Requests, mut drain: Drain) {
    let accepted = tokio::select! {
        biased;
        accepted = acceptor.accept(stream) => accepted,
        // Nothing was asked yet.
        () = drained(&mut drain) => return,
    };
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
    };
    let session = stream.get_ref().1;
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.map(|leaf| Fingerprint::of(leaf));
    requests.peer = Rc::new(Peer { address: requests.peer.address, certificate });
    if session.alpn_protocol() == Some(ALPN_HTTP2) {
        serve_http2(stream, requests, drain).await;
    } else {
        serve_http1(stream, requests, drain).await;
    }
}

/// Tells a client that does not know of TLS.
async fn refuse_plain(mut stream: ClientStream, progress: &Progress) {
    let detail = "this address serves HTTPS only; use an https:// URL";
    let problem = Problem::new(StatusCode::BAD_REQUEST, "https_required", detail).and_close();
    progress.is_refused();
    // It may be gone, which is fine.
    let _ = stream.write_all(&problem.into_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn serve_http1<S>(stream: S, requests: Requests, mut drain: Drain)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let head_limits = requests.worker.app.head_limits;
    // Boxed: a connection without a request does not hold the room for one.
    let service = service_fn(move |request| Box::pin(requests.clone().answer(request)));
    let connection = http1::Builder::new()
        // The stream's deadlines tell the wait for a head from the wait for the next request.
        .header_read_timeout(None)
        // Who has sent everything may close that side, and still wants the answer.
        .half_close(true)
        .max_headers(head_limits.headers_max)
        .max_buf_size(head_limits.bytes_max)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = drained(&mut drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection closed");
    }
}

async fn serve_http2<S>(stream: S, requests: Requests, mut drain: Drain)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (progress, patience) = (Rc::clone(&requests.progress), requests.worker.app.patience);
    let head_limits = requests.worker.app.head_limits;
    progress.is_http2();
    let service = service_fn(move |request| Box::pin(requests.clone().answer(request)));
    let connection = http2::Builder::new(LocalTasks)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES_MAX)
        .max_header_list_size(u32::try_from(head_limits.bytes_max).unwrap_or(u32::MAX))
        .header_table_size(HTTP2_HEADER_TABLE_BYTES)
        .max_pending_accept_reset_streams(HTTP2_RESETS_PENDING_MAX)
        .max_local_error_reset_streams(HTTP2_LOCAL_RESETS_MAX)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let leave = async {
        tokio::select! {
            () = drained(&mut drain) => {}
            () = progress.idle_for(patience.idle) => {}
        }
    };
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = leave => {
            progress.goes_away();
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection closed");
    }
}

/// Runs the streams of HTTP/2 connections on the worker's own thread.
#[derive(Clone, Copy, Debug)]
struct LocalTasks;

impl<F: Future + 'static> Executor<F> for LocalTasks {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(stream);
    }
}

/// What answers the requests of one connection.
#[derive(Clone)]
struct Requests {
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    progress: Rc<Progress>,
}

impl Requests {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let under_way = self.progress.request_begins();
        let is_http2 = request.version() == Version::HTTP_2;
        let mut response = route::answer(&self.worker, &self.peer, request).await;
        // A handler closes the connection when it left a body unread. HTTP/2 has no such header: the stream ends, and the
        // client is told to send no more of the body.
        let closes = response.headers().contains_key(CONNECTION);
        if is_http2 {
            response.headers_mut().remove(CONNECTION);
        }
        under_way.answered(closes);
        Ok(response)
    }
}
