//! The query string of `POST /v1/ingest/batch`.

use hyper::StatusCode;
use percent_encoding::percent_decode_str;

use crate::http::problem::Problem;
use crate::types::{AckLevel, BATCH_ID_RULE, Priority, batch_id_is_valid};

/// What to do with bad events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalid {
    /// One bad event refuses the batch.
    #[default]
    Reject,
    /// Good events are taken, bad ones listed.
    Skip,
}

/// The parameters as given; unknown ones are ignored, as unknown members are. One that is given twice must have one value.
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
        let (mut parsed, mut seen) = (Self::default(), Vec::new());
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, raw) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(raw).decode_utf8().map_err(|_| bad(name, "is not UTF-8"))?;
            if matches!(name, "ack" | "invalid" | "priority" | "batch_id") {
                match seen.iter().find(|(known, _)| *known == name) {
                    Some((_, before)) if *before != value => return Err(differs(name)),
                    _ => seen.push((name, value.clone())),
                }
            }
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
                    // Only as a JSON number would be written: no sign, no zeros in front.
                    let is_plain =
                        value.bytes().all(|b| b.is_ascii_digit()) && (value.len() == 1 || !value.starts_with('0'));
                    let priority = value.parse().ok().filter(|_| is_plain).and_then(Priority::new);
                    parsed.priority = Some(priority.ok_or_else(|| bad(name, "must be a whole number from 0 to 10"))?);
                }
                "batch_id" => {
                    if !batch_id_is_valid(&value) {
                        return Err(bad(name, BATCH_ID_RULE));
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

/// A parameter that is given twice, with different values.
fn differs(name: &str) -> Problem {
    if name == "batch_id" {
        let detail = "?batch_id= is given twice with different values; send only one of them";
        return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "batch_id_mismatch", detail);
    }
    bad(name, "is given twice with different values; send only one of them")
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
            "priority=%2B5",
            "priority=05",
            "batch_id=..",
            "ack=memory&ack=commit",
            "priority=1&invalid=skip&priority=2",
            "batch_id=",
            "batch_id=a%20b",
            "ack=%ff",
        ] {
            assert_eq!(IngestQuery::parse(Some(query)).expect_err(query).code(), "invalid_parameter");
        }
    }

    #[test]
    fn a_parameter_that_is_given_twice_has_one_value() {
        let query = IngestQuery::parse(Some("batch_id=a&priority=1&batch_id=a&priority=1")).expect("they agree");
        assert_eq!((query.batch_id.as_deref(), query.priority), (Some("a"), Priority::new(1)));
        let refused = IngestQuery::parse(Some("batch_id=a&batch_id=b")).expect_err("they do not");
        assert_eq!(refused.code(), "batch_id_mismatch");
    }
}
