//! A client of a running server, for the commands that talk to one: requests over HTTP/1.1, plain or by TLS.

mod secure;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ValueHint, value_parser};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub(super) use self::secure::Secure;
use super::failure::Failure;

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

/// The flag that names the file with the API key.
pub(super) fn api_key_file(scopes: &str) -> Arg {
    Arg::new("api-key-file")
        .long("api-key-file")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::FilePath)
        .help(format!("file that contains the API key, with {scopes}, if the server requires one"))
}

/// The header that shows the key in the file at `path`.
pub(super) fn authorization(path: &Path) -> Result<HeaderValue, Failure> {
    let unusable = |why: &str| Failure::usage(format!("--api-key-file {}: {why}", path.display()));
    let key = std::fs::read_to_string(path).map_err(|error| unusable(&format!("cannot be read: {error}")))?;
    let value = HeaderValue::try_from(format!("Bearer {}", key.trim()));
    let mut value = value.map_err(|_| unusable("does not contain a key: one line of text is expected"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `host:port` of a URL that has nothing else.
pub(super) fn address(url: &str) -> Result<(String, Option<Secure>), Failure> {
    let uri: Uri = url.parse().map_err(|error| Failure::usage(format!("--url {url}: {error}")))?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Failure::usage(format!("--url {url}: must be http://HOST:PORT or https://HOST:PORT")));
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(Failure::usage(format!("--url {url}: must end after the port, without a path")));
    }
    let is_https = scheme == "https";
    let secure = is_https.then(|| Secure::to(authority.host())).transpose();
    let secure = secure.map_err(|why| Failure::usage(format!("--url {url}: {why}")))?;
    let port = if is_https { 443 } else { 80 };
    let authority = if authority.port().is_some() { authority.to_string() } else { format!("{authority}:{port}") };
    Ok((authority, secure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_ends_after_its_port() {
        let authority = |url: &str| address(url).ok().map(|(authority, secure)| (authority, secure.is_some()));
        assert_eq!(authority("http://localhost:8000"), Some(("localhost:8000".to_owned(), false)));
        assert_eq!(authority("http://localhost/"), Some(("localhost:80".to_owned(), false)));
        for bad in ["ftp://localhost", "http://localhost/v1", "http://localhost?x", "localhost"] {
            assert_eq!(authority(bad), None, "{bad}");
        }
    }
}
