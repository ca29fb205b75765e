//! Queues between threads: one [`ring::Ring`] a core from its worker to the journal thread, and the
//! core's [`lanes::Lanes`], one per priority, from the journal thread to the flushers.
//!
//! Both are lock-free (crossbeam) and bounded, in number and in bytes, by [`budget::Budget`]s. Nothing here
//! knows what travels in them. Absent on purpose: any waiting; who waits parks on its own thread's parker.

pub mod budget;
pub mod lanes;
#[allow(clippy::module_inception, reason = "the ring is the station's namesake")]
pub mod ring;
