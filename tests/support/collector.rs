//! What receives traces: OTLP over HTTP, as a collector does it.
//!
//! The receiver is ours, as no collector can be had where these tests run; what it decodes is the real wire format, by
//! OpenTelemetry's own definitions.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use serde_json::{Value, json};

/// What the receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers 200.
    Takes,
    /// Answers this status.
    Refuses(u16),
    /// Reads, and never answers.
    Hangs,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Export {
    /// Method and path.
    pub target: String,
    /// Headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What it brought.
    pub message: ExportTraceServiceRequest,
}

/// A receiver on a free port of 127.0.0.1; it ends with the process.
pub struct Collector {
    address: SocketAddr,
    exports: Arc<Mutex<Vec<Export>>>,
}

impl Collector {
    /// Receives in this manner.
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let exports = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&exports);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let taken = Arc::clone(&taken);
                // A client may go at any time.
                thread::spawn(move || while receive(&stream, manner, &taken).is_ok() {});
            }
        });
        Self { address, exports }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value for `OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that came.
    pub fn exports(&self) -> Vec<Export> {
        self.exports.lock().clone()
    }

    /// All spans of the trace `trace_id` that came; those of any without one.
    pub fn spans(&self, trace_id: Option<&str>) -> Vec<Span> {
        let exports = self.exports();
        let resources = exports.into_iter().flat_map(|export| export.message.resource_spans);
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        spans.filter(|span| trace_id.is_none_or(|trace_id| hex(&span.trace_id) == trace_id)).collect()
    }

    /// Waits until `count` spans of `trace_id` have come; all of them, by name. Names are distinct in one trace.
    pub fn wait_for_spans(&self, trace_id: &str, count: usize, wait_max: Duration) -> BTreeMap<String, Span> {
        super::wait_until(&format!("{count} spans of {trace_id}"), wait_max, || {
            self.spans(Some(trace_id)).len() >= count
        });
        let spans = self.spans(Some(trace_id));
        let named: BTreeMap<_, _> = spans.iter().map(|span| (span.name.clone(), span.clone())).collect();
        assert_eq!(named.len(), spans.len(), "two spans of one name: {spans:?}");
        named
    }
}

/// Reads one request, and answers it.
fn receive(stream: &TcpStream, manner: Manner, taken: &Mutex<Vec<Export>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok::<_, std::io::Error>(line.trim_end().to_owned()),
        }
    };
    let target = line()?.trim_end_matches(" HTTP/1.1").to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().expect("a length")];
    reader.read_exact(&mut body)?;
    let message = ExportTraceServiceRequest::decode(&body[..]).expect("OTLP");
    taken.lock().push(Export { target, headers, message });
    let status = match manner {
        Manner::Takes => 200,
        Manner::Refuses(status) => status,
        Manner::Hangs => loop {
            thread::park();
        },
    };
    // An empty message says that all was taken.
    let answer = format!("HTTP/1.1 {status} X\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n");
    (&*stream).write_all(answer.as_bytes())
}

/// Ids as people write them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Attributes as JSON.
pub fn attributes(attributes: &[KeyValue]) -> Value {
    let value = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), value(attribute))).collect()
}
