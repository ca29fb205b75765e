//! From text to [`Config`]. Every problem is found, not only the first, and each is one line:
//! `NAME=value: what is allowed`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

use super::raw::{Origin, Raw};
use super::settings::{Fallback, Key, Kind, SETTINGS};
use super::{Auth, Config, Database, DatabaseUrl, Linger, LogFormat, Problems, RedisUrl, TimeIndex, TlsFiles};
use crate::auth::rate::{RateLimit, RateLimits};
use crate::limits::{KIB, MIB};
use crate::sharding::Sharding;
use crate::types::AckLevel;

const SECONDS_PER_DAY: u64 = 86_400;
const SECONDS_PER_HOUR: u64 = 3_600;

/// Every setting read, then the checks that concern several.
pub(super) fn config(raw: &Raw) -> Result<Config, Problems> {
    let mut reader = Reader { raw, problems: raw.problems.clone(), failed: Vec::new() };
    reader.refuse_empty_file_names();
    let config = Config {
        database: reader.database(),
        migrate_database: reader.postgres_url(Key::MigrateDatabaseUrl),
        redis: reader.redis(),
        copy_rows_min: reader.whole(Key::BatchSize) as usize,
        batch_timeout: Duration::from_secs(reader.whole(Key::BatchTimeoutSeconds)),
        copy_bytes_max: reader.megabytes(Key::MaxBatchMemoryMb),
        pool_connections_min: reader.whole(Key::DbPoolMinSize) as u32,
        pool_connections_max: reader.whole(Key::DbPoolMaxSize) as u32,
        batch_linger: reader.linger(),
        synchronous_commit: reader.word(Key::SynchronousCommit) != "off",
        listen: reader.listen(),
        workers: reader.whole_or_unset(Key::Workers).map(|count| count as usize),
        ack: reader.ack(),
        journal_dir: reader.path(Key::JournalDir).unwrap_or_default(),
        journal_bytes_max: reader.whole(Key::JournalMaxMb) * MIB as u64,
        memory_bytes_max: reader.megabytes(Key::MemoryLimitMb),
        body_bytes_max: reader.megabytes(Key::MaxBodyMb),
        batch_events_max: reader.whole(Key::MaxEventsPerBatch) as usize,
        requests_bytes_max: reader.megabytes(Key::MaxRequestsMb) as u64,
        connections_max: reader.whole(Key::MaxConnections) as usize,
        connections_per_address_max: reader
            .whole_or_unset(Key::MaxConnectionsPerAddress)
            .map_or(usize::MAX, |count| count as usize),
        headers_max: reader.whole(Key::MaxHeaders) as usize,
        header_bytes_max: reader.whole(Key::MaxHeaderKb) as usize * KIB,
        url_bytes_max: reader.whole(Key::MaxUrlKb) as usize * KIB,
        write_timeout: Duration::from_secs(reader.whole(Key::WriteTimeoutSeconds)),
        header_timeout: Duration::from_secs(reader.whole(Key::HeaderTimeoutSeconds)),
        keep_alive: Duration::from_secs(reader.whole(Key::KeepAliveSeconds)),
        body_bytes_per_second_min: reader.whole(Key::BodyMinKbPerSecond) * KIB as u64,
        event_age_max: Duration::from_secs(reader.whole(Key::EventMaxAgeDays) * SECONDS_PER_DAY),
        event_future_max: Duration::from_secs(reader.whole(Key::EventMaxFutureHours) * SECONDS_PER_HOUR),
        partitions_ahead_months: reader.whole(Key::PartitionsAhead) as u32,
        partition_retention_months: reader.whole_or_unset(Key::PartitionRetentionMonths).map(|count| count as u32),
        time_index: reader.time_index(),
        ledger_retention: reader
            .whole_or_unset(Key::LedgerRetentionDays)
            .map(|days| Duration::from_secs(days * SECONDS_PER_DAY)),
        auth: reader.auth(),
        rate_limits: RateLimits {
            events: reader.rate_limit(Key::RateLimitEventsPerSecond, Key::RateLimitBurst),
            requests: reader.rate_limit(Key::RateLimitRequestsPerSecond, Key::RateLimitRequestsBurst),
        },
        tls: reader.tls(),
        stuck_after: Duration::from_secs(60 * reader.whole(Key::StuckBatchMinutes)),
        status_ttl: Duration::from_secs(reader.whole(Key::StatusTtlSeconds)),
        node_id: reader.node_id(),
        sharding: reader.sharding(),
        log_format: if reader.word(Key::LogFormat) == "json" { LogFormat::Json } else { LogFormat::Text },
        log_level: reader.word(Key::LogLevel).parse().unwrap_or(tracing::Level::INFO),
        otlp_endpoint: reader.otlp_endpoint(),
        data_dir: reader.path(Key::DataDir).unwrap_or_default(),
        postgres_bin_dir: reader.path(Key::IngestdPgBin),
    };
    reader.check_together(&config);
    if reader.problems.is_empty() { Ok(config) } else { Err(Problems(reader.problems)) }
}

/// Reads settings one by one. A getter that fails notes the problem and gives a stand-in, so that the
/// others are still read; nobody sees the stand-in, because problems refuse the whole.
struct Reader<'a> {
    raw: &'a Raw,
    problems: Vec<String>,
    failed: Vec<Key>,
}

impl Reader<'_> {
    /// The text of `key`; `None` when it is unset, or empty (which is a problem, not a way to unset it).
    fn text(&mut self, key: Key) -> Option<String> {
        let given = self.raw.get(key);
        let text = given.text.clone()?;
        if !text.trim().is_empty() {
            return Some(text.trim().to_owned());
        }
        let default = match given.setting.fallback {
            Fallback::Value(text) | Fallback::Unset(text) => text,
        };
        let allowed = given.setting.kind.allowed();
        self.refuse(key, &format!("is empty; unset it to use the default ({default}), or set it to {allowed}"));
        None
    }

    /// Notes that the value of `key` is refused, and why.
    fn refuse(&mut self, key: Key, why: &str) {
        let given = self.raw.get(key);
        let from = match &given.origin {
            Origin::Flag => format!(" (flag --{})", given.setting.flag()),
            Origin::File(path) => format!(" (in {})", path.display()),
            Origin::Environment | Origin::Default => String::new(),
        };
        // A value may hold line breaks; a problem is one line.
        let shown = given.shown().unwrap_or_default().escape_debug().to_string();
        self.problems.push(format!("{}={shown}{from}: {why}", given.setting.name));
        self.failed.push(key);
    }

    fn refuse_as_not_allowed(&mut self, key: Key) {
        self.refuse(key, &format!("must be {}", key.setting().kind.allowed()));
    }

    fn sharding(&mut self) -> Sharding {
        if self.word(Key::Sharding) != "citus" {
            return Sharding::None;
        }
        if self.word(Key::SynchronousCommit) == "off" {
            self.refuse(
                Key::SynchronousCommit,
                "is not supported with SHARDING=citus (worker flushes cannot be confirmed); set it to 'on'",
            );
        }
        Sharding::Citus
    }

    fn time_index(&mut self) -> TimeIndex {
        match &*self.word(Key::TimeIndex) {
            "btree" => TimeIndex::Btree,
            "none" => TimeIndex::None,
            _ => TimeIndex::Brin,
        }
    }

    fn refuse_empty_file_names(&mut self) {
        for file in SETTINGS.iter().filter_map(|setting| setting.key.file()) {
            // What it names has been read already.
            self.text(file);
        }
    }

    fn whole_or_unset(&mut self, key: Key) -> Option<u64> {
        let Kind::Whole(min, max) = key.setting().kind else { unreachable!("{} is not a number", key.name()) };
        let text = self.text(key)?;
        let number = whole(&text, min, max);
        if number.is_none() {
            self.refuse_as_not_allowed(key);
        }
        number
    }

    fn whole(&mut self, key: Key) -> u64 {
        self.whole_or_unset(key).unwrap_or(1)
    }

    fn megabytes(&mut self, key: Key) -> usize {
        self.whole(key) as usize * MIB
    }

    fn linger(&mut self) -> Linger {
        let Kind::WordOrWhole(word, min, max) = Key::BatchLingerMs.setting().kind else {
            unreachable!("BATCH_LINGER_MS is a word or a number")
        };
        match self.text(Key::BatchLingerMs) {
            Some(text) if text != word => match whole(&text, min, max) {
                Some(milliseconds) => return Linger::Fixed(Duration::from_millis(milliseconds)),
                None => self.refuse_as_not_allowed(Key::BatchLingerMs),
            },
            _ => {}
        }
        Linger::Adaptive
    }

    /// One of the words that `key` allows; `""` when unset.
    fn word(&mut self, key: Key) -> String {
        let Kind::Choice(words) = key.setting().kind else { unreachable!("{} is not a choice", key.name()) };
        let Some(text) = self.text(key) else { return String::new() };
        if !words.contains(&text.as_str()) {
            self.refuse_as_not_allowed(key);
        }
        text
    }

    fn auth(&mut self) -> Auth {
        let off = self.word(Key::Auth) == "off";
        match self.path(Key::ApiKeysFile) {
            Some(_) if off => {
                self.refuse(Key::Auth, "conflicts with API_KEYS_FILE; unset one of them");
                Auth::Off
            }
            Some(file) => Auth::Keys(file),
            None if off => Auth::Off,
            None => Auth::Loopback,
        }
    }

    fn rate_limit(&mut self, per_second: Key, burst: Key) -> Option<RateLimit> {
        let whole = |reader: &mut Self, key| {
            reader.whole_or_unset(key).and_then(|number| NonZeroU32::new(u32::try_from(number).ok()?))
        };
        let (rate, at_once) = (whole(self, per_second), whole(self, burst));
        if rate.is_none() && at_once.is_some() && !self.failed.contains(&per_second) {
            self.refuse(burst, &format!("requires {} to be set", per_second.name()));
        }
        Some(RateLimit::new(rate?, at_once))
    }

    fn ack(&mut self) -> AckLevel {
        AckLevel::parse(&self.word(Key::Ack)).unwrap_or(AckLevel::Journal)
    }

    fn path(&mut self, key: Key) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn database(&mut self) -> Database {
        self.postgres_url(Key::DatabaseUrl).map_or(Database::Embedded, Database::Url)
    }

    /// `None` also where the embedded database is wanted, whatever the URL.
    fn postgres_url(&mut self, key: Key) -> Option<Box<DatabaseUrl>> {
        if self.raw.is_unused(key) {
            return None;
        }
        let url = DatabaseUrl::parse(&self.text(key)?).map_err(|why| self.refuse(key, &why));
        url.ok().map(Box::new)
    }

    fn redis(&mut self) -> Option<RedisUrl> {
        let text = self.text(Key::RedisUrl)?;
        let rest = text.strip_prefix("redis://").or_else(|| text.strip_prefix("rediss://"));
        let host = rest.map(|rest| rest.rsplit_once('@').map_or(rest, |(_credentials, host)| host));
        match host {
            Some(host) if !host.is_empty() && !host.starts_with(['/', ':', '?']) => return Some(RedisUrl(text)),
            Some(_) => self.refuse(Key::RedisUrl, "has no host; write it as redis://:password@host:6379/0"),
            None => self.refuse(Key::RedisUrl, "must start with redis:// or rediss://, such as redis://host:6379/0"),
        }
        None
    }

    /// The collector's address, to which the path of the signal is added.
    fn otlp_endpoint(&mut self) -> Option<String> {
        let text = self.text(Key::OtlpEndpoint)?;
        let uri = text.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
        let why = match &uri {
            _ if text.contains('@') => {
                "must not contain a user or password; set OTEL_EXPORTER_OTLP_HEADERS to what the collector requires"
            }
            None => "must be a URL that starts with http:// or https://, such as http://127.0.0.1:4318",
            Some(uri) if uri.host().is_none_or(str::is_empty) => "has no host; write it as http://host:4318",
            Some(uri) if uri.query().is_some() || text.contains('#') => {
                "must end with the host or a path, without query or fragment"
            }
            Some(_) => return Some(text.trim_end_matches('/').to_owned()),
        };
        self.refuse(Key::OtlpEndpoint, why);
        None
    }

    fn listen(&mut self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for text in self.text(Key::ListenAddr).unwrap_or_default().split(',').map(str::trim) {
            match resolve(text) {
                Ok(address) if address.port() != 0 && addresses.contains(&address) => {
                    self.refuse(Key::ListenAddr, &format!("'{text}' is given more than once"));
                }
                Ok(address) => addresses.push(address),
                Err(why) if !self.failed.contains(&Key::ListenAddr) => {
                    self.refuse(Key::ListenAddr, &format!("'{text}' {why}"));
                }
                Err(_) => {}
            }
        }
        addresses
    }

    /// The files themselves are read when they are used.
    fn tls(&mut self) -> Option<TlsFiles> {
        let (certificate, key) = (self.path(Key::TlsCertFile), self.path(Key::TlsKeyFile));
        let client_ca = self.path(Key::TlsClientCaFile);
        let is_given = |reader: &Self, key: Key| reader.raw.get(key).text.is_some();
        if certificate.is_some() && !is_given(self, Key::TlsKeyFile) {
            self.refuse(Key::TlsCertFile, "requires TLS_KEY_FILE, the private key of the certificate");
        }
        if key.is_some() && !is_given(self, Key::TlsCertFile) {
            self.refuse(Key::TlsKeyFile, "requires TLS_CERT_FILE, the certificate of the private key");
        } else if client_ca.is_some() && !is_given(self, Key::TlsCertFile) {
            self.refuse(
                Key::TlsClientCaFile,
                "requires TLS_CERT_FILE and TLS_KEY_FILE: client certificates are only available over TLS",
            );
        }
        Some(TlsFiles { certificate: certificate?, key: key?, client_ca })
    }

    fn node_id(&mut self) -> String {
        let named = self.text(Key::NodeId);
        if named.is_none() {
            return rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        let name = named.unwrap_or_default();
        let printable = name.chars().all(|c| !c.is_whitespace() && !c.is_control());
        if !printable || name.len() > 128 {
            self.refuse_as_not_allowed(Key::NodeId);
        }
        name
    }

    /// Checks that concern several settings, where each of them is fine by itself.
    fn check_together(&mut self, config: &Config) {
        let fine = |failed: &[Key], keys: [Key; 2]| !keys.iter().any(|key| failed.contains(key));
        let (min, max) = (config.pool_connections_min, config.pool_connections_max);
        if fine(&self.failed, [Key::DbPoolMinSize, Key::DbPoolMaxSize]) && min > max {
            self.refuse(Key::DbPoolMinSize, &format!("must not be greater than DB_POOL_MAX_SIZE, which is {max}"));
        }
        if fine(&self.failed, [Key::MaxBatchMemoryMb, Key::MaxBodyMb]) && config.copy_bytes_max < config.body_bytes_max
        {
            let body = config.body_bytes_max / MIB;
            self.refuse(
                Key::MaxBatchMemoryMb,
                &format!("must not be less than MAX_BODY_MB, which is {body}: one request must fit in one COPY"),
            );
        }
        if config.sharding == Sharding::Citus
            && matches!(config.database, Database::Embedded)
            && fine(&self.failed, [Key::Sharding, Key::DatabaseUrl])
        {
            self.refuse(Key::Sharding, "requires the coordinator of a Citus cluster: set DATABASE_URL");
        }
        let open = config.listen.iter().find(|address| !address.ip().is_loopback());
        if let (Some(address), true) = (open, fine(&self.failed, [Key::Auth, Key::ListenAddr]))
            && config.auth == Auth::Loopback
            && !self.failed.contains(&Key::ApiKeysFile)
        {
            self.refuse(
                Key::ListenAddr,
                &format!(
                    "{address} is reachable from other machines: set API_KEYS_FILE to require API keys, or AUTH=off to \
                     allow everyone"
                ),
            );
        }
    }
}

/// `text` as a number from `min` to `max`, digits only (`+5` and `1e3` are typing errors, not numbers).
fn whole(text: &str, min: u64, max: u64) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok()? } else { return None };
    (min..=max).contains(&number).then_some(number)
}

/// The address of `text`; a name that has several listens on one, IPv4 first.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let allowed = Key::ListenAddr.setting().kind.allowed();
    let port = text.rsplit_once(':').and_then(|(_host, port)| port.parse::<u16>().ok());
    if port.is_none() || text.starts_with(':') {
        return Err(format!("must be {allowed}"));
    }
    let found = text.to_socket_addrs().map_err(|error| format!("cannot be resolved ({error}); must be {allowed}"))?;
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| format!("has no address; must be {allowed}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::raw::Sources;
    use super::*;

    fn parse(given: &[(Key, &str)]) -> Result<Config, Problems> {
        let flags = BTreeMap::new();
        let given: BTreeMap<_, _> = given.iter().map(|&(key, text)| (key.name(), text.to_owned())).collect();
        let environment = |name: &str| given.get(name).map(Into::into);
        config(&Raw::gather(Sources { flags, environment: Some(&environment), ..Sources::default() }))
    }

    fn problem(key: Key, text: &str) -> String {
        let problems = parse(&[(key, text)]).expect_err("must be refused");
        assert_eq!(problems.0.len(), 1, "{problems}");
        problems.to_string()
    }

    #[test]
    fn defaults_are_the_contracts() {
        let config = parse(&[]).expect("defaults are valid");
        assert!(matches!(config.database, Database::Embedded));
        assert_eq!((config.copy_rows_min, config.copy_bytes_max), (1000, 100 * MIB));
        assert_eq!((config.pool_connections_min, config.pool_connections_max), (5, 20));
        assert_eq!(config.batch_linger, Linger::Adaptive);
        assert_eq!(config.listen, ["127.0.0.1:8000".parse().expect("address")]);
        assert_eq!((config.workers, config.ack), (None, AckLevel::Journal));
        assert_eq!(config.journal_dir, PathBuf::from("data/journal"));
        assert_eq!(config.journal_bytes_max, 4096 * MIB as u64);
        assert_eq!((config.body_bytes_max, config.batch_events_max), (16 * MIB, 10_000));
        assert_eq!(config.event_age_max.as_secs(), 3650 * 86_400);
        assert_eq!((config.partitions_ahead_months, config.partition_retention_months), (3, None));
        assert!(!config.node_id.is_empty());
        assert_eq!(config.embedded_dir(), PathBuf::from("data/postgres"));
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_name_and_its_range() {
        assert_eq!(problem(Key::BatchSize, "0"), "BATCH_SIZE=0: must be a whole number from 1 to 1000000");
        for text in ["1000001", "-1", "+1", "1.5", "1e3", "ten", "99999999999999999999999"] {
            let expected = format!("BATCH_SIZE={text}: must be a whole number from 1 to 1000000");
            assert_eq!(problem(Key::BatchSize, text), expected);
        }
        assert_eq!(problem(Key::JournalMaxMb, "3"), "JOURNAL_MAX_MB=3: must be a whole number from 4 to 16777216");
        assert_eq!(problem(Key::Ack, "disk"), "ACK=disk: must be one of memory, journal, commit");
        assert_eq!(problem(Key::Auth, "on"), "AUTH=on: must be 'off' or unset");
        let expected = "BATCH_LINGER_MS=soon: must be 'adaptive' or a whole number from 0 to 60000";
        assert_eq!(problem(Key::BatchLingerMs, "soon"), expected);
        assert_eq!(
            problem(Key::NodeId, "a b"),
            "NODE_ID=a b: must be a name of 1 to 128 printable characters without spaces"
        );
    }

    #[test]
    fn every_setting_refuses_an_empty_value() {
        for setting in &super::super::settings::SETTINGS {
            let message = parse(&[(setting.key, "")]).expect_err("must be refused").to_string();
            assert!(message.starts_with(&format!("{}=: ", setting.name)), "{message}");
        }
        let message = problem(Key::DatabaseUrl, "");
        assert!(
            message.starts_with("DATABASE_URL=: is empty; unset it to use the default (embedded), or set it to a URL"),
            "{message}"
        );
    }

    #[test]
    fn all_problems_are_reported_one_line_each() {
        let given = [(Key::BatchSize, "0"), (Key::Ack, "x\ny"), (Key::LogLevel, "loud"), (Key::DbPoolMinSize, "21")];
        let problems = parse(&given).expect_err("must be refused");
        assert_eq!(problems.0.len(), 4, "{problems}");
        assert_eq!(problems.to_string().lines().count(), 4);
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let message = problem(Key::DbPoolMinSize, "30");
        assert_eq!(message, "DB_POOL_MIN_SIZE=30: must not be greater than DB_POOL_MAX_SIZE, which is 20");
        let message = problem(Key::MaxBatchMemoryMb, "15");
        assert!(message.contains("must not be less than MAX_BODY_MB, which is 16"), "{message}");
    }

    #[test]
    fn an_address_for_other_machines_needs_keys_or_auth_off() {
        for address in ["0.0.0.0:8000", "[::]:8000", "127.0.0.1:1,192.0.2.1:2"] {
            let message = problem(Key::ListenAddr, address);
            assert!(message.contains("API_KEYS_FILE") && message.contains("AUTH=off"), "{message}");
        }
        let config = parse(&[(Key::ListenAddr, "0.0.0.0:8000"), (Key::Auth, "off")]).expect("said to be open");
        assert_eq!(config.auth, Auth::Off);
    }

    #[test]
    fn keys_and_rates_are_read_together() {
        let config = parse(&[(Key::ListenAddr, "0.0.0.0:8000"), (Key::ApiKeysFile, "keys.toml")]).expect("valid");
        assert_eq!(config.auth, Auth::Keys(PathBuf::from("keys.toml")));
        let problems = parse(&[(Key::Auth, "off"), (Key::ApiKeysFile, "keys.toml")]).expect_err("contradiction");
        assert!(problems.to_string().contains("AUTH=off: conflicts with API_KEYS_FILE"), "{problems}");
        let config = parse(&[(Key::RateLimitEventsPerSecond, "5"), (Key::RateLimitBurst, "9")]).expect("valid");
        let limit = |rate, burst| Some(RateLimit::new(NonZeroU32::new(rate)?, NonZeroU32::new(burst)));
        assert_eq!((config.rate_limits.events, config.rate_limits.requests), (limit(5, 9), None));
        let config = parse(&[(Key::RateLimitRequestsPerSecond, "7")]).expect("valid");
        assert_eq!((config.rate_limits.events, config.rate_limits.requests), (None, limit(7, 7)));
        assert!(problem(Key::RateLimitBurst, "5").contains("requires RATE_LIMIT_EVENTS_PER_SECOND to be set"));
        assert!(
            problem(Key::RateLimitRequestsBurst, "5").contains("requires RATE_LIMIT_REQUESTS_PER_SECOND to be set")
        );
    }

    #[test]
    fn addresses_may_be_names_several_and_without_port_number() {
        let config = parse(&[(Key::ListenAddr, "localhost:8001, [::1]:8002,127.0.0.1:0,127.0.0.1:0")]).expect("valid");
        assert_eq!(config.listen.len(), 4);
        assert!(config.listen[0].ip().is_loopback() && config.listen[0].port() == 8001);
        for bad in ["8000", ":8000", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:1,", "::1:x"] {
            assert!(problem(Key::ListenAddr, bad).contains("must be host:port"), "{bad}");
        }
        assert!(problem(Key::ListenAddr, "127.0.0.1:1,127.0.0.1:1").contains("is given more than once"));
    }

    #[test]
    fn settings_of_later_versions_are_refused_not_ignored() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "batch_size = 7\nbatch_shape = \"round\"\n").expect("written");
        let raw = Raw::gather(Sources { file: Some(file.path()), ..Sources::default() });
        let problems = config(&raw).expect_err("must be refused").to_string();
        assert!(problems.contains("unknown setting 'batch_shape'"), "{problems}");
        // Words that a setting may know later are none of its words today.
        assert!(problem(Key::Ack, "quorum").contains("must be one of memory, journal, commit"));
        assert!(problem(Key::Sharding, "columns").starts_with("SHARDING=columns: must be "));
    }

    #[test]
    fn a_certificate_needs_its_key_and_the_other_way_round() {
        let (certificate, key, client_ca) = (Key::TlsCertFile, Key::TlsKeyFile, Key::TlsClientCaFile);
        assert!(problem(certificate, "c.pem").starts_with("TLS_CERT_FILE=c.pem: requires TLS_KEY_FILE"));
        assert!(problem(key, "k.pem").starts_with("TLS_KEY_FILE=k.pem: requires TLS_CERT_FILE"));
        assert!(problem(client_ca, "ca.pem").starts_with("TLS_CLIENT_CA_FILE=ca.pem: requires TLS_CERT_FILE and"));
        assert_eq!(parse(&[]).expect("valid").tls, None);
        let given = [(certificate, "c.pem"), (key, "k.pem"), (client_ca, "ca.pem")];
        let files = parse(&given).expect("valid").tls.expect("TLS");
        assert_eq!((files.certificate, files.key), ("c.pem".into(), "k.pem".into()));
        assert_eq!(files.client_ca, Some("ca.pem".into()));
    }

    #[test]
    fn the_collectors_address_is_a_url_without_secrets() {
        let endpoint = |text| parse(&[(Key::OtlpEndpoint, text)]).expect("valid").otlp_endpoint;
        assert_eq!(parse(&[]).expect("valid").otlp_endpoint, None);
        assert_eq!(endpoint("http://127.0.0.1:4318/").as_deref(), Some("http://127.0.0.1:4318"));
        assert_eq!(endpoint("https://[::1]/otlp/x").as_deref(), Some("https://[::1]/otlp/x"));
        for (bad, why) in [
            ("127.0.0.1:4318", "must be a URL that starts with http://"),
            ("grpc://h:4317", "must be a URL that starts with http://"),
            ("http:///v1", "must be a URL that starts with http://"),
            ("http://:4318", "has no host"),
            ("http://h/?a=b", "must end with the host or a path, without query or fragment"),
        ] {
            let said = problem(Key::OtlpEndpoint, bad);
            assert!(said.contains(why), "{said}");
        }
        for secret in ["https://geheim@h", "https://u:geheim@h", "https://u:ge/geheim@h", "u:geheim@h"] {
            let said = problem(Key::OtlpEndpoint, secret);
            assert!(said.contains("must not contain a user or password") && !said.contains("geheim"), "{said}");
        }
    }

    #[test]
    fn urls_are_checked_and_their_passwords_never_shown() {
        assert!(problem(Key::DatabaseUrl, "postgresql:///db").contains("has no host"));
        assert!(
            problem(Key::DatabaseUrl, "postgres://u:geheim@:5432/db")
                .contains("postgres://u:***@:5432/db: has no host")
        );
        assert!(problem(Key::RedisUrl, "redis://").contains("has no host"));
        for (key, text) in [(Key::RedisUrl, "http://:geheim@h"), (Key::DatabaseUrl, "mysql://u:geheim@h/d")] {
            let message = problem(key, text);
            assert!(message.contains("must start with") && !message.contains("geheim"), "{message}");
        }
        let config = parse(&[(Key::RedisUrl, "redis://:geheim@h:6379/0")]).expect("valid");
        assert!(!format!("{config:?}").contains("geheim"));
    }
}
