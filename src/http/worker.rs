//! One HTTP worker: a pinned thread with its own runtime, its own listeners and its own connections.
//! Nothing is stolen from other workers and nothing is shared with them but [`App`].

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::CONNECTION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use uuid::ContextV7;

use crate::http::app::App;
use crate::http::body::BufferPool;
use crate::http::linger::Lingering;
use crate::http::route;
use crate::json::Scratch;
use crate::limits::{CONNECTION_BUFFER_BYTES_MAX, HEADER_READ_WAIT_MAX, HEADERS_MAX, HTTP_DRAIN_WAIT_MAX};
use crate::metrics::Recorder;
use crate::sys::affinity::{self, CoreId};

/// What one worker owns.
pub struct Worker {
    /// Its number, and the number of its ring.
    pub index: usize,
    /// What it shares.
    pub app: Arc<App>,
    /// The scanner's memory.
    pub scratch: RefCell<Scratch>,
    /// Who sends, as long as there are no keys.
    pub owner: Arc<str>,
    /// For ids of batches that have none: in rising order, whatever the clock does.
    pub ids: ContextV7,
    /// Body buffers.
    pub buffers: BufferPool,
    /// Ack latencies of this worker.
    pub ack_latency: Recorder,
}

/// What a worker thread starts with.
pub struct WorkerStart {
    /// Its number.
    pub index: usize,
    /// The core to run on; `None` leaves it to the scheduler.
    pub core: Option<CoreId>,
    /// Its listeners, one an address, bound with `SO_REUSEPORT`.
    pub listeners: Vec<TcpListener>,
    /// Turns true at shutdown.
    pub drain: watch::Receiver<bool>,
}

/// Serves until `drain` turns true and the requests under way are answered, or their time is up.
///
/// # Errors
/// The runtime or a listener could not be set up.
pub fn run(start: WorkerStart, app: Arc<App>) -> std::io::Result<()> {
    if let Some(core) = start.core {
        affinity::pin_current_thread(core);
    }
    let ack_latency = app.metrics.ack_latency.recorder();
    let worker = Rc::new(Worker {
        index: start.index,
        app,
        scratch: RefCell::new(Scratch::new()),
        owner: Arc::from(""),
        ids: ContextV7::new(),
        buffers: BufferPool::default(),
        ack_latency,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(worker, start.listeners, start.drain))
}

async fn serve(worker: Rc<Worker>, listeners: Vec<TcpListener>, drain: watch::Receiver<bool>) -> std::io::Result<()> {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        accepting.spawn_local(accept(Rc::clone(&worker), listener, drain.clone()));
    }
    while let Some(ended) = accepting.join_next().await {
        // Nobody would accept on its address any more.
        ended.map_err(std::io::Error::other)?;
    }
    Ok(())
}

/// Accepts until the drain, then waits for the connections to finish.
async fn accept(worker: Rc<Worker>, listener: tokio::net::TcpListener, drain: watch::Receiver<bool>) {
    let mut stop = drain.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn_local(connection(Rc::clone(&worker), stream, drain.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again in a moment");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = drained(&mut stop) => break,
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(HTTP_DRAIN_WAIT_MAX, finished).await.is_err() {
        tracing::warn!(worker = worker.index, "some requests did not finish in time; their connections are closed");
    }
}

/// Ends when the server begins to drain (or its main thread is gone).
async fn drained(drain: &mut watch::Receiver<bool>) {
    let _ = drain.wait_for(|draining| *draining).await;
}

async fn connection(worker: Rc<Worker>, stream: TcpStream, mut drain: watch::Receiver<bool>) {
    // Answers are small and awaited: do not hold them back. A failure only costs latency.
    let _ = stream.set_nodelay(true);
    let lingers = Rc::new(Cell::new(false));
    let stream = Lingering::new(stream, Rc::clone(&lingers));
    let service = service_fn(move |request| {
        let (worker, lingers) = (Rc::clone(&worker), Rc::clone(&lingers));
        async move {
            let response = route::answer(&worker, request).await;
            // A handler closes the connection when it left a body unread.
            lingers.set(response.headers().contains_key(CONNECTION));
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_WAIT_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(CONNECTION_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drained(&mut drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
