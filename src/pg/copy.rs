//! COPY … FROM STDIN (FORMAT binary) of pre-encoded tuples.

use std::io::{self, Write};

use postgres::{Statement, Transaction};

use crate::encode::tuple::{COPY_HEADER, COPY_TRAILER};
use crate::limits::COPY_CHUNK_BYTES;

/// Streams `parts` (whole tuples, back to back) into the table of `statement`; gives the rows copied.
pub fn copy_tuples<'a>(
    transaction: &mut Transaction<'_>,
    statement: &Statement,
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<u64, postgres::Error> {
    let mut writer = transaction.copy_in(statement)?;
    // A failed write leaves the error to `finish`, which reports what PostgreSQL said.
    if stream(&mut writer, parts).is_err() {
        return writer.finish();
    }
    writer.finish()
}

/// Large slices go out in chunks, small ones are gathered by the writer itself.
fn stream<'a>(writer: &mut impl Write, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    writer.write_all(&COPY_HEADER)?;
    for part in parts {
        for chunk in part.chunks(COPY_CHUNK_BYTES) {
            writer.write_all(chunk)?;
        }
    }
    writer.write_all(&COPY_TRAILER)
}
