//! The limit that PostgreSQL sets: binary COPY of pre-encoded rows of the shape that `perf/load.lua` sends. The time in
//! which rows are encoded and ids made unique does not count.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ingestd::encode::tuple::{COPY_COLUMNS, COPY_HEADER, COPY_TRAILER, RowContext, append_tuple};
use ingestd::json::{ScanLimits, Scratch, scan_body};
use ingestd::pg::month::Month;
use ingestd::sys::clock::wall_now;
use ingestd::types::{Priority, UnixMicros};
use postgres::{Client, NoTls};

use crate::Failure;
use crate::compare::SAMPLE_INTERVAL;

const CHUNK_BYTES: usize = 256 * 1024;

/// Rows sent and the time that it took.
pub struct Copied {
    /// Rows that are in the table.
    pub rows: u64,
    /// Time in COPY and COMMIT, averaged over the connections.
    pub seconds: f64,
}

/// Copies `total` rows over `connections` connections, `rows` a transaction; the rows so far at times since the start, too.
pub fn run(url: &str, connections: usize, total: usize, rows: usize) -> Result<(Copied, Vec<(f64, u64)>), Failure> {
    make_tables(url)?;
    let (committed, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sampling = scope.spawn(|| sample(&committed, &ended));
        let threads: Vec<_> = (0..connections)
            .map(|number| {
                let committed = &committed;
                scope.spawn(move || copy_rows(url, number, total / connections, rows, committed))
            })
            .collect();
        let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ended.store(true, Relaxed);
        let samples = sampling.join().map_err(|_| "the sampling thread panicked")?;
        let mut sending = Duration::ZERO;
        for result in joined {
            sending += result.map_err(|_| "a connection's thread panicked")??;
        }
        let seconds = sending.as_secs_f64() / connections as f64;
        Ok((Copied { rows: committed.load(Relaxed), seconds }, samples))
    })
}

fn sample(committed: &AtomicU64, ended: &AtomicBool) -> Vec<(f64, u64)> {
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while !ended.load(Relaxed) {
        samples.push((begun.elapsed().as_secs_f64(), committed.load(Relaxed)));
        std::thread::sleep(SAMPLE_INTERVAL);
    }
    samples.push((begun.elapsed().as_secs_f64(), committed.load(Relaxed)));
    samples
}

/// The tables of ingestd with the months that the rows fall into.
fn make_tables(url: &str) -> Result<(), Failure> {
    let mut client = Client::connect(url, NoTls)?;
    ingestd::pg::migrate::migrate(&mut client)?;
    let now = wall_now();
    let months = [now.0 - 20 * 86_400_000_000, now.0].map(|at| Month::of(UnixMicros(at)));
    ingestd::pg::partitions::ensure(&mut client, &months)?;
    Ok(())
}

/// The time that COPY and COMMIT took.
fn copy_rows(url: &str, number: usize, total: usize, rows: usize, committed: &AtomicU64) -> Result<Duration, Failure> {
    let mut client = Client::connect(url, NoTls)?;
    let copy = client.prepare(&format!("COPY events ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)"))?;
    let (mut tuples, places) = encoded_rows(number, rows.min(total))?;
    let (mut sent, mut sending, mut counter) = (0, Duration::ZERO, 0u64);
    while sent < total {
        for place in &places {
            counter += 1;
            tuples[*place..*place + 12].copy_from_slice(format!("{counter:012x}").as_bytes());
        }
        let begun = Instant::now();
        let mut transaction = client.transaction()?;
        let mut writer = transaction.copy_in(&copy)?;
        writer.write_all(&COPY_HEADER)?;
        for chunk in tuples.chunks(CHUNK_BYTES) {
            writer.write_all(chunk)?;
        }
        writer.write_all(&COPY_TRAILER)?;
        writer.finish()?;
        transaction.commit()?;
        sending += begun.elapsed();
        sent += places.len();
        committed.fetch_add(places.len() as u64, Relaxed);
    }
    Ok(sending)
}

/// `rows` tuples, and where each has the 12 digits of its id.
fn encoded_rows(number: usize, rows: usize) -> Result<(Vec<u8>, Vec<usize>), Failure> {
    const MARK: &str = "000000000000";
    // As many kinds as the load has.
    const KINDS: [(&str, &str); 8] = [
        ("user-service", "user_login"),
        ("user-service", "user_logout"),
        ("user-service", "profile_updated"),
        ("order-service", "order_created"),
        ("order-service", "order_shipped"),
        ("payment-service", "payment_authorized"),
        ("payment-service", "payment_captured"),
        ("search-service", "query_executed"),
    ];
    let run = format!("{:x}-{number:02x}", wall_now().0);
    let received_at = wall_now();
    // The same for all connections: like the server's, they write to the same pages of the indexes.
    let mut random = 1u64;
    let mut body = String::from("[");
    for row in 0..rows {
        // Spread over the last 20 days like the load's: the primary key begins with the timestamp.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at =
            received_at.0 / 86_400_000_000 * 86_400_000_000 - i64::try_from((random >> 20) % (20 * 86_400_000))? * 1000;
        let (service, kind) = KINDS[(random >> 60) as usize % KINDS.len()];
        let second = row % 60;
        let mut timestamp = String::new();
        ingestd::encode::timestamp::append_rfc3339(&mut timestamp, UnixMicros(at));
        body.push_str(if row == 0 { "" } else { "," });
        body.push_str(&format!(
            "{{\"event_id\":\"evt-{run}-{MARK}\",\"service_name\":\"{service}\",\"event_type\":\"{kind}\",\"timestamp\":\"{timestamp}\",\
             \"payload\":{{\"user_id\":\"user_{row:06}\",\"amount\":{second}.50,\"currency\":\"EUR\",\"items\":[{{\"sku\":\"sku-{row:05}\",\"quantity\":2}},\
             {{\"sku\":\"sku-00042\",\"quantity\":1}}],\"channel\":\"web\",\"success\":true}},\
             \"metadata\":{{\"ip_address\":\"192.0.2.{second}\",\"user_agent\":\"Mozilla/5.0 (X11; Linux)\",\"trace\":\"{row:08x}\"}}}}"
        ));
    }
    body.push(']');
    let limits =
        ScanLimits { events_max: rows, timestamp_min: UnixMicros(i64::MIN), timestamp_max: UnixMicros(i64::MAX) };
    let mut scratch = Scratch::new();
    scan_body(body.as_bytes(), &limits, &mut scratch).map_err(|error| format!("{error:?}"))?;
    let context = RowContext::new("0192f0c1-2b3c-7def-8123-456789abcdef", Priority::default(), received_at);
    let (mut tuples, mut places) = (Vec::new(), Vec::new());
    for event in scratch.events() {
        let begin = tuples.len();
        append_tuple(&mut tuples, body.as_bytes(), event, &context);
        let place = tuples[begin..].windows(MARK.len()).position(|window| window == MARK.as_bytes());
        places.push(begin + place.ok_or("an id without its mark")?);
    }
    Ok((tuples, places))
}
