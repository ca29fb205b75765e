//! Which request this is: read from its headers, told in its answer and in the log.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::{NoContext, Timestamp, Uuid};

use crate::status::origin::{Origin, RequestId, Trace, TraceParent};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The request with `headers`: under the client's id, or one made here.
pub fn of(headers: &HeaderMap) -> Origin {
    let given = headers.get(REQUEST_ID).and_then(|id| RequestId::of_client(id.as_bytes()));
    // The standard wants a header that is there twice ignored.
    let mut parents = headers.get_all(TRACEPARENT).into_iter();
    let trace = match (parents.next(), parents.next()) {
        (Some(parent), None) => {
            TraceParent::parse(parent.as_bytes()).map(|parent| Box::new(Trace { parent, recorded: None }))
        }
        _ => None,
    };
    let ours = || RequestId::Ours(Uuid::new_v7(Timestamp::now(NoContext)));
    Origin { request_id: given.unwrap_or_else(ours), trace }
}

/// Tells the client under which id its request is in the log.
pub fn tell(origin: &Origin, headers: &mut HeaderMap) {
    // What was read is plain ASCII, as a header has to be.
    if let Ok(value) = HeaderValue::try_from(origin.request_id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_request_keeps_its_id_or_gets_one() {
        let mut headers = HeaderMap::new();
        assert!(matches!(of(&headers).request_id, RequestId::Ours(_)));
        headers.insert(REQUEST_ID, HeaderValue::from_static("checkout-7"));
        let origin = of(&headers);
        let mut answered = HeaderMap::new();
        tell(&origin, &mut answered);
        assert_eq!(answered[REQUEST_ID], "checkout-7");
        headers.insert(REQUEST_ID, HeaderValue::from_static("not one"));
        assert!(matches!(of(&headers).request_id, RequestId::Ours(_)));
    }

    #[test]
    fn a_trace_is_read_once() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(PARENT));
        let id = of(&headers).trace_id().map(|id| id.to_string());
        assert_eq!(id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        headers.append(TRACEPARENT, HeaderValue::from_static(PARENT));
        assert!(of(&headers).trace.is_none(), "two parents are none");
    }
}
