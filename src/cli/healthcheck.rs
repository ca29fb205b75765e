//! `ingestd healthcheck`: does the local server take traffic? For containers, which have no curl.
//!
//! With TLS the server's certificate is not verified over loopback, where nobody else can answer; at another address it
//! must be the one in `TLS_CERT_FILE`.

use std::io::{ErrorKind, Read, Write, stdout};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{ArgMatches, Command};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::failure::Failure;
use super::help::with_examples;
use super::{local, settings};
use crate::config::settings::Key;

/// Time for all of it: container runtimes count a slow answer as none.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// More than a status line needs.
const ANSWER_BYTES_MAX: usize = 256;

pub(super) fn command() -> Command {
    let command = settings::with_settings(
        Command::new("healthcheck").about("Exit 0 when the local server is ready, 1 when it is not").long_about(
            "Query /readyz of the server at the first address of LISTEN_ADDR, for at most two seconds. Exit code 0 if \
             the server is ready for traffic, 1 if it is not or cannot be reached. With TLS_CERT_FILE it uses HTTPS: \
             over loopback the certificate is not verified, otherwise it must be the one in the file.",
        ),
        &[Key::ListenAddr, Key::Auth, Key::TlsCertFile, Key::TlsKeyFile, Key::TlsClientCaFile],
    );
    with_examples(
        command,
        &[
            (
                "the server at LISTEN_ADDR; in a Dockerfile: HEALTHCHECK CMD [\"ingestd\", \"healthcheck\"]",
                "ingestd healthcheck",
            ),
            (
                "wait until a starting server is ready",
                "until ingestd healthcheck --listen-addr 127.0.0.1:8001; do sleep 1; done",
            ),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = settings::config(matches)?;
    let Some(address) = config.listen.first().map(local::reachable) else { unreachable!("LISTEN_ADDR has an address") };
    if address.port() == 0 {
        return Err(Failure::usage("LISTEN_ADDR has port 0 (any free port): give the server's actual port"));
    }
    let tls = config.tls.as_ref().map(|files| local::trusted(address, files)).transpose().map_err(Failure::usage)?;
    let status = ask(address, tls).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Failure::runtime(format!("no response from {address} within {} s", WAIT_MAX.as_secs()))
        }
        _ => Failure::runtime(format!("no response from {address}: {error}; is the server running?")),
    })?;
    if status != 200 {
        return Err(Failure::runtime(format!("{address} is not ready: /readyz returned {status}")));
    }
    Ok(writeln!(stdout(), "ready")?)
}

/// The status of `GET /readyz`.
fn ask(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> std::io::Result<u16> {
    let deadline = Instant::now() + WAIT_MAX;
    let stream = Bounded { stream: TcpStream::connect_timeout(&address, WAIT_MAX)?, deadline };
    match tls {
        None => exchange(stream, address),
        Some(config) => {
            let session =
                ClientConnection::new(config, ServerName::from(address.ip())).map_err(std::io::Error::other)?;
            exchange(StreamOwned::new(session, stream), address)
        }
    }
}

fn exchange(mut stream: impl Read + Write, address: SocketAddr) -> std::io::Result<u16> {
    // Built first and sent at once: `write!` would send it in pieces.
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; ANSWER_BYTES_MAX];
    while answer.len() < ANSWER_BYTES_MAX && !answer.contains(&b'\n') {
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    status(&answer).ok_or_else(|| std::io::Error::other("the response is not HTTP"))
}

/// A connection whose reads and writes all together end by a deadline.
struct Bounded {
    stream: TcpStream,
    deadline: Instant,
}

impl Bounded {
    fn left(&self) -> std::io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl Read for Bounded {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes)
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// The status in `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|&byte| byte == b'\r').next()?).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_gives_its_status() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503 Service Unavailable\r\nx"), Some(503));
        for bad in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"\xff\xff"] {
            assert_eq!(status(bad), None);
        }
    }
}
