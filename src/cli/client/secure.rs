//! HTTPS towards a server at a URL: verified by the system's authorities, or by those in `SSL_CERT_FILE`.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// What makes TLS connections to one server.
pub(in crate::cli) struct Secure {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
}

impl Secure {
    /// For the server called `host`, without a port; the error is one line.
    pub(in crate::cli) fn to(host: &str) -> Result<Self, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is not a valid server name"))?;
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if usable == 0 {
            return Err(
                "no certificate authorities found to verify the server: install them (Debian: ca-certificates), \
                or set SSL_CERT_FILE to a file that contains them"
                    .to_owned(),
            );
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("cannot set up TLS: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}
