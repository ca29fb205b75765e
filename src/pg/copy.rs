//! COPY … FROM STDIN of encoded rows: the tuples as they are, or as lines of text for a Citus cluster.

use std::io::{self, Write};

use postgres::{Statement, Transaction};

use crate::encode::text::{Lines, TEXT_COPY_COLUMNS};
use crate::encode::tuple::{COPY_COLUMNS, COPY_HEADER, COPY_TRAILER, tuples};
use crate::limits::COPY_CHUNK_BYTES;
use crate::sharding::{IngestShard, Sharding};

/// Whole tuples, back to back, of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// As [`crate::encode::tuple`] lays them out.
    pub tuples: &'a [u8],
    /// Where they go.
    pub shard: IngestShard,
}

/// The statement by which [`copy_rows`] fills `table`.
pub fn copy_statement(table: &str, sharding: Sharding) -> String {
    match sharding {
        Sharding::None => format!("COPY {table} ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)"),
        Sharding::Citus => format!("COPY {table} ({TEXT_COPY_COLUMNS}) FROM STDIN (FORMAT text)"),
    }
}

/// The columns that a COPY gives.
pub fn copy_columns(sharding: Sharding) -> &'static str {
    match sharding {
        Sharding::None => COPY_COLUMNS,
        Sharding::Citus => TEXT_COPY_COLUMNS,
    }
}

/// Streams `parts` into the table of `statement`, which [`copy_statement`] gave; gives the rows copied.
///
/// The driver reads no further than the count. A limit of time that runs out just then (`lock_timeout` at the end of a wait) ends
/// the transaction behind it, unseen, and PostgreSQL answers a COMMIT with a rollback that the driver takes for success. So
/// another statement has to follow before the COMMIT, which PostgreSQL refuses then (25P02): [`still_runs`] where there is none.
pub fn copy_rows<'a>(
    transaction: &mut Transaction<'_>,
    statement: &Statement,
    sharding: Sharding,
    parts: impl Iterator<Item = Rows<'a>>,
) -> Result<u64, postgres::Error> {
    let mut writer = transaction.copy_in(statement)?;
    let streamed = match sharding {
        Sharding::None => stream_binary(&mut writer, parts),
        Sharding::Citus => stream_text(&mut writer, parts),
    };
    // A failed write leaves the error to `finish`, which reports what PostgreSQL said.
    if streamed.is_err() {
        return writer.finish();
    }
    writer.finish()
}

/// Makes sure that nothing has ended `transaction` unseen: see [`copy_rows`].
pub fn still_runs(transaction: &mut Transaction<'_>) -> Result<(), postgres::Error> {
    transaction.batch_execute("SELECT")
}

/// Large slices go out in chunks, small ones are gathered by the writer itself.
fn stream_binary<'a>(writer: &mut impl Write, parts: impl Iterator<Item = Rows<'a>>) -> io::Result<()> {
    writer.write_all(&COPY_HEADER)?;
    for part in parts {
        for chunk in part.tuples.chunks(COPY_CHUNK_BYTES) {
            writer.write_all(chunk)?;
        }
    }
    writer.write_all(&COPY_TRAILER)
}

/// Line by line: a large batch takes no more memory than a small one.
fn stream_text<'a>(writer: &mut impl Write, parts: impl Iterator<Item = Rows<'a>>) -> io::Result<()> {
    let mut text = Vec::with_capacity(COPY_CHUNK_BYTES);
    for part in parts {
        let mut lines = Lines::new(part.shard);
        for tuple in tuples(part.tuples) {
            // What is no tuple gives no line: whoever counts the rows copied sees it.
            let Ok((_, event)) = tuple else { break };
            lines.append(&mut text, &event);
            if text.len() >= COPY_CHUNK_BYTES {
                writer.write_all(&text)?;
                text.clear();
            }
        }
    }
    writer.write_all(&text)
}
