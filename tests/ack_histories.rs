//! Promise: whatever happens to nodes, Redis and PostgreSQL, no answer about a batch is wrong: `tests/support/histories.rs`
//! has the steps and what is held against what. `make soak` runs the same for longer.

mod support;

use std::time::Duration;

use support::load::seed;
use support::{histories, not_run};

const STEPS: u64 = 250;

#[test]
fn no_answer_is_wrong_in_a_random_history() {
    let seed = seed("ack_histories");
    let Some(found) = histories::run(seed, STEPS, Duration::ZERO) else {
        return not_run("ack_histories", "this kernel cannot hand system calls to a program (seccomp)");
    };
    assert!(found.promises > STEPS / 10, "hardly anything was promised: {found}");
    assert_eq!((found.lost, found.doubled, found.lied), (0, 0, 0), "seed {seed}: {found}");
}
