//! From lanes to COPY: which batches go into the next COPY, when it starts, and who runs it.
//!
//! [`merge`], [`cut`], [`admission`] and `culprit` are pure: they decide. [`queue`] holds what waits, [`postponed`] what could
//! not land and `unflushed` what PostgreSQL may still lose; [`waiting`] is for operators who will not wait. [`flusher`] owns the threads and does what they decide,
//! through [`crate::pg`].
//!
//! Invariants: a batch is in exactly one place, a lane, the merge, the postponed or one flusher's hands, until its
//! transaction is on PostgreSQL's disk; a batch is never split over two COPYs; a COPY holds either batches of priority
//! 8 and above or batches below it, so that a payment never waits for bulk rows to be written.
//! Absent on purpose: giving up. What was accepted is retried until PostgreSQL has said what became of it.

pub mod admission;
mod attempt;
mod culprit;
pub mod cut;
pub mod flusher;
mod group;
mod held;
pub mod merge;
pub mod postponed;
pub mod queue;
mod record;
pub mod relocate;
pub mod sleepers;
mod unflushed;
pub mod waiting;
