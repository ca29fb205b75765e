//! The query string of `POST /v1/ingest/batch`.

use hyper::StatusCode;
use percent_encoding::percent_decode_str;

use crate::http::problem::Problem;
use crate::types::{AckLevel, Priority, batch_id_is_valid};

/// What to do with bad events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalid {
    /// One bad event refuses the batch.
    #[default]
    Reject,
    /// Good events are taken, bad ones listed.
    Skip,
}

/// The parameters as given; unknown ones are ignored, as unknown members are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestQuery {
    /// `ack=`
    pub ack: Option<AckLevel>,
    /// `invalid=`
    pub invalid: Invalid,
    /// `priority=`
    pub priority: Option<Priority>,
    /// `batch_id=`
    pub batch_id: Option<String>,
}

impl IngestQuery {
    /// Reads `query`, the part behind `?`.
    pub fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut parsed = Self::default();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, raw) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(raw).decode_utf8().map_err(|_| bad(name, "is not UTF-8"))?;
            match name {
                "ack" => {
                    parsed.ack =
                        Some(AckLevel::parse(&value).ok_or_else(|| bad(name, "must be memory, journal or commit"))?);
                }
                "invalid" => {
                    parsed.invalid = match &*value {
                        "reject" => Invalid::Reject,
                        "skip" => Invalid::Skip,
                        _ => return Err(bad(name, "must be reject or skip")),
                    };
                }
                "priority" => {
                    let priority = value.parse().ok().and_then(Priority::new);
                    parsed.priority = Some(priority.ok_or_else(|| bad(name, "must be a whole number from 0 to 10"))?);
                }
                "batch_id" => {
                    if !batch_id_is_valid(&value) {
                        return Err(bad(name, "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"));
                    }
                    parsed.batch_id = Some(value.into_owned());
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// A parameter whose value is not what is `expected`.
pub fn bad(name: &str, expected: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_parameter", format!("query parameter {name} {expected}"))
}

/// The first value of parameter `name`, decoded; for the small queries of the other resources.
pub fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let raw = pairs.into_iter().find(|(key, _)| *key == name)?.1;
    Some(percent_decode_str(raw).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_unknown_ones_ignored() {
        let query =
            IngestQuery::parse(Some("ack=commit&invalid=skip&priority=10&batch_id=a%3Ab&x=1&&y")).expect("valid");
        let expected = IngestQuery {
            ack: Some(AckLevel::Commit),
            invalid: Invalid::Skip,
            priority: Priority::new(10),
            batch_id: Some("a:b".to_owned()),
        };
        assert_eq!(query, expected);
        assert_eq!(IngestQuery::parse(None).expect("valid"), IngestQuery::default());
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for query in [
            "ack=now",
            "ack=",
            "invalid=maybe",
            "priority=11",
            "priority=-1",
            "priority=x",
            "batch_id=",
            "batch_id=a%20b",
            "ack=%ff",
        ] {
            assert_eq!(IngestQuery::parse(Some(query)).expect_err(query).code(), "invalid_parameter");
        }
    }
}
