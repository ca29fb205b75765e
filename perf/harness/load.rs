//! wrk with `perf/load.lua`: as many requests as the connections carry, each sent once the one before is answered.

use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::Failure;

/// A load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Options {
    /// How long.
    pub seconds: u64,
    /// Keep-alive connections.
    pub connections: u64,
    /// Events of a request, about 400 bytes each.
    pub events: u64,
}

/// A load under way.
pub struct Load(Child);

/// What wrk saw.
#[derive(Debug, Deserialize)]
pub struct Answers {
    /// Events of accepted requests.
    pub events: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Connections that broke.
    pub socket_errors: u64,
    /// Pairs of percentile and latency, of all requests.
    pub percentiles_ms: Vec<(f64, f64)>,
}

impl Answers {
    /// P50, P95 and P99.
    pub fn quantiles_ms(&self) -> [f64; 3] {
        [50.0, 95.0, 99.0].map(|wanted| {
            let found = self.percentiles_ms.iter().find(|(percentile, _)| *percentile == wanted);
            found.map_or(f64::NAN, |(_, latency)| *latency)
        })
    }
}

/// Starts to load the server at `url` with batches of `priority`, a number or `mixed`.
pub fn start(url: &str, query: &str, priority: &str, options: &Options) -> Result<Load, Failure> {
    let child = Command::new("wrk")
        .args(["-t1", "--timeout", "30s", "-s", "perf/load.lua"])
        .args([format!("-c{}", options.connections), format!("-d{}s", options.seconds)])
        .arg(format!("{url}/v1/ingest/batch"))
        .env("EVENTS", options.events.to_string())
        .env("QUERY", query)
        .env("PRIORITY", priority)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("wrk: {error}; deploy/setup.sh perf brings it"))?;
    Ok(Load(child))
}

impl Load {
    /// Waits for its end.
    pub fn finish(self) -> Result<Answers, Failure> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().last().unwrap_or_default();
        let answers: Answers = serde_json::from_str(line).map_err(|error| format!("wrk said {line:?}: {error}"))?;
        if answers.socket_errors > 0 {
            return Err(format!("wrk saw {} broken connections", answers.socket_errors).into());
        }
        if answers.refused > 0 {
            eprintln!("{} requests were refused", answers.refused);
        }
        Ok(answers)
    }
}
