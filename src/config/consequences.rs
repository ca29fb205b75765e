//! What valid settings mean that their user may not expect: `check-config` prints these lines.

use std::net::SocketAddr;
use std::time::Duration;

use postgres::config::Host;

use super::raw::Raw;
use super::{Auth, Config, Database, DatabaseUrl, SslMode};
use crate::limits::MIB;
use crate::types::AckLevel;

const DAYS_PER_MONTH_MAX: u64 = 31;
const SECONDS_PER_DAY: u64 = 86_400;

/// The consequences of `config`, one line each.
pub(super) fn of(config: &Config, raw: &Raw) -> Vec<String> {
    let mut lines = Vec::new();
    for unused in raw.iter().filter(|given| raw.is_unused(given.setting.key) && given.text.is_some()) {
        lines.push(format!("--embedded: {}, given by {}, is ignored", unused.setting.name, unused.origin));
    }
    match &config.database {
        Database::Embedded => {
            lines.push(format!(
                "rows are stored in a private PostgreSQL with its data in {}",
                config.embedded_dir().display()
            ));
        }
        Database::Url(url) => lines.extend(unauthenticated_server(url)),
    }
    if let Some(url) = &config.migrate_database {
        lines.push(format!("MIGRATE_DATABASE_URL: migrations connect to {} as another role", url.address()));
        lines.extend(unauthenticated_server(url));
    }
    if config.redis.is_none() {
        lines.push("batch status is kept in this process: other nodes know only committed batches".into());
    }
    if let Some(endpoint) = &config.otlp_endpoint {
        lines.push(format!("OTLP_ENDPOINT: times, ids and counts of sampled requests are sent to {endpoint}"));
    }
    if config.ack == AckLevel::Memory {
        lines.push("ACK=memory: a crash loses batches that were acknowledged but not yet committed".into());
    }
    if config.auth == Auth::Off {
        let open: Vec<_> = config.listen.iter().filter(|address| !address.ip().is_loopback()).collect();
        if !open.is_empty() {
            let open: Vec<_> = open.into_iter().map(SocketAddr::to_string).collect();
            lines.push(format!("AUTH=off: everyone who can reach {} can ingest and read", open.join(", ")));
        }
    }
    if config.tls.as_ref().is_some_and(|files| files.client_ca.is_some()) {
        lines.push("TLS_CLIENT_CA_FILE: clients without a certificate are still served".into());
    }
    if config.pool_connections_max == 1 {
        lines.push("DB_POOL_MAX_SIZE=1: no connection is reserved for priorities 8 to 10".into());
    }
    if config.journal_bytes_max < config.body_bytes_max as u64 {
        lines.push(format!(
            "JOURNAL_MAX_MB={} is below MAX_BODY_MB={}: a batch that does not fit in the journal is rejected",
            config.journal_bytes_max / MIB as u64,
            config.body_bytes_max / MIB
        ));
    }
    if let Some(months) = config.partition_retention_months {
        lines.push(format!("PARTITION_RETENTION_MONTHS={months}: older partitions are dropped with their rows"));
        let kept_days = u64::from(months) * DAYS_PER_MONTH_MAX;
        if config.event_age_max > Duration::from_secs(kept_days * SECONDS_PER_DAY) {
            lines.push(format!(
                "EVENT_MAX_AGE_DAYS={} accepts events older than that: they are stored and soon dropped",
                config.event_age_max.as_secs() / SECONDS_PER_DAY
            ));
        }
    }
    lines
}

/// A line when the connection crosses a network to a server that it does not authenticate.
fn unauthenticated_server(url: &DatabaseUrl) -> Option<String> {
    let authenticated = match url.ssl_mode() {
        SslMode::VerifyCa | SslMode::VerifyFull => true,
        SslMode::Require => url.ssl_root_cert().is_some(),
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
    };
    let local = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    };
    let hosts = url.driver_config().get_hosts();
    let stays_here = !hosts.is_empty() && hosts.iter().all(local);
    (!authenticated && !stays_here).then(|| {
        format!(
            "sslmode={} does not verify that {} is your server; use verify-full",
            url.ssl_mode().name(),
            url.address()
        )
    })
}
