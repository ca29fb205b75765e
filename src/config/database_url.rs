//! `DATABASE_URL`, checked as far as that goes without a connection.
//!
//! The driver's own parser reads the URL, except for what it does not know: libpq's `sslmode` has six
//! values and `sslrootcert` names whom to trust. [`crate::pg::connect`] makes a connection of both.
//!
//! Absent on purpose: `key=value` connection strings (the setting is a URL), client certificates
//! (`sslcert`), services and password files. They are refused by name, not ignored.

use std::fmt;
use std::path::PathBuf;

use postgres::config::Host;

use super::redact;

/// How a connection is protected: libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server offers it, as [`Self::Prefer`]: the driver cannot try plain text first.
    Allow,
    /// TLS where the server offers it; the server is not authenticated.
    Prefer,
    /// TLS or nothing; the server is authenticated only where `sslrootcert` is given.
    Require,
    /// TLS, and the server's certificate must come from a trusted authority.
    VerifyCa,
    /// As [`Self::VerifyCa`], and the certificate must name the host.
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// libpq's name of the mode.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Whom to trust: libpq's `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SslRootCert {
    /// The system's certificate authorities: `system`, and also the default of the verifying modes.
    System,
    /// The certificates of this PEM file.
    File(PathBuf),
}

/// A valid `DATABASE_URL`. `Debug` and `Display` never show the password.
#[derive(Clone)]
pub struct DatabaseUrl {
    config: postgres::Config,
    parameters: Vec<String>,
    ssl_mode: SslMode,
    ssl_root_cert: Option<SslRootCert>,
    redacted: String,
}

impl DatabaseUrl {
    /// Reads `url`; the error is one line that says what is wrong and how to write it, without the password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let Some(rest) = rest else {
            return Err("must start with postgres:// or postgresql://, such as \
                postgresql://user:password@host:5432/database"
                .into());
        };
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        if location.matches('@').count() > 1 {
            return Err("contains more than one '@' before the host: write '@' in the password as %40".into());
        }
        let mut parsed = Self {
            config: postgres::Config::new(),
            parameters: Vec::new(),
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: None,
            redacted: redact::url(url),
        };
        let driver_query = parsed.take_tls_parameters(query)?;
        let driver_url = format!("postgresql://{location}?{driver_query}");
        parsed.config = driver_url.parse().map_err(|error| driver_message(&error))?;
        parsed.check()?;
        Ok(parsed)
    }

    /// Reads the parameters of ours out of `query`; gives back the others, for the driver.
    fn take_tls_parameters(&mut self, query: &str) -> Result<String, String> {
        let mut others = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
            match name {
                "sslmode" => {
                    self.ssl_mode = SslMode::parse(&value).ok_or_else(|| {
                        format!(
                            "sslmode={value}: must be one of disable, allow, prefer, require, verify-ca, verify-full"
                        )
                    })?;
                }
                "sslrootcert" if value == "system" => self.ssl_root_cert = Some(SslRootCert::System),
                "sslrootcert" if value.is_empty() => return Err("sslrootcert= does not name a file".into()),
                "sslrootcert" => self.ssl_root_cert = Some(SslRootCert::File(PathBuf::from(&*value))),
                "sslcert" | "sslkey" | "sslpassword" | "sslcrl" | "sslcrldir" | "service" | "passfile"
                | "gssencmode" | "requirepeer" => {
                    return Err(format!("has the parameter {name}, which ingestd does not support; remove it"));
                }
                _ => {
                    self.parameters.push(name.to_owned());
                    others.push(parameter);
                }
            }
        }
        Ok(others.join("&"))
    }

    fn check(&self) -> Result<(), String> {
        if self.config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.is_empty()))
            || (self.config.get_hosts().is_empty() && self.config.get_hostaddrs().is_empty())
        {
            return Err("has no host; write it as postgresql://user:password@host:5432/database (for a Unix socket: \
                postgresql://user@%2Frun%2Fpostgresql/database)"
                .into());
        }
        let verifies = matches!(self.ssl_mode, SslMode::VerifyFull);
        if self.ssl_root_cert == Some(SslRootCert::System) && !verifies {
            return Err(format!(
                "sslrootcert=system requires sslmode=verify-full (it is {}): anyone can get a certificate from a \
                 public authority for some name",
                self.ssl_mode.name()
            ));
        }
        Ok(())
    }

    /// The driver's settings as the URL gives them, without anything about TLS and without defaults of ours.
    pub fn driver_config(&self) -> &postgres::Config {
        &self.config
    }

    /// True when the URL gives `parameter` itself, so that a default of ours must not replace it.
    pub fn has_parameter(&self, parameter: &str) -> bool {
        self.parameters.iter().any(|name| name == parameter)
    }

    /// The `sslmode` in force.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// The `sslrootcert`, when given.
    pub fn ssl_root_cert(&self) -> Option<&SslRootCert> {
        self.ssl_root_cert.as_ref()
    }

    /// True when every host is a unix socket: there is no TLS then, whatever `sslmode` says.
    pub fn is_unix_socket(&self) -> bool {
        let hosts = self.config.get_hosts();
        !hosts.is_empty() && hosts.iter().all(|host| matches!(host, Host::Unix(_)))
    }

    /// `host:port`s, for messages.
    pub fn address(&self) -> String {
        let ports = self.config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let mut shown: Vec<String> = Vec::new();
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            shown.push(match host {
                Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", port(index)),
                Host::Tcp(name) => format!("{name}:{}", port(index)),
                Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
            });
        }
        if shown.is_empty() {
            let addresses = self.config.get_hostaddrs().iter().enumerate();
            shown = addresses.map(|(index, ip)| format!("{ip}:{}", port(index))).collect();
        }
        shown.join(",")
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({})", self.redacted)
    }
}

/// The driver's reason. It names a parameter or a part of the URL, never a value.
fn driver_message(error: &postgres::Error) -> String {
    let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let reason = reason.replace('`', "'");
    format!("is not a valid database URL: {reason}; write it as postgresql://user:password@host:5432/database")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> String {
        DatabaseUrl::parse(url).expect_err("must be refused")
    }

    #[test]
    fn a_url_gives_its_parts() {
        let url = "postgres://u:p%40w@db.example:6543/events?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem\
                   &keepalives_idle=30";
        let parsed = DatabaseUrl::parse(url).expect("valid");
        assert_eq!(parsed.driver_config().get_user(), Some("u"));
        assert_eq!(parsed.driver_config().get_password(), Some(&b"p@w"[..]));
        assert_eq!(parsed.driver_config().get_dbname(), Some("events"));
        assert_eq!(parsed.address(), "db.example:6543");
        assert_eq!(parsed.ssl_mode(), SslMode::VerifyFull);
        assert_eq!(parsed.ssl_root_cert(), Some(&SslRootCert::File("/etc/ca.pem".into())));
        assert!(parsed.has_parameter("keepalives_idle") && !parsed.has_parameter("keepalives"));
        assert!(!format!("{parsed} {parsed:?}").contains("p%40w"));
    }

    #[test]
    fn every_ssl_mode_of_libpq_is_known() {
        for name in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
            let parsed = DatabaseUrl::parse(&format!("postgresql://h/d?sslmode={name}")).expect("valid");
            assert_eq!(parsed.ssl_mode().name(), name);
        }
        assert_eq!(DatabaseUrl::parse("postgresql://h/d").expect("valid").ssl_mode(), SslMode::Prefer);
        assert!(error("postgresql://h/d?sslmode=full").starts_with("sslmode=full: must be one of disable, allow"));
    }

    #[test]
    fn a_url_without_host_says_how_to_write_one() {
        for url in
            ["postgresql:///db", "postgres://", "postgres://u:p@/db", "postgres://:5432/db", "postgres://u@:5432/db"]
        {
            assert!(error(url).starts_with("has no host; write it as postgresql://user:password@host"), "{url}");
        }
    }

    #[test]
    fn unix_sockets_are_hosts() {
        for url in ["postgresql://u@%2Frun%2Fpostgresql/db", "postgresql:///db?host=/run/postgresql&port=6000"] {
            assert!(DatabaseUrl::parse(url).expect("valid").is_unix_socket());
        }
        assert!(!DatabaseUrl::parse("postgresql://h/db").expect("valid").is_unix_socket());
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, expected) in [
            ("mysql://u:geheim@h/d", "must start with postgres://"),
            ("host=h password=geheim", "must start with postgres://"),
            ("postgres://u:geheim@x@h/d", "more than one '@'"),
            ("postgres://u:geheim@h:none/d", "invalid value for option 'port'"),
            ("postgres://u:geheim@h/d?colour=red", "unknown option 'colour'"),
            ("postgres://u:geheim@h/d?sslcert=x", "does not support"),
            ("postgres://u:geheim@h/d?sslmode=require&sslrootcert=system", "requires sslmode=verify-full"),
        ] {
            let message = error(url);
            assert!(message.contains(expected), "{url}: {message}");
            assert!(!message.contains("geheim") && !message.contains('\n'), "{url}: {message}");
        }
    }
}
