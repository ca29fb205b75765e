//! One HTTP worker: a pinned thread with its own runtime, its own listeners and its own connections.
//! Nothing is stolen from other workers and nothing is shared with them but [`App`].

use std::cell::RefCell;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};
use uuid::ContextV7;

use crate::http::app::App;
use crate::http::body::BufferPool;
use crate::http::connection;
use crate::http::connections::Full;
use crate::http::inflate::Inflater;
use crate::http::peer::Peer;
use crate::http::problem::Problem;
use crate::json::Scratch;
use crate::limits::{ACCEPT_RETRY_WAIT, HTTP_DRAIN_WAIT_MAX, REFUSED_CONNECTIONS_TOLD_EVERY, RETRY_AFTER_BUSY_SECONDS};
use crate::metrics::Recorder;
use crate::sys::affinity::{self, CoreId};
use crate::sys::paced::Paced;

/// What one worker owns.
pub struct Worker {
    /// Its number, and the number of its ring.
    pub index: usize,
    /// What it shares.
    pub app: Arc<App>,
    /// The scanner's memory.
    pub scratch: RefCell<Scratch>,
    /// Who sends, as long as there are no keys.
    pub everybody: Arc<str>,
    /// For ids of batches that have none: in rising order, whatever the clock does.
    pub ids: ContextV7,
    /// Body buffers.
    pub buffers: BufferPool,
    /// What decompresses bodies.
    pub inflater: Inflater,
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
        everybody: Arc::from(""),
        ids: ContextV7::new(),
        buffers: BufferPool::default(),
        inflater: Inflater::default(),
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
    let mut door = Door::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if !door.has_spare() => door.exchange(stream),
                Ok((stream, address)) => match worker.app.connections.enter(address.ip()) {
                    Ok(connected) => {
                        let peer = Peer { address: address.ip(), certificate: None };
                        let worker = Rc::clone(&worker);
                        connections.spawn_local(connection::serve(worker, stream, peer, connected, drain.clone()));
                    }
                    Err(full) => door.refuse(&stream, address, full, worker.app.tls.is_some()),
                },
                Err(error) => {
                    if !door.shut_out(&error, &listener).await {
                        sleep(ACCEPT_RETRY_WAIT).await;
                    }
                }
            },
            Some(_) = connections.join_next() => {}
            () = drained(&mut stop) => break,
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(HTTP_DRAIN_WAIT_MAX, finished).await.is_err() {
        tracing::warn!(
            worker = worker.index,
            "some requests did not finish before the shutdown deadline; closing their connections"
        );
    }
}

/// Turns connections away.
struct Door {
    /// An open file to give up, so that a connection can be accepted, and closed, when there are no others left: in the
    /// backlog it would wait for nothing.
    spare: Option<File>,
    told: Paced,
}

impl Door {
    fn new() -> Self {
        Self { spare: File::open("/dev/null").ok(), told: Paced::new(REFUSED_CONNECTIONS_TOLD_EVERY) }
    }

    /// True when there is a file to give up; gets one if it can.
    fn has_spare(&mut self) -> bool {
        self.spare = self.spare.take().or_else(|| File::open("/dev/null").ok());
        self.spare.is_some()
    }

    /// Closes a connection for the sake of a spare file: it came by the one that another worker gave up. Of several
    /// workers at the limit each would otherwise end without, and leave who waits for it waiting.
    fn exchange(&mut self, stream: TcpStream) {
        drop(stream);
        self.has_spare();
    }

    /// Answers 503 as far as the socket takes it at once, and waits for nothing. Who expects a handshake is only closed.
    fn refuse(&mut self, stream: &TcpStream, address: SocketAddr, full: Full, is_tls: bool) {
        let setting = match full {
            Full::Server => "MAX_CONNECTIONS",
            Full::Client => "MAX_CONNECTIONS_PER_ADDRESS",
        };
        if self.told.is_due(Instant::now()) {
            tracing::warn!(%address, "connection refused: {setting} limit reached");
        }
        if is_tls {
            return;
        }
        let detail = format!("too many connections are open ({setting}); use fewer, or retry later");
        let problem = Problem::unavailable("too_many_connections", detail, RETRY_AFTER_BUSY_SECONDS);
        let _ = stream.try_write(&problem.and_close().into_bytes());
    }

    /// Accepts and closes one connection because there are no open files left; false when that was not `error`, or did
    /// not work.
    async fn shut_out(&mut self, error: &std::io::Error, listener: &tokio::net::TcpListener) -> bool {
        if self.told.is_due(Instant::now()) {
            tracing::warn!(%error,
                "cannot accept new connections; existing ones are still served; raise the open-file limit (ulimit -n)");
        }
        let is_out_of_files =
            matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE));
        if !is_out_of_files || self.spare.take().is_none() {
            self.spare = File::open("/dev/null").ok();
            return false;
        }
        // Who was waiting may have left, and somebody else may take the file that was given up.
        let closed = matches!(timeout(ACCEPT_RETRY_WAIT, listener.accept()).await, Ok(Ok(_)));
        self.spare = File::open("/dev/null").ok();
        closed
    }
}

/// Ends when the server begins to drain (or its main thread is gone).
pub(super) async fn drained(drain: &mut watch::Receiver<bool>) {
    let _ = drain.wait_for(|draining| *draining).await;
}
