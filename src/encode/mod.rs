//! From spans of JSON text to the bytes that PostgreSQL reads: binary COPY tuples, gathered in one
//! [`block::Block`] a batch.

pub mod block;
pub mod pool;

pub mod text;
pub mod timestamp;
pub mod tuple;
