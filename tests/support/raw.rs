//! HTTP by hand, for what no proper client sends: half requests, bodies that never come, odd headers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::WAIT_MAX;
use super::server::{Ingestd, Reply};

/// One connection, written and read by hand.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl Raw {
    /// Connects to `server`.
    pub fn connect(server: &Ingestd) -> Self {
        let stream = TcpStream::connect(server.address()).expect("the server listens");
        stream.set_read_timeout(Some(WAIT_MAX)).expect("a bound on reading");
        stream.set_write_timeout(Some(WAIT_MAX)).expect("a bound on writing");
        Self(stream)
    }

    /// Sends the head of a POST to `path` with `headers`, and none of its body.
    pub fn post_head(&mut self, path: &str, headers: &[&str]) {
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n");
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
    }

    /// Sends `bytes`, all of them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server reads");
    }

    /// Sends `bytes`; an error when the server has closed the connection meanwhile.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Says that nothing more is sent.
    pub fn finish_sending(&self) {
        self.try_finish_sending().expect("the connection is open");
    }

    /// As [`Self::finish_sending`]; an error when the server has closed the connection meanwhile.
    pub fn try_finish_sending(&self) -> std::io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    /// Reads one answer with `Content-Length`.
    pub fn answer(&mut self) -> Reply {
        let mut reply = self.head();
        let length = reply.header("content-length").parse().expect("the answer has a length");
        reply.body = vec![0; length];
        self.0.read_exact(&mut reply.body).expect("the answer's body comes");
        reply
    }

    /// Reads the head of an answer; its body, if it has one, comes next on the connection.
    pub fn head(&mut self) -> Reply {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).expect("an answer comes");
            bytes.push(byte[0]);
        }
        head_of(&bytes)
    }

    /// Everything that still comes, up to the end of the connection.
    pub fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // A connection that is reset has ended, too.
        let _ = self.0.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// As [`Self::rest`]; an error when the server has reset the connection.
    pub fn try_rest(&mut self) -> std::io::Result<String> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// True when the server has closed the connection; waits for that or for a byte.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// The answer that begins with `head`, still without its body.
pub fn head_of(head: &[u8]) -> Reply {
    let head = str::from_utf8(head).expect("headers are ASCII");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let mut headers = ureq::http::HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let name = ureq::http::HeaderName::try_from(name).expect("a header's name");
        headers.append(name, value.parse().expect("a header's value"));
    }
    Reply { status: status.expect("a status line"), headers, body: Vec::new() }
}
