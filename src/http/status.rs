//! `GET /v1/batch/{batch_id}/status`
//!
//! A batch belongs to the key that sent it, and only that key sees it. An `admin` key sees everybody's: `?owner=KEY_ID`
//! names whose batch is meant, and without it every key's is looked for.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::join_all;
use hyper::StatusCode;

use crate::auth::gate::{Caller, Denied};
use crate::auth::keyring::Keyring;
use crate::auth::scope::Scope;
use crate::http::access;
use crate::http::problem::Problem;
use crate::http::route::{Reply, json};
use crate::http::worker::Worker;
use crate::limits::{LOOKUP_STATUS_WAIT_MAX, RETRY_AFTER_BUSY_SECONDS, STATUS_OWNERS_MAX};
use crate::status::lookup::Answer;
use crate::status::model::StatusDocument;
use crate::types::{BatchKey, batch_id_is_valid};

/// What is on its way is known here, or to Redis; what is committed the ledger knows.
pub async fn get(worker: &Worker, caller: &Caller, id: String, owner: Option<String>) -> Reply {
    if !batch_id_is_valid(&id) {
        return Err(unknown());
    }
    let owners = owners(worker, caller, owner)?;
    let answers = join_all(owners.iter().map(|owner| find(worker, owner, &id))).await;
    let found: Vec<_> =
        owners.iter().zip(&answers).filter_map(|(owner, answer)| Some((owner, document(answer)?))).collect();
    match &found[..] {
        [(_, document)] => Ok(json(StatusCode::OK, &for_caller(caller, document))),
        [] if answers.iter().any(|answer| matches!(answer, Found::Unavailable)) => {
            let detail = "this node does not know the batch, and PostgreSQL cannot be queried right now; retry later";
            Err(Problem::unavailable("status_unavailable", detail, RETRY_AFTER_BUSY_SECONDS))
        }
        [] => Err(unknown()),
        several => Err(ambiguous(several.iter().map(|(owner, _)| &***owner).collect())),
    }
}

/// Why a batch is stuck is about the database: who sees the figures of health sees all of it, others that it is so.
fn for_caller<'a>(caller: &Caller, document: &'a StatusDocument) -> Cow<'a, StatusDocument> {
    match document.reason {
        Some(_) if !caller.may(Scope::Metrics) => {
            Cow::Owned(StatusDocument { reason: Some(STUCK.to_owned()), ..document.clone() })
        }
        _ => Cow::Borrowed(document),
    }
}

const STUCK: &str = "the database does not accept this batch at present; it is stored safely and will be retried";

pub(super) fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "batch_unknown", "no batch with this id is known")
}

pub(super) fn ambiguous(owners: Vec<&str>) -> Problem {
    let detail = format!("several keys have a batch with this id; choose one with ?owner=: {}", owners.join(", "));
    Problem::new(StatusCode::CONFLICT, "batch_ambiguous", detail)
}

/// Whose batches are looked at: the caller's, those of `named`, or everybody's.
fn owners(worker: &Worker, caller: &Caller, named: Option<String>) -> Result<Vec<Arc<str>>, Problem> {
    match named {
        Some(named) if *named == **caller.owner() => Ok(vec![Arc::clone(caller.owner())]),
        Some(named) if caller.may(Scope::Admin) => Ok(vec![Arc::from(named)]),
        Some(_) => Err(access::problem(Denied::Forbidden(Scope::Admin))),
        None => match worker.app.gate.keyring() {
            Some(keyring) if caller.may(Scope::Admin) => {
                if keyring.len() > STATUS_OWNERS_MAX {
                    let detail = "there are too many keys to search the batches of each; choose one with ?owner=KEY_ID";
                    return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "owner_missing", detail));
                }
                Ok(every_owner(worker, &keyring).collect())
            }
            _ => Ok(vec![Arc::clone(caller.owner())]),
        },
    }
}

/// All whose batches there may be while there are keys: what was sent before there were any belongs to nobody.
pub(super) fn every_owner<'a>(worker: &'a Worker, keyring: &'a Keyring) -> impl Iterator<Item = Arc<str>> {
    keyring.ids().chain([&worker.everybody]).cloned()
}

enum Found {
    Document(Box<StatusDocument>),
    Nothing,
    Unavailable,
}

fn document(found: &Found) -> Option<&StatusDocument> {
    match found {
        Found::Document(document) => Some(document),
        Found::Nothing | Found::Unavailable => None,
    }
}

async fn find(worker: &Worker, owner: &Arc<str>, id: &str) -> Found {
    let key = BatchKey { owner: Arc::clone(owner), id: Box::from(id) };
    let lookup = &worker.app.lookup;
    let here = worker.app.batches.get(&key);
    let answer = match &here {
        // The database may have been restored since this process committed it.
        Some(batch) if batch.phase().is_final() => lookup.find_in_ledger(&key, false, LOOKUP_STATUS_WAIT_MAX).await,
        Some(_) => Answer::Unavailable,
        None => lookup.find(&key, LOOKUP_STATUS_WAIT_MAX).await,
    };
    match (answer, here) {
        (Answer::Committed(known) | Answer::Hint(known), _) => Found::Document(Box::new(known.document)),
        (Answer::Unknown, _) => Found::Nothing,
        (Answer::Unavailable, Some(batch)) => Found::Document(Box::new(batch.document(&worker.app.node))),
        (Answer::Unavailable, None) => Found::Unavailable,
    }
}
