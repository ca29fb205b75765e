//! A TCP proxy between the server and PostgreSQL (or Redis) that fails on command.
//!
//! ```text
//!  forward ◀──▶ stall      bytes wait in the proxy; connections stay open
//!          ◀──▶ refuse     new connections are closed at once; those that are open go on
//!  freeze                  on connections that are open now nothing passes any more; they stay open
//!  cut                     every connection is closed now
//!  cut_after_reply_to(…)   once: the request is forwarded, its reply awaited and swallowed, then cut
//!  cut_before(…)           once: the connection is cut in place of forwarding the request
//! ```

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long an idle direction sleeps in `read` before it looks at the mode again.
const READ_WAIT: Duration = Duration::from_millis(20);

/// What happens to bytes and new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Forward,
    /// Nothing passes; nothing is closed.
    Stall,
    /// New connections are closed at once.
    Refuse,
}

#[derive(Clone, Debug)]
enum Trap {
    AfterReply(Vec<u8>),
    Before(Vec<u8>),
}

struct State {
    mode: Mode,
    target: SocketAddr,
    trap: Option<Trap>,
    sprung: u32,
    open: Vec<(TcpStream, TcpStream)>,
    connections: u64,
    /// Connections with lower numbers are frozen.
    frozen_below: u64,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A listening proxy; ends with the test process.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// A proxy on a free port of 127.0.0.1 that forwards to `port` there.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let state = State {
            mode: Mode::Forward,
            target,
            trap: None,
            sprung: 0,
            open: Vec::new(),
            connections: 0,
            frozen_below: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.connect(client);
            }
        });
        Self { shared, address }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Forwards new connections to `port` from now on.
    pub fn redirect(&self, port: u16) {
        self.shared.state.lock().target.set_port(port);
    }

    /// Changes what happens to bytes and new connections.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.state.lock().mode = mode;
        self.shared.changed.notify_all();
    }

    /// From now on nothing passes on the connections that are open, in either direction: what a balancer does that
    /// has lost their other ends. New ones are served.
    pub fn freeze(&self) {
        let mut state = self.shared.state.lock();
        state.frozen_below = state.connections;
    }

    /// Closes every connection.
    pub fn cut(&self) {
        for (client, server) in self.shared.state.lock().open.drain(..) {
            close(&client, &server);
        }
        self.shared.changed.notify_all();
    }

    /// Cuts the next connection on which the client sends `request`, after the server has answered it, without
    /// handing the answer on.
    pub fn cut_after_reply_to(&self, request: &[u8]) {
        self.shared.state.lock().trap = Some(Trap::AfterReply(request.to_vec()));
    }

    /// Cuts the next connection on which the client sends `request`, without handing the request on.
    pub fn cut_before(&self, request: &[u8]) {
        self.shared.state.lock().trap = Some(Trap::Before(request.to_vec()));
    }

    /// How many connections have come so far.
    pub fn connections(&self) -> u64 {
        self.shared.state.lock().connections
    }

    /// How many traps have closed a connection.
    pub fn sprung(&self) -> u32 {
        self.shared.state.lock().sprung
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: TcpStream) {
        let (mode, target, number) = {
            let mut state = self.state.lock();
            state.connections += 1;
            (state.mode, state.target, state.connections - 1)
        };
        let connected = if mode == Mode::Refuse { None } else { TcpStream::connect(target).ok() };
        let Some(server) = connected else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(READ_WAIT))).expect("a socket");
        }
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket");
        self.state.lock().open.push((copy(&client), copy(&server)));
        // Held by the direction that passes bytes: a trap keeps the reply back by holding it.
        let replies = Arc::new(Mutex::new(()));
        let (up, down) = (Arc::clone(self), Arc::clone(self));
        let (up_client, up_server, up_replies) = (copy(&client), copy(&server), Arc::clone(&replies));
        thread::spawn(move || up.requests(number, &up_client, &up_server, &up_replies));
        thread::spawn(move || down.replies(number, &server, &client, &replies));
    }

    /// Client to server, looking for the trap.
    fn requests(&self, number: u64, client: &TcpStream, server: &TcpStream, replies: &Mutex<()>) {
        let mut buffer = vec![0; 64 * 1024];
        while let Some(bytes) = self.receive(number, client, &mut buffer) {
            let data = &buffer[..bytes];
            match self.trap_in(data) {
                None => {
                    if (&*server).write_all(data).is_err() {
                        break;
                    }
                }
                Some(Trap::Before(_)) => break,
                Some(Trap::AfterReply(_)) => {
                    let _held = replies.lock();
                    if (&*server).write_all(data).is_ok() {
                        // The answer proves that the server has done what was asked; nobody else will see it.
                        self.receive(number, server, &mut buffer);
                    }
                    close(client, server);
                    break;
                }
            }
        }
        close(client, server);
    }

    /// Server to client.
    fn replies(&self, number: u64, server: &TcpStream, client: &TcpStream, replies: &Mutex<()>) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // Waits without taking anything, so that a trap can read the reply in our place.
            if !self.wait_readable(server) {
                break;
            }
            let held = replies.lock();
            match (&*server).read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => {
                    self.wait_while_stalled(number);
                    if (&*client).write_all(&buffer[..bytes]).is_err() {
                        break;
                    }
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => break,
            }
            drop(held);
        }
        close(client, server);
    }

    /// The next bytes of `stream`, not before the mode lets them pass; `None` at its end.
    fn receive(&self, number: u64, mut stream: &TcpStream, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match stream.read(buffer) {
                Ok(0) => return None,
                Ok(bytes) => {
                    self.wait_while_stalled(number);
                    return Some(bytes);
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => return None,
            }
        }
    }

    fn wait_readable(&self, stream: &TcpStream) -> bool {
        loop {
            match stream.peek(&mut [0]) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(error) if is_timeout(&error) => {}
                Err(_) => return false,
            }
        }
    }

    fn wait_while_stalled(&self, number: u64) {
        let mut state = self.state.lock();
        while state.mode == Mode::Stall || number < state.frozen_below {
            self.changed.wait(&mut state);
        }
    }

    /// Takes the trap if `data` holds what it waits for.
    fn trap_in(&self, data: &[u8]) -> Option<Trap> {
        let mut state = self.state.lock();
        let (Trap::AfterReply(request) | Trap::Before(request)) = state.trap.as_ref()?;
        if !data.windows(request.len()).any(|part| part == request) {
            return None;
        }
        state.sprung += 1;
        state.trap.take()
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted
    )
}

fn close(client: &TcpStream, server: &TcpStream) {
    // Either may be closed already.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
