//! What the disk can do with what the journal writes: groups of one batch, each synced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::load::Options;
use crate::report::{Figures, Run};

/// A file that is written over and over, as the journal recycles its segments.
const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// About what an event of the load takes in the journal.
const EVENT_BYTES: u64 = 412;
const DURATION: Duration = Duration::from_secs(2);

/// Writes and syncs one batch after the other, each after `pause`: a disk and a processor that idle in between take
/// longer for each.
pub fn measure(folder: &Path, load: &Options, pause: Duration) -> Result<Run, Failure> {
    let (path, group) = (folder.join("fdatasync"), vec![0x5A; (load.events * EVENT_BYTES) as usize]);
    let file = File::create(&path)?;
    let zeros = vec![0; 1024 * 1024];
    for at in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    let (begun, mut at, mut latencies) = (Instant::now(), 0, Vec::new());
    while begun.elapsed() < DURATION {
        std::thread::sleep(pause);
        let started = Instant::now();
        file.write_all_at(&group, at)?;
        file.sync_data()?;
        latencies.push(started.elapsed().as_secs_f64() * 1e3);
        at = if at + 2 * group.len() as u64 > FILE_BYTES { 0 } else { at + group.len() as u64 };
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    latencies.sort_by(f64::total_cmp);
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let rows = latencies.len() as u64 * load.events;
    Ok(Run {
        subject: "write + fdatasync".to_owned(),
        figures: Figures {
            rows,
            rows_per_second: Some(rows as f64 / seconds),
            ack_ms: Some([0.5, 0.95, 0.99].map(quantile)),
            ..Figures::default()
        },
        samples: Vec::new(),
        percentiles_ms: Vec::new(),
    })
}
