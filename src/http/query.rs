//! The query string of `POST /v1/ingest/batch`.

use std::borrow::Cow;

use hyper::StatusCode;
use percent_encoding::{PercentDecode, percent_decode_str};

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
    ///
    /// | a parameter is there | answer |
    /// |---|---|
    /// | once, or more often with one value | that value |
    /// | with several values | 422 `batch_id_mismatch` for `batch_id`, else `invalid_parameter` |
    /// | with a value that is none of its own | 422 `invalid_parameter` |
    pub fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut parsed = Self::default();
        let mut invalid = None;
        for (name, value) in pairs(query) {
            let value = value.decode_utf8().map_err(|_| bad(&name, "is not UTF-8"))?;
            let is_agreed = match &*name {
                "ack" => {
                    let level =
                        AckLevel::parse(&value).ok_or_else(|| bad(&name, "must be memory, journal or commit"))?;
                    agrees(&mut parsed.ack, level)
                }
                "invalid" => agrees(
                    &mut invalid,
                    match &*value {
                        "reject" => Invalid::Reject,
                        "skip" => Invalid::Skip,
                        _ => return Err(bad(&name, "must be reject or skip")),
                    },
                ),
                "priority" => {
                    let priority = whole_number(&value).and_then(Priority::new);
                    let priority = priority.ok_or_else(|| bad(&name, "must be a whole number from 0 to 10"))?;
                    agrees(&mut parsed.priority, priority)
                }
                "batch_id" => {
                    if !batch_id_is_valid(&value) {
                        return Err(bad(&name, BATCH_ID_RULE));
                    }
                    if !agrees(&mut parsed.batch_id, value.into_owned()) {
                        return Err(other_batch());
                    }
                    true
                }
                _ => true,
            };
            if !is_agreed {
                return Err(ambiguous(&name));
            }
        }
        parsed.invalid = invalid.unwrap_or_default();
        Ok(parsed)
    }
}

/// Keeps `value`, unless another one is there; false then.
fn agrees<T: Clone + PartialEq>(kept: &mut Option<T>, value: T) -> bool {
    let kept = &*kept.get_or_insert_with(|| value.clone());
    *kept == value
}

/// The digits of a number and nothing else: no sign, no leading zero.
fn whole_number(text: &str) -> Option<u8> {
    let is_plain = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    text.parse().ok().filter(|_| is_plain)
}

/// Names, decoded, and values, still to be.
fn pairs(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, PercentDecode<'_>)> {
    query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode_str(name).decode_utf8_lossy(), percent_decode_str(value))
    })
}

/// A parameter whose value is not what is `expected`.
pub fn bad(name: &str, expected: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_parameter", format!("query parameter {name} {expected}"))
}

fn ambiguous(name: &str) -> Problem {
    bad(name, "is given several times with different values; send it once")
}

/// 422: the places for the id of a batch name several.
pub fn other_batch() -> Problem {
    let detail = "batch_id, Idempotency-Key and ?batch_id= name different batches; send only one of them, and once";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "batch_id_mismatch", detail)
}

/// The value of parameter `name`, decoded; for the small queries of the other resources.
///
/// # Errors
/// 422 when it has several values, or one that is not UTF-8.
pub fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Problem> {
    let mut kept = None;
    for (_, value) in pairs(query).filter(|(given, _)| given == name) {
        let value = value.decode_utf8().map_err(|_| bad(name, "is not UTF-8"))?;
        if !agrees(&mut kept, value.into_owned()) {
            return Err(ambiguous(name));
        }
    }
    Ok(kept)
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
            "priority=%2B5",
            "priority=+5",
            "priority=05",
            "priority=",
            "batch_id=a%20b",
            "batch_id=.",
            "batch_id=%2e%2E",
            "ack=%ff",
        ] {
            assert_eq!(IngestQuery::parse(Some(query)).expect_err(query).code(), "invalid_parameter");
        }
    }

    #[test]
    fn a_parameter_given_twice_must_have_one_value() {
        for (query, code) in [
            ("ack=commit&ack=memory", "invalid_parameter"),
            ("invalid=skip&invalid=reject", "invalid_parameter"),
            ("priority=0&x=1&priority=10", "invalid_parameter"),
            ("batch_id=a&batch_id=b", "batch_id_mismatch"),
            ("batch_id=a&batch%5Fid=b", "batch_id_mismatch"),
        ] {
            assert_eq!(IngestQuery::parse(Some(query)).expect_err(query).code(), code);
        }
        let equal = "ack=commit&batch_id=a&priority=1&batch_id=%61&ack=commit&priority=1&invalid=skip&invalid=skip";
        let query = IngestQuery::parse(Some(equal)).expect("they agree");
        assert_eq!((query.batch_id.as_deref(), query.ack), (Some("a"), Some(AckLevel::Commit)));
        assert_eq!(parameter(Some("owner=a&owner=b"), "owner").expect_err("two").code(), "invalid_parameter");
        assert_eq!(parameter(Some("owner=a&x=%ff&owner=a"), "owner").expect("one"), Some("a".to_owned()));
        assert_eq!(parameter(Some("x=1"), "owner").expect("none"), None);
    }
}
