//! Which handler answers a request.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;

use crate::auth::gate::{Caller, Denied};
use crate::flush::waiting::Wish;
use crate::http::app::HeadLimits;
use crate::http::headers::protect;
use crate::http::peer::Peer;
use crate::http::problem::Problem;
use crate::http::query::{bad, parameter};
use crate::http::worker::Worker;
use crate::http::{access, batches, dashboard, health, ingest, observe, openapi, origin, site, status};
use crate::metrics::{HttpStatus, Label as _, Route};
use crate::status::origin::Origin;
use crate::telemetry::RequestSpan;
use crate::types::owner_is_valid;

/// What handlers give back.
pub type Reply = Result<Response<Full<Bytes>>, Problem>;

/// The resource that `path` names, with the batch id where it has one.
fn resource(path: &str) -> (Route, Option<String>) {
    match path {
        "/v1/ingest/batch" => (Route::IngestBatch, None),
        "/v1/batches" => (Route::Batches, None),
        "/v1/health" => (Route::Health, None),
        "/v1/metrics" => (Route::Metrics, None),
        "/livez" => (Route::Live, None),
        "/readyz" => (Route::Ready, None),
        "/openapi.json" => (Route::OpenApi, None),
        "/dashboard/data" => (Route::DashboardData, None),
        asset if dashboard::is_asset(asset) => (Route::Dashboard, None),
        _ => match of_batch(path) {
            Some((route, id)) => (route, Some(percent_decode_str(id).decode_utf8_lossy().into_owned())),
            None => (Route::Other, None),
        },
    }
}

/// `/v1/batch/{batch_id}/…`: what it names, and the id as it was sent.
fn of_batch(path: &str) -> Option<(Route, &str)> {
    let (id, what) = path.strip_prefix("/v1/batch/")?.split_once('/')?;
    let route = match what {
        "status" => Route::BatchStatus,
        "retry" => Route::BatchRetry,
        "bury" => Route::BatchBury,
        _ => return None,
    };
    (!id.is_empty()).then_some((route, id))
}

/// Answers one request, whatever happens meanwhile.
pub async fn answer(worker: &Worker, peer: &Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (route, id) = resource(request.uri().path());
    let (mut origin, begun_at) = (origin::of(request.headers()), Instant::now());
    let is_ingestion = route == Route::IngestBatch && request.method() == Method::POST;
    let traces = worker.app.traces.as_deref().filter(|_| is_ingestion);
    if let Some(traces) = traces {
        traces.begin(&mut origin, begun_at);
    }
    let mut span = RequestSpan::new(traces, &origin);
    let mut response = or_500(handle(worker, peer, &origin, route, id, request), &origin).await;
    protect(response.headers_mut());
    origin::tell(&origin, response.headers_mut());
    let status = response.status().as_u16();
    span.answered(status);
    worker.app.metrics.requests.count(route, HttpStatus(status));
    tracing::debug!(
        request_id = %origin.request_id,
        trace_id = origin.trace_id().map(display),
        route = route.value(),
        status,
        took_us = begun_at.elapsed().as_micros() as u64,
        address = %peer.address,
        "answered"
    );
    response
}

/// What `handling` answers, or 500 when it panics: the fault of one request is nobody else's. The connection is closed,
/// as nobody knows how much of the request was read.
async fn or_500(handling: impl Future<Output = Response<Full<Bytes>>>, origin: &Origin) -> Response<Full<Bytes>> {
    AssertUnwindSafe(handling).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(
            request_id = %origin.request_id,
            trace_id = origin.trace_id().map(display),
            "request handler panicked; answered 500"
        );
        let detail = "the server failed to process this request; it is safe to retry a batch with the same batch_id";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail).and_close().into_response()
    })
}

async fn handle(
    worker: &Worker,
    peer: &Peer,
    origin: &Origin,
    route: Route,
    id: Option<String>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let is_head = request.method() == Method::HEAD;
    let checked = check(&request, route, worker.app.head_limits).and_then(|()| site::check(&request, worker.app.hosts));
    let caller = match checked {
        Ok(()) => access::admit(worker, peer, request.headers(), route).await,
        Err(problem) => Err(problem),
    };
    let (reply, caller) = match caller {
        Ok(caller) => (dispatch(worker, caller.as_ref(), origin, route, id, request).await, caller),
        Err(problem) => (Err(access::refuse(worker, request.into_body(), problem).await), None),
    };
    let mut response = reply.unwrap_or_else(Problem::into_response);
    if let Some(caller) = caller {
        access::tell_rates(&caller, response.headers_mut());
    }
    if is_head {
        *response.body_mut() = Full::default();
    }
    response
}

/// Whether there is such a resource, and it has such a method.
fn check(request: &Request<Incoming>, route: Route, limits: HeadLimits) -> Result<(), Problem> {
    match (route, request.method()) {
        _ if url_bytes(request) > limits.url_bytes_max => Err(url_too_long(limits)),
        _ if request.headers().len() > limits.headers_max => Err(too_many_headers(limits)),
        (Route::Other, _) => Err(unknown_resource()),
        (Route::IngestBatch | Route::BatchRetry | Route::BatchBury, &Method::POST) => Ok(()),
        (Route::IngestBatch | Route::BatchRetry | Route::BatchBury, _) => Err(Problem::method_not_allowed("POST")),
        (_, &Method::GET | &Method::HEAD) => Ok(()),
        _ => Err(Problem::method_not_allowed("GET, HEAD")),
    }
}

async fn dispatch(
    worker: &Worker,
    caller: Option<&Caller>,
    origin: &Origin,
    route: Route,
    id: Option<String>,
    request: Request<Incoming>,
) -> Reply {
    // Only ingestion reads bodies, and says itself when it did not read one to its end.
    let leaves_body = route != Route::IngestBatch && !request.body().is_end_stream();
    let reply = match (route, caller) {
        (Route::IngestBatch, Some(caller)) => ingest::post(worker, caller, origin, request).await,
        (Route::BatchStatus, Some(caller)) => {
            let owner = owner(request.uri().query())?;
            drop(request);
            status::get(worker, caller, id.unwrap_or_default(), owner).await
        }
        (Route::Batches, Some(_)) => {
            let query = request.uri().query().map(str::to_owned);
            drop(request);
            batches::list(worker, query.as_deref()).await
        }
        (Route::BatchRetry | Route::BatchBury, Some(caller)) => {
            let wish = if route == Route::BatchBury { Wish::Bury } else { Wish::Retry };
            let owner = owner(request.uri().query())?;
            batches::ask(worker, caller, request.headers(), &id.unwrap_or_default(), owner.as_deref(), wish)
        }
        (Route::Health, caller) => health::get(worker, caller),
        (Route::Metrics, _) => observe::get(worker, &request),
        (Route::Live, _) => Ok(plain(StatusCode::OK, "alive\n")),
        (Route::Ready, _) => health::readyz(worker),
        (Route::DashboardData, Some(caller)) => dashboard::data(worker, caller, &request),
        (
            Route::IngestBatch
            | Route::BatchStatus
            | Route::Batches
            | Route::BatchRetry
            | Route::BatchBury
            | Route::DashboardData,
            None,
        ) => Err(access::problem(Denied::Missing)),
        (Route::OpenApi, _) => Ok(openapi::get(worker)),
        (Route::Dashboard, _) => dashboard::asset(request.uri().path(), request.headers()).ok_or_else(unknown_resource),
        (Route::Other, _) => Err(unknown_resource()),
    };
    reply.map_err(|problem| if leaves_body { problem.and_close() } else { problem })
}

/// `?owner=`: whose batch is meant.
fn owner(query: Option<&str>) -> Result<Option<String>, Problem> {
    let owner = parameter(query, "owner")?;
    match owner.as_deref().is_none_or(owner_is_valid) {
        true => Ok(owner),
        false => Err(bad("owner", "must be the id of an API key, at most 64 characters of a-z 0-9 -, or empty")),
    }
}

fn url_bytes(request: &Request<Incoming>) -> usize {
    request.uri().path_and_query().map_or(0, |url| url.as_str().len())
}

fn url_too_long(limits: HeadLimits) -> Problem {
    let detail = format!(
        "path and query are longer than {} bytes (MAX_URL_KB); no resource needs that much",
        limits.url_bytes_max
    );
    Problem::new(StatusCode::URI_TOO_LONG, "url_too_long", detail).and_close()
}

/// For HTTP/2: HTTP/1 refuses them itself.
fn too_many_headers(limits: HeadLimits) -> Problem {
    let detail = format!("the request has more than {} headers (MAX_HEADERS)", limits.headers_max);
    Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_headers", detail).and_close()
}

fn unknown_resource() -> Problem {
    let detail = "unknown path; available are POST /v1/ingest/batch, GET /v1/batch/{batch_id}/status, /v1/batches, \
        /v1/health, /v1/metrics, /livez, /readyz, /openapi.json and the dashboard at /";
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

/// A short text.
pub fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

/// A JSON document.
pub fn json(status: StatusCode, document: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(document).unwrap_or_default();
    with_type(status, "application/json", Bytes::from(body))
}

/// A body of `content_type`.
pub fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_500_for_its_request_alone() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let origin = origin::of(&hyper::HeaderMap::new());
            let response = or_500(async { panic!("on purpose") }, &origin).await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.headers()["connection"], "close");
            assert_eq!(or_500(async { plain(StatusCode::OK, "alive") }, &origin).await.status(), StatusCode::OK);
        });
    }
}
