//! The scanner: an index of the bytes at which a string may end, and a walker that uses it.
//!
//! Two steps, because wide registers are good at looking at every byte and bad at grammar: [`index`] reads the
//! body once, 64 bytes at a time, and keeps one bit a byte; [`walk`] then finds the end of a string with a shift
//! and a trailing-zero count, whatever the string's length, and needs no wide loads, padding or unsafe code.

pub mod index;
#[doc(hidden)]
pub mod oracle;
pub(crate) mod simd;
pub(crate) mod source;
pub(crate) mod swar;
pub mod walk;
