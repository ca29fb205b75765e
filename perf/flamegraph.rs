//! Turns `perf script` into flame graphs, one for each kind of thread; a tool of `perf/profile.sh`.
//!
//! `perf script | flamegraph DIR SUBTITLE UNIT`: writes `http.svg`, `journal.svg`, `flush.svg` and `other.svg` to DIR, each
//! where there are samples, and `stacks.folded`, all stacks as text, for grep and for other tools. Prints how the time is
//! spread, and where each kind of thread spends its own. A sample weighs what perf says passed since the one before, in
//! UNIT: nanoseconds or cycles.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FolderOptions};
use inferno::flamegraph::{self, Options};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Kinds of threads: a file's name, and what the threads' names begin with.
const KINDS: [(&str, &str); 4] = [("http", "http-"), ("journal", "journal"), ("flush", "flush-"), ("other", "")];
/// Functions that are named of each kind.
const TOP: usize = 8;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, subtitle, unit] = &arguments[..] else {
        return Err("usage: perf script | flamegraph DIR SUBTITLE UNIT".into());
    };
    let dir = Path::new(dir);
    let folded = folded(io::stdin().lock())?;
    fs::write(dir.join("stacks.folded"), &folded)?;
    let all: u64 = folded.lines().map(weight).sum();
    if all == 0 {
        return Err("perf script gave no samples".into());
    }
    for (index, (kind, _)) in KINDS.iter().enumerate() {
        let lines: Vec<&str> = folded.lines().filter(|line| kind_of(line) == index).collect();
        let own: u64 = lines.iter().copied().map(weight).sum();
        if own > 0 {
            draw(&dir.join(format!("{kind}.svg")), kind, [subtitle, unit], &lines)?;
            println!("{kind}: {:.1} % of all", percent(own, all));
            print_top(&lines, own);
        }
    }
    Ok(())
}

/// One line a stack: `thread;outermost;…;innermost weight`.
fn folded(script: impl io::BufRead) -> Result<String, Failure> {
    let mut folded = Vec::new();
    Folder::from(FolderOptions::default()).collapse(script, &mut folded)?;
    Ok(String::from_utf8(folded)?)
}

fn weight(line: &str) -> u64 {
    line.rsplit_once(' ').and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
}

/// The index in [`KINDS`] of the thread that `line` was sampled in; the last fits all.
fn kind_of(line: &str) -> usize {
    KINDS.iter().position(|(_, prefix)| line.starts_with(prefix)).unwrap_or(KINDS.len() - 1)
}

fn draw(file: &Path, kind: &str, [subtitle, unit]: [&str; 2], lines: &[&str]) -> Result<(), Failure> {
    let mut options = Options::default();
    options.title = format!("ingestd: {kind} threads");
    options.subtitle = Some(subtitle.to_owned());
    options.count_name = unit.to_owned();
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().copied(), BufWriter::new(File::create(file)?))?;
    Ok(())
}

/// The functions with most time of their own, without what they call.
fn print_top(lines: &[&str], all: u64) {
    let mut own: HashMap<&str, u64> = HashMap::new();
    for line in lines {
        let stack = line.rsplit_once(' ').map_or(*line, |(stack, _)| stack);
        *own.entry(stack.rsplit(';').next().unwrap_or(stack)).or_default() += weight(line);
    }
    let mut own: Vec<_> = own.into_iter().collect();
    own.sort_unstable_by_key(|&(function, count)| (std::cmp::Reverse(count), function));
    for (function, count) in own.into_iter().take(TOP) {
        println!("  {:5.1} %  {function}", percent(count, all));
    }
}

fn percent(part: u64, all: u64) -> f64 {
    part as f64 * 100.0 / all as f64
}
