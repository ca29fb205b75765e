//! `GET /v1/metrics`

use hyper::body::{Bytes, Incoming};
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};

use crate::http::problem::Problem;
use crate::http::query::parameter;
use crate::http::route::{Reply, with_type};
use crate::http::worker::Worker;
use crate::metrics::{Format, NotAcceptable};

/// All metrics, in the format that `?format=` or `Accept` asks for.
pub fn get(worker: &Worker, request: &Request<Incoming>) -> Reply {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let wanted = parameter(request.uri().query(), "format")?;
    let format = Format::negotiate(accept, wanted.as_deref()).map_err(|error| {
        let (status, code) = match error {
            NotAcceptable::UnknownFormat => (StatusCode::BAD_REQUEST, "unknown_format"),
            NotAcceptable::NoneAccepted => (StatusCode::NOT_ACCEPTABLE, "not_acceptable"),
        };
        Problem::new(status, code, error.to_string())
    })?;
    worker.app.read_gauges();
    Ok(with_type(StatusCode::OK, format.content_type(), Bytes::from(format.render(&worker.app.metrics))))
}
