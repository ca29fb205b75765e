//! Promise: no answer about a batch is wrong, in history after history: `make soak`, bounded by `SOAK_MINUTES`.

mod support;

use std::time::Duration;

use support::load::seed;
use support::{histories, not_run};

/// Steps of one history.
const STEPS: u64 = 1_000;

#[test]
#[ignore = "long: `make soak` runs it"]
fn no_answer_is_wrong_in_any_of_many_histories() {
    let seed = seed("soak_acks");
    let minutes = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let Some(found) = histories::run(seed, STEPS, Duration::from_secs(60 * minutes)) else {
        return not_run("soak_acks", "this kernel cannot hand system calls to a program (seccomp)");
    };
    assert_eq!((found.lost, found.doubled, found.lied), (0, 0, 0), "seed {seed}: {found}");
}
