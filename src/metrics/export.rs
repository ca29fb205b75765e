//! The forms in which metrics are told, which of them a client asked for, and the two text forms.
//!
//! OpenMetrics 1.0 is written by `prometheus-client`, whose encoder reads the live cells through the one collector
//! below. Prometheus text 0.0.4 is that same text with what differs rewritten ([`classic_from_open_metrics`]), so both
//! always tell the same.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::histogram::{Histogram, Merged};
use super::labels::{AuthFailure, BatchOutcome, Label, PoolState, SqlstateClass, Statement, WorkerState};
use super::process::ProcessStats;
use super::registry::Metrics;
use super::report;
use crate::types::Priority;

/// A form in which metrics are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text exposition format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0 text.
    OpenMetrics,
    /// The JSON form, [`report::Report`]: `docs/monitoring.md#json`.
    Json,
}

/// Why no form suits the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAcceptable {
    /// `?format=` names none; answer 400.
    #[error("unknown format; use prometheus, openmetrics or json")]
    UnknownFormat,
    /// `Accept` admits none; answer 406.
    #[error("the Accept header allows none of text/plain, application/openmetrics-text and application/json")]
    NoneAccepted,
}

impl Format {
    /// All forms; of those that a client likes equally, the first is taken.
    const BY_PREFERENCE: [Self; 3] = [Self::Prometheus, Self::OpenMetrics, Self::Json];

    /// The form to answer with: `?format=` decides if given, else `Accept` (RFC 9110, section 12.5.1), else
    /// Prometheus text.
    pub fn negotiate(accept: Option<&str>, query_format: Option<&str>) -> Result<Self, NotAcceptable> {
        match query_format {
            Some("prometheus" | "text") => Ok(Self::Prometheus),
            Some("openmetrics") => Ok(Self::OpenMetrics),
            Some("json") => Ok(Self::Json),
            Some(_) => Err(NotAcceptable::UnknownFormat),
            None => Self::accepted(accept.unwrap_or("")).ok_or(NotAcceptable::NoneAccepted),
        }
    }

    fn accepted(accept: &str) -> Option<Self> {
        if accept.trim().is_empty() {
            return Some(Self::Prometheus);
        }
        let mut best = None;
        for format in Self::BY_PREFERENCE {
            let quality = quality_of(format.media_type(), accept);
            if quality > best.map_or(0.0, |(quality, _)| quality) {
                best = Some((quality, format));
            }
        }
        best.map(|(_, format)| format)
    }

    const fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Prometheus => ("text", "plain"),
            Self::OpenMetrics => ("application", "openmetrics-text"),
            Self::Json => ("application", "json"),
        }
    }

    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Json => "application/json",
        }
    }

    /// `metrics` in this form, as they are now.
    pub fn render(self, metrics: &Arc<Metrics>) -> String {
        match self {
            Self::Prometheus => classic_from_open_metrics(&open_metrics(metrics)),
            Self::OpenMetrics => open_metrics(metrics),
            Self::Json => report::Report::of(metrics).to_json(),
        }
    }
}

/// The quality that `accept` gives to a media type: that of the most specific range that covers it, 0 if none does.
/// Parameters but `q` are ignored: we offer one version of each type, and say which.
fn quality_of((kind, subtype): (&str, &str), accept: &str) -> f32 {
    let (mut most_specific, mut quality) = (None, 0.0_f32);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let Some((range_kind, range_subtype)) = parts.next().and_then(|range| range.split_once('/')) else { continue };
        let is = |range: &str, ours: &str| range.eq_ignore_ascii_case(ours);
        let specificity = match (range_kind, range_subtype) {
            ("*", "*") => 0,
            (range_kind, "*") if is(range_kind, kind) => 1,
            (range_kind, range_subtype) if is(range_kind, kind) && is(range_subtype, subtype) => 2,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let weight = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
        if most_specific < Some(specificity) {
            (most_specific, quality) = (Some(specificity), weight);
        } else if most_specific == Some(specificity) {
            quality = weight.max(quality);
        }
    }
    quality
}

/// OpenMetrics 1.0 text.
fn open_metrics(metrics: &Arc<Metrics>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(Arc::clone(metrics))));
    let mut out = String::with_capacity(64 * 1024);
    text::encode(&mut out, &registry).expect("writing to a string does not fail");
    out
}

/// Rewrites OpenMetrics text as Prometheus text 0.0.4, where a counter's metadata carries its samples' `_total` and
/// nothing marks the end.
fn classic_from_open_metrics(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(name_and_help) = line.strip_prefix("# HELP ") {
            // Whether the family is a counter stands in the next line only.
            help = name_and_help.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let help = help.take().map_or("", |(_, text)| text);
            out.extend(["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if line != "# EOF" {
            out.extend([line, "\n"]);
        }
    }
    out
}

/// Reads all metrics at each scrape.
struct Exposition(Arc<Metrics>);

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut families = Families(encoder);
        families.events(&self.0)?;
        families.queues(&self.0)?;
        families.latencies(&self.0)?;
        families.database(&self.0)?;
        families.process(&ProcessStats::read())
    }
}

/// The quantiles told beside each latency.
const QUANTILES: [(&str, f64); 4] = [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99), ("0.999", 0.999)];
const MICROS_PER_SECOND: f64 = 1e6;

/// Writes metric families: which ones, above; how, below.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn events(&mut self, metrics: &Metrics) -> fmt::Result {
        self.counter("ingestd_events_accepted", "Events of accepted batches", metrics.events_accepted.get())?;
        let rejected = metrics.events_rejected.iter();
        self.counters("ingestd_events_rejected", "Events rejected by validation, by code", "code", rejected)?;
        self.counter("ingestd_events_committed", "Events committed to PostgreSQL", metrics.events_committed.get())?;
        let duplicates = metrics.events_duplicate.get();
        self.counter("ingestd_events_duplicate", "Events that PostgreSQL already had", duplicates)?;
        let dead_lettered = metrics.events_dead_lettered.get();
        self.counter("ingestd_events_dead_lettered", "Events that PostgreSQL rejected", dead_lettered)?;
        let help = "Batches by outcome";
        self.counters("ingestd_batches", help, BatchOutcome::KEY, metrics.batches.iter())?;

        let mut family = self.family("ingestd_requests", "Answered requests", MetricType::Counter)?;
        for (route, code, count) in metrics.requests.iter() {
            counter_sample(&mut family.encode_family(&[("route", route), ("code", code)])?, count)?;
        }
        Ok(())
    }

    fn queues(&mut self, metrics: &Metrics) -> fmt::Result {
        let help = "Batches accepted and not yet in a COPY";
        self.gauges("ingestd_queue_batches", help, Priority::KEY, metrics.queue_batches.iter())?;
        let help = "Events accepted and not yet in a COPY";
        self.gauges("ingestd_queue_events", help, Priority::KEY, metrics.queue_events.iter())?;
        let help = "Bytes accepted and not yet in a COPY, in memory or only in the journal";
        self.gauge("ingestd_queue_bytes", help, metrics.queue_bytes.sum())?;
        self.gauge(
            "ingestd_memory_bytes",
            "Bytes of rows held in memory, including spare capacity of their buffers",
            metrics.memory_bytes.get(),
        )?;
        let help = "Limit on the bytes of rows held in memory";
        self.gauge("ingestd_memory_limit_bytes", help, metrics.memory_limit_bytes.get())?;
        self.gauge("ingestd_journal_bytes", "Size of the journal on disk in bytes", metrics.journal_bytes.get())?;
        let help = "Limit on the size of the journal on disk in bytes";
        self.gauge("ingestd_journal_limit_bytes", help, metrics.journal_limit_bytes.get())?;
        let relocated = metrics.journal_relocated_batches.get();
        let help = "Waiting batches that were written to the journal again, so that they do not hold a whole segment";
        self.counter("ingestd_journal_relocated_batches", help, relocated)?;
        let help = "Bytes of waiting batches that were written to the journal again";
        self.counter("ingestd_journal_relocated_bytes", help, metrics.journal_relocated_bytes.get())?;
        let help = "1 when the journal has damage that was set aside or could not be read";
        self.gauge("ingestd_journal_damaged", help, metrics.journal_damaged.get())?;
        self.gauge("ingestd_ready", "1 while this node is ready for traffic, as /readyz reports", metrics.ready.get())?;
        let mut family =
            self.family("ingestd_build_info", "Always 1; the label is the running version", MetricType::Gauge)?;
        family.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1)
    }

    fn latencies(&mut self, metrics: &Metrics) -> fmt::Result {
        self.latency("ingestd_ack_latency", "Request received to answer sent", &metrics.ack_latency)?;
        self.latency("ingestd_queue_latency", "Batch accepted to start of its COPY", &metrics.queue_latency)?;
        self.latency("ingestd_copy_latency", "COPY of events", &metrics.copy_latency)?;
        self.latency("ingestd_batch_latency", "Request received to commit in PostgreSQL", &metrics.batch_latency)?;
        self.latency("ingestd_journal_fsync", "One fsync of the journal", &metrics.journal_fsync)
    }

    fn database(&mut self, metrics: &Metrics) -> fmt::Result {
        let mut family = self.family("ingestd_copy_rows", "Rows in one COPY", MetricType::Histogram)?;
        histogram_samples(&mut family, &metrics.copy_rows.merge(), 1.0)?;

        let help = "Connections of the pool";
        let connections = metrics.db_pool_connections.iter();
        self.gauges("ingestd_db_pool_connections", help, PoolState::KEY, connections)?;
        let help = "Limit on the connections of the pool (DB_POOL_MAX_SIZE)";
        self.gauge("ingestd_db_pool_connections_limit", help, metrics.db_pool_connections_limit.get())?;
        self.gauge("ingestd_database_up", "1 while PostgreSQL responds", metrics.database_up.get())?;
        let help = "Batches that cannot be committed while others can, as health reports";
        self.gauge("ingestd_stuck_batches", help, metrics.stuck_batches.get())?;
        let help = "Workers of the Citus cluster (SHARDING=citus)";
        self.gauges("ingestd_citus_workers", help, WorkerState::KEY, metrics.citus_workers.iter())?;
        let help = "Transactions prepared on Citus workers and undecided for a long time";
        self.gauge("ingestd_citus_undecided_transactions", help, metrics.citus_undecided_transactions.get())?;

        let by_statement: Vec<_> = metrics.db_query.merge_all().collect();
        let help = "Statements sent to PostgreSQL";
        let mut family = self.family("ingestd_db_query_seconds", help, MetricType::Histogram)?;
        for (statement, merged) in &by_statement {
            let labels = [(Statement::KEY, *statement)];
            histogram_samples(&mut family.encode_family(&labels)?, merged, MICROS_PER_SECOND)?;
        }
        let help = "Statements sent to PostgreSQL: quantiles since start";
        let mut family = self.family("ingestd_db_query_quantile_seconds", help, MetricType::Gauge)?;
        for (statement, merged) in &by_statement {
            quantile_samples(&mut family, merged, |quantile| [(Statement::KEY, *statement), ("quantile", quantile)])?;
        }

        let help = "Requests rejected by authentication or rate limits";
        self.counters("ingestd_auth_failures", help, AuthFailure::KEY, metrics.auth_failures.iter())?;

        let help = "Errors from PostgreSQL, by class of SQLSTATE";
        self.counters("ingestd_db_errors", help, SqlstateClass::KEY, metrics.db_errors.iter())
    }

    /// Names as in the Prometheus client guidelines ("Standard and runtime collectors"), and disk I/O.
    fn process(&mut self, stats: &ProcessStats) -> fmt::Result {
        self.known_counter("process_cpu_seconds", "User and system CPU time", stats.cpu_seconds)?;
        self.known_gauge("process_resident_memory_bytes", "Resident memory in bytes", stats.resident_bytes)?;
        self.known_gauge("process_virtual_memory_bytes", "Virtual memory in bytes", stats.virtual_bytes)?;
        self.known_gauge("process_open_fds", "Open file descriptors", stats.open_fds)?;
        self.known_gauge("process_max_fds", "Limit on open file descriptors", stats.max_fds)?;
        self.known_gauge("process_threads", "Threads", stats.threads)?;
        let help = "When the process started, in seconds since 1970";
        self.known_gauge("process_start_time_seconds", help, stats.start_time_seconds)?;
        self.known_counter("process_io_read_bytes", "Bytes read from storage", stats.io_read_bytes)?;
        self.known_counter("process_io_written_bytes", "Bytes written to storage", stats.io_written_bytes)
    }

    fn family<'s>(&'s mut self, name: &'s str, help: &str, kind: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    /// `name` is without `_total`, as all counters' here: the encoder appends it.
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        counter_sample(&mut self.family(name, help, MetricType::Counter)?, value)
    }

    fn known_counter(&mut self, name: &str, help: &str, value: Option<impl EncodeCounterValue>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.counter(name, help, value))
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl Iterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        for (value, count) in samples {
            counter_sample(&mut family.encode_family(&[(label, value)])?, count)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn known_gauge(&mut self, name: &str, help: &str, value: Option<impl EncodeGaugeValue>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.gauge(name, help, value))
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl Iterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Gauge)?;
        for (value, reading) in samples {
            family.encode_family(&[(label, value)])?.encode_gauge(&reading)?;
        }
        Ok(())
    }

    /// The histogram `{stem}_seconds` and the gauges `{stem}_quantile_seconds`, from one reading.
    fn latency(&mut self, stem: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let merged = histogram.merge();
        let name = format!("{stem}_seconds");
        histogram_samples(&mut self.family(&name, help, MetricType::Histogram)?, &merged, MICROS_PER_SECOND)?;
        let (name, help) = (format!("{stem}_quantile_seconds"), format!("{help}: quantiles since start"));
        let mut family = self.family(&name, &help, MetricType::Gauge)?;
        quantile_samples(&mut family, &merged, |quantile| [("quantile", quantile)])
    }
}

fn counter_sample(family: &mut MetricEncoder<'_>, value: impl EncodeCounterValue) -> fmt::Result {
    family.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

/// `unit` is how many of the histogram's units make one of the exposition's.
fn histogram_samples(family: &mut MetricEncoder<'_>, merged: &Merged, unit: f64) -> fmt::Result {
    let bound = |bound: Option<u64>| bound.map_or(f64::INFINITY, |bound| bound as f64 / unit);
    let buckets: Vec<_> = merged.buckets().map(|(upper, count)| (bound(upper), count)).collect();
    family.encode_histogram::<NoLabelSet>(merged.sum() as f64 / unit, merged.count(), &buckets, None)
}

/// Quantiles in seconds; NaN while nothing was recorded, as Prometheus summaries say it.
fn quantile_samples<L: EncodeLabelSet>(
    family: &mut MetricEncoder<'_>,
    merged: &Merged,
    labels: impl Fn(&'static str) -> L,
) -> fmt::Result {
    for (text, quantile) in QUANTILES {
        let micros = if merged.count() == 0 { f64::NAN } else { merged.value_at_quantile(quantile) as f64 };
        family.encode_family(&labels(text))?.encode_gauge(&(micros / MICROS_PER_SECOND))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use super::*;
    use crate::metrics::{HttpStatus, Route};

    /// Names and types that users rely on: `docs/monitoring.md#metrics`.
    const CONTRACT: [(&str, &str); 26] = [
        ("ingestd_events_accepted_total", "counter"),
        ("ingestd_events_rejected_total", "counter"),
        ("ingestd_events_committed_total", "counter"),
        ("ingestd_events_duplicate_total", "counter"),
        ("ingestd_events_dead_lettered_total", "counter"),
        ("ingestd_batches_total", "counter"),
        ("ingestd_requests_total", "counter"),
        ("ingestd_queue_batches", "gauge"),
        ("ingestd_queue_events", "gauge"),
        ("ingestd_queue_bytes", "gauge"),
        ("ingestd_journal_bytes", "gauge"),
        ("ingestd_journal_fsync_seconds", "histogram"),
        ("ingestd_ack_latency_seconds", "histogram"),
        ("ingestd_batch_latency_seconds", "histogram"),
        ("ingestd_copy_latency_seconds", "histogram"),
        ("ingestd_copy_rows", "histogram"),
        ("ingestd_db_pool_connections", "gauge"),
        ("ingestd_db_query_seconds", "histogram"),
        ("ingestd_auth_failures_total", "counter"),
        ("ingestd_db_errors_total", "counter"),
        ("ingestd_ack_latency_quantile_seconds", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
        ("process_virtual_memory_bytes", "gauge"),
    ];

    fn busy_server() -> Arc<Metrics> {
        let metrics = Metrics::new("node-1", &["missing_field"]);
        metrics.events_accepted.add(1000);
        metrics.events_rejected.add("missing_field", 2);
        metrics.requests.count(Route::BatchStatus, HttpStatus(404));
        metrics.queue_bytes.of(Priority::default()).set(5);
        metrics.queue_bytes.of(Priority::new(10).expect("10 is a priority")).set(7);
        let ack = metrics.ack_latency.recorder();
        (1..=1000).for_each(|millis| ack.record_elapsed(Duration::from_millis(millis)));
        metrics.db_query.recorder().record_elapsed(Statement::Commit, Duration::from_micros(1500));
        metrics
    }

    /// What a scraper would read: types by family, and values by sample (name with labels).
    fn parse(text: &str) -> (BTreeMap<&str, &str>, BTreeMap<&str, f64>) {
        let (mut types, mut samples, mut helps) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                assert!(helps.contains(name), "{name} has no help before its type");
                assert!(types.insert(name, kind).is_none(), "{name} has two types");
            } else if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(!help.is_empty() && helps.insert(name), "{name} has no help, or two");
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').expect("a sample has a value");
                let value = value.parse().expect("a value is a number");
                assert!(samples.insert(sample, value).is_none(), "{sample} is given twice");
            }
        }
        (types, samples)
    }

    #[test]
    fn every_name_of_the_contract_is_exported_with_help_and_type() {
        let text = Format::Prometheus.render(&busy_server());
        let (types, samples) = parse(&text);
        for (name, kind) in CONTRACT {
            assert_eq!(types.get(name), Some(&kind), "{name}");
            let stem = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
            assert!(samples.keys().any(|sample| sample.split('{').next() == Some(&stem)), "{name} has no sample");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    }

    #[test]
    fn samples_hold_what_was_recorded() {
        let text = Format::Prometheus.render(&busy_server());
        let (_, samples) = parse(&text);
        for (sample, value) in [
            ("ingestd_events_accepted_total", 1000.0),
            ("ingestd_events_rejected_total{code=\"missing_field\"}", 2.0),
            ("ingestd_requests_total{route=\"/v1/batch/{batch_id}/status\",code=\"404\"}", 1.0),
            ("ingestd_queue_bytes", 12.0),
            ("ingestd_ack_latency_seconds_bucket{le=\"0.0001\"}", 0.0),
            ("ingestd_ack_latency_seconds_bucket{le=\"0.25\"}", 250.0),
            ("ingestd_ack_latency_seconds_bucket{le=\"1.0\"}", 1000.0),
            ("ingestd_ack_latency_seconds_bucket{le=\"+Inf\"}", 1000.0),
            ("ingestd_ack_latency_seconds_count", 1000.0),
            ("ingestd_ack_latency_seconds_sum", 500.5),
            ("ingestd_db_query_seconds_bucket{le=\"0.0025\",statement=\"commit\"}", 1.0),
            ("ingestd_db_query_seconds_sum{statement=\"commit\"}", 0.0015),
            ("ingestd_db_query_quantile_seconds{statement=\"commit\",quantile=\"0.99\"}", 0.0015),
        ] {
            assert_eq!(samples.get(sample), Some(&value), "{sample}");
        }
        let p99 = samples["ingestd_ack_latency_quantile_seconds{quantile=\"0.99\"}"];
        assert!((p99 - 0.990).abs() < 0.001, "{p99}");
        assert!(samples["ingestd_copy_latency_quantile_seconds{quantile=\"0.5\"}"].is_nan());
    }

    #[test]
    fn both_text_forms_tell_the_same_samples() {
        let metrics = busy_server();
        let (classic, open) = (Format::Prometheus.render(&metrics), Format::OpenMetrics.render(&metrics));
        assert!(open.ends_with("\n# EOF\n"));
        // Values of the process move between two renderings.
        let ours = |text: &str| {
            let (_, samples) = parse(text);
            let ours = samples.into_iter().filter(|(sample, value)| sample.starts_with("ingestd_") && !value.is_nan());
            ours.map(|(sample, value)| (sample.to_owned(), value)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(ours(&classic), ours(&open));
        let (types, _) = parse(&open);
        assert_eq!(types.get("ingestd_events_accepted"), Some(&"counter"));
    }

    #[test]
    fn the_query_decides_over_accept() {
        let json = Format::negotiate(Some("text/plain"), Some("json"));
        assert_eq!(json, Ok(Format::Json));
        assert_eq!(Format::negotiate(None, Some("openmetrics")), Ok(Format::OpenMetrics));
        assert_eq!(Format::negotiate(Some("application/json"), Some("prometheus")), Ok(Format::Prometheus));
        assert_eq!(Format::negotiate(None, Some("xml")), Err(NotAcceptable::UnknownFormat));
    }

    #[test]
    fn accept_chooses_by_quality_then_specificity_then_our_preference() {
        let prometheus_server = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                                 application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
                                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, expected) in [
            ("", Some(Format::Prometheus)),
            ("*/*", Some(Format::Prometheus)),
            (browser, Some(Format::Prometheus)),
            (prometheus_server, Some(Format::OpenMetrics)),
            ("application/json", Some(Format::Json)),
            ("Application/JSON; charset=utf-8", Some(Format::Json)),
            ("application/*", Some(Format::OpenMetrics)),
            ("text/plain;q=0.1, application/json;q=0.9", Some(Format::Json)),
            ("text/plain;q=0, */*;q=0.2", Some(Format::OpenMetrics)),
            ("*/*, application/*;q=0.1, text/*;q=0", Some(Format::OpenMetrics)),
            ("text/html", None),
            ("application/json;q=0", None),
            ("nonsense", None),
        ] {
            let expected = expected.ok_or(NotAcceptable::NoneAccepted);
            assert_eq!(Format::negotiate(Some(accept), None), expected, "{accept:?}");
        }
        assert_eq!(Format::negotiate(None, None), Ok(Format::Prometheus));
    }

    #[test]
    fn help_and_type_of_counters_carry_total_in_the_classic_form_only() {
        let open = "# HELP a_b What it is.\n# TYPE a_b counter\na_b_total 1\n# HELP c C.\n# TYPE c gauge\nc 2\n# EOF\n";
        let classic =
            "# HELP a_b_total What it is.\n# TYPE a_b_total counter\na_b_total 1\n# HELP c C.\n# TYPE c gauge\nc 2\n";
        assert_eq!(classic_from_open_metrics(open), classic);
    }
}
