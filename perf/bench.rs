//! Tools of `perf/compare.sh`: a PostgreSQL to measure against, and the limit that it sets.
//!
//! `bench postgres DIR`: starts the embedded PostgreSQL in DIR, prints its URL, stops at the end of stdin.
//! `bench raw-copy URL CONNECTIONS TOTAL ROWS`: binary COPY of TOTAL pre-encoded rows of the same shape as
//! `perf/load.lua` sends, ROWS a transaction, over CONNECTIONS connections; prints rows a second. The time in which
//! rows are encoded and ids made unique does not count.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use ingestd::encode::tuple::{COPY_COLUMNS, COPY_HEADER, COPY_TRAILER, RowContext, append_tuple};
use ingestd::json::{ScanLimits, Scratch, scan_body};
use ingestd::pg::embedded::{Embedded, EmbeddedOptions};
use ingestd::sys::clock::wall_now;
use ingestd::types::{Priority, UnixMicros};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["postgres", dir] => postgres(dir),
        ["raw-copy", url, connections, total, rows] => {
            raw_copy(url, connections.parse()?, total.parse()?, rows.parse()?)
        }
        _ => Err("usage: bench postgres DIR | bench raw-copy URL CONNECTIONS TOTAL ROWS".into()),
    }
}

fn postgres(dir: &str) -> Result<(), Failure> {
    let embedded = Embedded::start(&EmbeddedOptions::new(dir))?;
    println!("{}", embedded.url(None));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    embedded.stop()?;
    Ok(())
}

/// Sends COPYs until `total` rows are in; every connection has its own rows.
fn raw_copy(url: &str, connections: usize, total: usize, rows: usize) -> Result<(), Failure> {
    let started = Instant::now();
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|number| scope.spawn(move || copy_rows(url, number, total / connections, rows)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| Failure::from("a connection's thread panicked"))?)
            .collect::<Result<Vec<_>, Failure>>()
    })?;
    let (rows, seconds) = (totals.iter().map(|total| total.0).sum::<usize>(), started.elapsed().as_secs_f64());
    let sending: f64 = totals.iter().map(|total| total.1.as_secs_f64()).sum::<f64>() / connections as f64;
    println!(
        "{{\"rows\":{rows},\"seconds\":{sending:.3},\"wall_seconds\":{seconds:.3},\"rows_per_second\":{:.0}}}",
        rows as f64 / sending
    );
    Ok(())
}

/// Rows sent and the time that COPY and COMMIT took, without the time in which ids were made unique.
fn copy_rows(url: &str, number: usize, total: usize, rows: usize) -> Result<(usize, Duration), Failure> {
    let mut client = postgres::Client::connect(url, postgres::NoTls)?;
    let copy = client.prepare(&format!("COPY events ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)"))?;
    let (mut tuples, places) = encoded_rows(number, rows)?;
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
        for chunk in tuples.chunks(256 * 1024) {
            writer.write_all(chunk)?;
        }
        writer.write_all(&COPY_TRAILER)?;
        writer.finish()?;
        transaction.commit()?;
        sending += begun.elapsed();
        sent += rows;
    }
    Ok((sent, sending))
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
