//! One server, over pooled connections.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::answer::{BatchReply, BatchStatus, Problem};
use crate::body::{self, Compression};
use crate::error::Error;
use crate::event::{BatchOptions, Event, Invalid};
use crate::retry::{RetryPolicy, parse_retry_after};
use crate::sender::{Failed, Sender, SenderOptions};

/// Answers are some hundred bytes, and verdicts on a hundred events.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Shorter than the server keeps idle connections.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Bounds of the time between two looks at a batch's status.
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_secs(1);

/// A client of one server. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Without a slash at its end.
    url: String,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    retry: RetryPolicy,
    compression: Compression,
}

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    api_key: Option<String>,
    timeout: Duration,
    retry: RetryPolicy,
    compression: Compression,
}

impl ClientBuilder {
    /// The key, where the server asks for one.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// How long one attempt may take, from connecting to the end of the answer; 40 s if not set, since `ack=commit`
    /// may be answered after 30.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// When to try again.
    #[must_use]
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// How bodies are compressed; not at all if not set.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The client. Connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Configuration`] where the URL is not `http://HOST[:PORT]` or `https://HOST[:PORT]`, or the key has
    /// characters that no header may have.
    pub fn build(self) -> Result<Client, Error> {
        let uri: Uri =
            self.url.parse().map_err(|error| Error::Configuration(format!("URL {:?}: {error}", self.url)))?;
        let is_plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() || !is_plain {
            let why = format!("URL {:?}: must be http://HOST:PORT or https://HOST:PORT", self.url);
            return Err(Error::Configuration(why));
        }
        let authorization = self.api_key.map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.trim()))
                .map_err(|_| Error::Configuration("the API key is no line of text".into()))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        let tls = tls(uri.scheme_str() == Some("https"))?;
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build());
        Ok(Client {
            shared: Arc::new(Shared {
                pool,
                url: self.url.trim_end_matches('/').to_owned(),
                authorization: authorization.transpose()?,
                timeout: self.timeout,
                retry: self.retry,
                compression: self.compression,
            }),
        })
    }
}

impl Client {
    /// A client with the defaults.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub fn new(url: impl Into<String>) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// Settings for a client of the server at `url`, such as `http://127.0.0.1:8000`.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            api_key: None,
            timeout: Duration::from_secs(40),
            retry: RetryPolicy::default(),
            compression: Compression::None,
        }
    }

    /// Sends a batch, as often as the policy allows, always the same bytes under the same id.
    ///
    /// # Errors
    /// [`Error::Refused`] with the server's reasons: nothing of the batch was taken. [`Error::GaveUp`] where only
    /// transient faults were met: the batch may have been taken, and may be sent again under its id.
    pub async fn send_batch(&self, events: &[Event], options: BatchOptions) -> Result<BatchReply, Error> {
        let batch_id = options.batch_id.unwrap_or_else(|| Uuid::now_v7().to_string());
        let body = body::encode(events, &batch_id, options.priority, self.shared.compression)?;
        let ack = options.ack.map(|ack| format!("ack={}", ack.name()));
        let invalid = (options.invalid == Invalid::Skip).then(|| "invalid=skip".to_owned());
        let query: Vec<String> = ack.into_iter().chain(invalid).collect();
        let mut path = "/v1/ingest/batch".to_owned();
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        self.ask(Method::POST, &path, body, &batch_id).await
    }

    /// How far a batch is; `None` where the server does not know it.
    ///
    /// # Errors
    /// As [`Self::send_batch`].
    pub async fn batch_status(&self, batch_id: &str) -> Result<Option<BatchStatus>, Error> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        // A path would lose the last two.
        if matches!(batch_id, "" | "." | "..") || !batch_id.bytes().all(is_allowed) {
            return Ok(None);
        }
        let path = format!("/v1/batch/{batch_id}/status");
        match self.ask(Method::GET, &path, Bytes::new(), batch_id).await {
            Ok(status) => Ok(Some(status)),
            Err(Error::Refused(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until a batch is committed, for `wait_max` at most.
    ///
    /// # Errors
    /// [`Error::NotCommitted`] when the time is up; [`Error::Refused`] (404) where the server does not know the batch; and
    /// as [`Self::send_batch`].
    pub async fn wait_for_batch(&self, batch_id: &str, wait_max: Duration) -> Result<BatchStatus, Error> {
        let started = Instant::now();
        let mut wait = POLL_FIRST;
        loop {
            let Some(status) = self.batch_status(batch_id).await? else {
                let detail = format!("there is no batch {batch_id:?}");
                let problem = Problem { status: 404, code: "batch_unknown".into(), detail, ..Problem::default() };
                return Err(Error::Refused(Box::new(problem)));
            };
            if status.status.is_final() {
                return Ok(status);
            }
            let left = wait_max.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(Error::NotCommitted { status: Box::new(status), waited: wait_max });
            }
            tokio::time::sleep(wait.min(left)).await;
            wait = (wait * 2).min(POLL_MAX);
        }
    }

    /// A [`Sender`] that gathers events into batches. `on_failure` is told of every event that the server did not take.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn sender(&self, options: SenderOptions, on_failure: impl FnMut(Failed) + Send + 'static) -> Sender {
        Sender::start(self.clone(), options, Box::new(on_failure))
    }

    /// Asks until there is an answer that lasts.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        batch_id: &str,
    ) -> Result<T, Error> {
        let (started, retry) = (Instant::now(), &self.shared.retry);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.attempt(&method, path, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !error.is_transient() {
                return Err(error);
            }
            let Some(wait) = retry.wait(attempts, started.elapsed(), error.retry_after()) else {
                return Err(Error::GaveUp { batch_id: batch_id.to_owned(), attempts, last: Box::new(error) });
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Bytes) -> Result<T, Error> {
        let timeout = self.shared.timeout;
        let answered = tokio::time::timeout(timeout, self.exchange(method, path, body)).await;
        answered.unwrap_or(Err(Error::Timeout(timeout)))
    }

    async fn exchange<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Bytes) -> Result<T, Error> {
        let shared = &*self.shared;
        let mut request = Request::builder().method(method).uri(format!("{}{path}", shared.url));
        if let Some(key) = &shared.authorization {
            request = request.header(AUTHORIZATION, key);
        }
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/json");
            if let Some(encoding) = shared.compression.encoding() {
                request = request.header(CONTENT_ENCODING, encoding);
            }
        }
        let request = request.body(Full::new(body)).map_err(|error| Error::Configuration(error.to_string()))?;
        let response = shared.pool.request(request).await.map_err(|error| {
            let why = with_causes(&error);
            match error.is_connect() {
                true if is_untrusted(&error) => Error::Untrusted(why),
                true => Error::Connect(why),
                false => Error::Broken(why),
            }
        })?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| parse_retry_after(text, SystemTime::now()));
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Error::Broken(with_causes(&*error)))?.to_bytes();
        understand(status, retry_after, &body)
    }
}

/// Trusts the system's authorities, or those in `SSL_CERT_FILE`. Where nothing is verified none are read: a small
/// container has none. The provider is named, since a program may have two.
fn tls(is_https: bool) -> Result<ClientConfig, Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::Configuration(format!("TLS cannot be set up: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| unusable(&error))?;
    if !is_https {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(unusable(&format!("the system has no certificate authorities{why}; set SSL_CERT_FILE")));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A success, or the refusal in `body`.
fn understand<T: DeserializeOwned>(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Result<T, Error> {
    if status.is_success() {
        let unexpected =
            |error: serde_json::Error| Error::Unexpected { status: status.as_u16(), why: error.to_string() };
        return serde_json::from_slice(body).map_err(unexpected);
    }
    // What stands between may answer with pages of its own.
    let mut problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    problem.status = status.as_u16();
    problem.retry_after = retry_after;
    Err(Error::Refused(Box::new(problem)))
}

/// True when a certificate is what caused `error`: that does not pass by itself.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = cause.downcast_ref() {
            return true;
        }
        // What an I/O error holds is not its source: that is only the source of what it holds.
        let held = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = held.map_or_else(|| cause.source(), |held| Some(held as &(dyn std::error::Error + 'static)));
    }
    false
}

/// `error` with what caused it: hyper's own words are few.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_keys_that_cannot_work_are_told_at_once() {
        for bad in ["", "127.0.0.1:8000", "ftp://host", "http://host/path", "http://host/?a=b", "http://"] {
            let error = Client::new(bad).expect_err(bad);
            assert!(matches!(error, Error::Configuration(_)), "{bad}: {error}");
        }
        assert!(Client::new("http://host:8000/").is_ok());
        assert!(Client::builder("http://host").api_key("two\nlines").build().is_err());
    }

    #[test]
    fn a_refusal_keeps_the_documents_words_and_a_strange_one_its_status() {
        let body = br#"{"status":422,"code":"invalid_events","detail":"d","errors":[{"index":1,"event_id":null,
            "pointer":"/events/1","code":"missing","detail":"x"}],"errors_total":1}"#;
        let refused = |status, body: &[u8]| understand::<BatchReply>(status, None, body).expect_err("a refusal");
        let error = refused(StatusCode::UNPROCESSABLE_ENTITY, body);
        let problem = error.problem().expect("a document");
        assert_eq!((problem.code.as_str(), problem.errors[0].index), ("invalid_events", Some(1)));
        assert!(!error.is_transient());
        assert!(refused(StatusCode::BAD_GATEWAY, b"<html>").is_transient());
        let strange = understand::<BatchReply>(StatusCode::OK, None, b"<html>").expect_err("no answer of ingestd's");
        assert!(matches!(strange, Error::Unexpected { status: 200, .. }), "{strange}");
    }
}
