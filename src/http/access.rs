//! Who may have a request answered: what the gate decides, as HTTP (RFC 6750, RFC 6585).

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};

use crate::auth::gate::{Caller, Denied};
use crate::auth::rate::{Exceeded, Unit, whole_seconds};
use crate::auth::scope::Scope;
use crate::http::body;
use crate::http::peer::Peer;
use crate::http::problem::Problem;
use crate::http::worker::Worker;
use crate::limits::FAILED_ATTEMPT_DELAY;
use crate::metrics::{AuthFailure, Route};

/// What a resource asks of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing: probes have no key, and say little.
    Nothing,
    /// Nothing, but who has a key is told more.
    Little,
    /// This scope, and one of its requests.
    Scope(Scope),
}

fn need(route: Route) -> Need {
    match route {
        Route::IngestBatch => Need::Scope(Scope::Ingest),
        Route::BatchStatus => Need::Scope(Scope::Read),
        Route::Batches | Route::BatchRetry | Route::BatchBury => Need::Scope(Scope::Admin),
        Route::Metrics | Route::DashboardData => Need::Scope(Scope::Metrics),
        Route::Health => Need::Little,
        Route::Live | Route::Ready | Route::OpenApi | Route::Dashboard | Route::Other => Need::Nothing,
    }
}

/// Who sends a request for `route`; `None` where nobody has to say.
///
/// # Errors
/// 401 without a key or with a wrong one, 403 without its scope, 429 beyond the rate.
pub async fn admit(worker: &Worker, peer: &Peer, headers: &HeaderMap, route: Route) -> Result<Option<Caller>, Problem> {
    let need = need(route);
    if need == Need::Nothing {
        return Ok(None);
    }
    let caller = match worker.app.gate.identify(peer.address, peer.certificate, headers, &worker.everybody) {
        Ok(caller) => caller,
        Err(denied) => return Err(turn_away(worker, peer, denied).await),
    };
    let Need::Scope(scope) = need else { return Ok(caller) };
    let Some(caller) = caller else { return Err(turn_away(worker, peer, Denied::Missing).await) };
    match permit(&caller, scope) {
        Ok(()) => Ok(Some(caller)),
        Err(denied) => {
            let problem = turn_away(worker, peer, denied).await;
            Err(rate_headers(&caller)
                .into_iter()
                .fold(problem, |problem, (name, value)| problem.with_header(name, value)))
        }
    }
}

fn permit(caller: &Caller, scope: Scope) -> Result<(), Denied> {
    if !caller.may(scope) {
        return Err(Denied::Forbidden(scope));
    }
    caller.take(Unit::Requests, 1)
}

/// The answer to a request that is not let in; those who try keys wait for it.
async fn turn_away(worker: &Worker, peer: &Peer, denied: Denied) -> Problem {
    if denied == Denied::WrongTooOften {
        tracing::debug!(address = %peer.address, "too many requests with a wrong API key; delaying the answer");
        tokio::time::sleep(FAILED_ATTEMPT_DELAY).await;
    }
    counted(worker, denied)
}

/// Counts a request that is not let in; the answer to it.
pub fn counted(worker: &Worker, denied: Denied) -> Problem {
    worker.app.metrics.auth_failures.add(failure(denied), 1);
    problem(denied)
}

/// `problem` as the answer to a request whose body is still to come.
pub async fn refuse(worker: &Worker, incoming: Incoming, problem: Problem) -> Problem {
    let app = &worker.app;
    body::discard(incoming, app.settings.body_limits, &worker.buffers, &app.request_bytes, problem).await
}

fn failure(denied: Denied) -> AuthFailure {
    match denied {
        Denied::Missing => AuthFailure::Missing,
        Denied::Wrong => AuthFailure::Wrong,
        Denied::WrongTooOften => AuthFailure::Slowed,
        Denied::Forbidden(_) => AuthFailure::Forbidden,
        Denied::Rate(..) => AuthFailure::RateLimited,
    }
}

/// What a caller is told who is not let in.
pub fn problem(denied: Denied) -> Problem {
    match denied {
        Denied::Missing => {
            let detail = "an API key is required: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'";
            unauthorized("key_missing", detail, "Bearer realm=\"ingestd\"")
        }
        // How it is answered tells nobody that they are slowed.
        Denied::Wrong | Denied::WrongTooOften => {
            let detail = "the API key is unknown to this server; it may have been revoked";
            unauthorized("key_invalid", detail, "Bearer realm=\"ingestd\", error=\"invalid_token\"")
        }
        Denied::Forbidden(scope) => {
            let detail = format!("the API key lacks the scope '{}'", scope.name());
            Problem::new(StatusCode::FORBIDDEN, "scope_missing", detail)
                .with_header(WWW_AUTHENTICATE, HeaderValue::from_static(insufficient(scope)))
        }
        Denied::Rate(unit, Exceeded::Wait(wait)) => {
            let detail = format!(
                "too many {} in too short a time (rate limit); nothing in this request was accepted; \
                retry after the time in Retry-After",
                unit.name()
            );
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).retry_after(whole_seconds(wait))
        }
        Denied::Rate(unit, Exceeded::Never(limit)) => {
            let detail =
                format!("the rate limit allows at most {} {} at once; send smaller batches", limit.burst, unit.name());
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_over_rate_limit", detail)
        }
    }
}

fn unauthorized(code: &'static str, detail: &'static str, challenge: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
        .with_header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

const fn insufficient(scope: Scope) -> &'static str {
    match scope {
        Scope::Ingest => r#"Bearer realm="ingestd", error="insufficient_scope", scope="ingest""#,
        Scope::Read => r#"Bearer realm="ingestd", error="insufficient_scope", scope="read""#,
        Scope::Metrics => r#"Bearer realm="ingestd", error="insufficient_scope", scope="metrics""#,
        Scope::Admin => r#"Bearer realm="ingestd", error="insufficient_scope", scope="admin""#,
    }
}

/// Tells `caller` in `headers` where it stands, if it is held to rates.
pub fn tell_rates(caller: &Caller, headers: &mut HeaderMap) {
    headers.extend(rate_headers(caller));
}

fn rate_headers(caller: &Caller) -> Vec<(HeaderName, HeaderValue)> {
    let Some((policy, state)) = caller.rate_headers() else { return Vec::new() };
    // Both are digits and fixed words, which headers take.
    let header = |(name, value): (_, String)| Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?));
    [("ratelimit-policy", policy), ("ratelimit", state)].into_iter().filter_map(header).collect()
}
