//! The way to the collector: OTLP over HTTP, on the processor's own thread, by a client that blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{self, SpanData};
use parking_lot::Mutex;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::limits::{TRACES_ANSWER_BYTES_MAX, TRACES_EXPORT_WAIT_MAX};
use crate::state_log::StateLog;

/// Sends spans, and tells when they do not arrive.
#[derive(Debug)]
pub(super) struct Exporter {
    otlp: SpanExporter,
    endpoint: String,
    delivered: Arc<AtomicU64>,
    /// Why the last request got no answer; the library's error leaves that out.
    unanswered: Arc<Mutex<Option<String>>>,
    /// Spans dropped since the collector last took some.
    log: Mutex<(StateLog, usize)>,
}

impl Exporter {
    /// The way to the collector at `endpoint`.
    pub fn new(endpoint: &str) -> Result<Self, String> {
        let unanswered = Arc::new(Mutex::new(None));
        let client = Client { agent: agent(endpoint)?, unanswered: Arc::clone(&unanswered) };
        let otlp = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{endpoint}/v1/traces"))
            .with_timeout(TRACES_EXPORT_WAIT_MAX)
            .build()
            .map_err(|error| format!("OTLP_ENDPOINT={endpoint}: cannot send traces: {error}"))?;
        let (endpoint, delivered) = (endpoint.to_owned(), Arc::default());
        Ok(Self { otlp, endpoint, delivered, unanswered, log: Mutex::default() })
    }

    /// Spans that the collector has taken.
    pub fn delivered(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.delivered)
    }

    fn rejected(&self, lost: usize, error: &dyn std::fmt::Display) {
        let (log, lost_in_all) = &mut *self.log.lock();
        *lost_in_all += lost;
        let unanswered = self.unanswered.lock().take();
        let Some(begun) = log.holds(u8::from(unanswered.is_some()), Instant::now()) else { return };
        let (reason, unlogged) = (unanswered.unwrap_or_else(|| error.to_string()), begun.unlogged);
        let endpoint = &self.endpoint;
        tracing::warn!(endpoint, reason, lost, unlogged, "trace collector rejected the spans; they were dropped");
    }

    fn took(&self, spans: usize) {
        // Relaxed: for a report at the end only.
        self.delivered.fetch_add(spans as u64, Ordering::Relaxed);
        let (log, lost_in_all) = &mut *self.log.lock();
        let lost = std::mem::take(lost_in_all);
        if let Some(lasted) = log.ends(Instant::now()) {
            let (endpoint, lasted_ms) = (&self.endpoint, lasted.as_millis() as u64);
            tracing::info!(endpoint, lost, lasted_ms, "trace collector takes spans again");
        }
    }
}

impl trace::SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.otlp.export(batch).await;
        match &result {
            Ok(()) => self.took(spans),
            Err(error) => self.rejected(spans, error),
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

/// How the library's exporter makes its requests.
#[derive(Debug)]
struct Client {
    agent: Agent,
    unanswered: Arc<Mutex<Option<String>>>,
}

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let (head, mut body) = self.agent.run(Request::from_parts(head, &body[..]))?.into_parts();
        let body = body.with_config().limit(TRACES_ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.send(request);
        *self.unanswered.lock() = answer.as_ref().err().map(ToString::to_string);
        Ok(answer?)
    }
}

/// A client of `endpoint`; reads the system's authorities where that is a server of HTTPS.
fn agent(endpoint: &str) -> Result<Agent, String> {
    let mut config = Agent::config_builder()
        .timeout_global(Some(TRACES_EXPORT_WAIT_MAX))
        .http_status_as_error(false)
        .max_redirects(0)
        // The address is the operator's: no variable sends it elsewhere.
        .proxy(None)
        .user_agent(concat!("ingestd/", env!("CARGO_PKG_VERSION")));
    if endpoint.starts_with("https:") {
        let roots: Vec<_> = rustls_native_certs::load_native_certs().certs;
        if roots.is_empty() {
            return Err(format!(
                "OTLP_ENDPOINT={endpoint}: no certificate authorities found to verify the collector: install them \
                 (Debian: ca-certificates), or set SSL_CERT_FILE to a file that contains them"
            ));
        }
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        config = config.tls_config(tls.build());
    }
    Ok(config.build().new_agent())
}
