//! TLS of the server: certificate chain, private key and the authorities of clients, as files.
//!
//! They are read and checked at start and on SIGHUP. What is in force changes as a whole: connections that are open keep
//! what they began with. TLS 1.2 and 1.3 with rustls' own choice of algorithms; HTTP/2 is offered by ALPN (RFC 7301).
//!
//! Absent on purpose: several certificates by name (SNI), OCSP stapling, 0-RTT data (it can be sent again by others),
//! revocation lists, encrypted key files.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, Error, InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

/// HTTP/2 as ALPN calls it (RFC 9113, 3.1).
pub const ALPN_HTTP2: &[u8] = b"h2";
/// HTTP/1.1 as ALPN calls it.
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// What is in force. No worker takes a lock to see it.
pub struct Tls {
    config: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Puts `loaded` in force.
    pub fn new(loaded: Loaded) -> Self {
        Self { config: ArcSwap::new(loaded.config) }
    }

    /// Puts `loaded` in force for connections to come.
    pub fn replace(&self, loaded: Loaded) {
        self.config.store(loaded.config);
    }

    /// What makes the handshake of a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

/// Files that fit together.
#[derive(Debug)]
pub struct Loaded {
    config: Arc<ServerConfig>,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

/// Reads and checks `files`.
///
/// # Errors
/// One line that names the setting and says what to do.
pub fn load(files: &TlsFiles) -> Result<Loaded, String> {
    let provider = Arc::new(ring::default_provider());
    let chain = read_certificates("TLS_CERT_FILE", &files.certificate)?;
    let warnings = validity_warning(files, &chain[0], &provider).into_iter().collect();
    let certified = certified_key(files, chain, &provider)?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .with_client_cert_verifier(client_verifier(files, &provider)?)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(Loaded { config: Arc::new(config), warnings })
}

/// The certificates of `path`, in their order; never none.
///
/// # Errors
/// One line that names `setting`.
pub fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let problem = |error| unreadable(setting, path, &error);
    let certificates = CertificateDer::pem_file_iter(path).map_err(problem)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(problem)?;
    if certificates.is_empty() {
        return Err(format!("{setting}={shown}: contains no PEM certificate (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(certificates)
}

fn unreadable(setting: &str, path: &Path, error: &pem::Error) -> String {
    format!("{setting}={}: cannot be read: {error}; give a PEM file that ingestd is allowed to read", path.display())
}

fn certified_key(
    files: &TlsFiles,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, String> {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    let private = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            format!("TLS_KEY_FILE={key}: contains no unencrypted PEM private key; store the key without a password")
        }
        error => unreadable("TLS_KEY_FILE", &files.key, &error),
    })?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
            "TLS_KEY_FILE={key}: is not the key of the first certificate in TLS_CERT_FILE={certificate}; give the \
             matching key, and put the server's own certificate first"
        ),
        Error::InvalidCertificate(error) => {
            format!("TLS_CERT_FILE={certificate}: its first certificate cannot be used: {error}; have it reissued")
        }
        error => format!("TLS_KEY_FILE={key}: cannot be used: {error}; give an RSA, ECDSA or Ed25519 key"),
    })
}

/// Verifies certificates of clients that have one; those that have none are served all the same.
fn client_verifier(files: &TlsFiles, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    const SETTING: &str = "TLS_CLIENT_CA_FILE";
    let Some(path) = &files.client_ca else { return Ok(Arc::new(NoClientAuth)) };
    let unusable = |error: &dyn std::fmt::Display| {
        format!("{SETTING}={}: cannot be used: {error}; give certificates of certificate authorities", path.display())
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(SETTING, path)? {
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let verifier: Arc<dyn ClientCertVerifier> =
        builder.allow_unauthenticated().build().map_err(|error| unusable(&error))?;
    Ok(verifier)
}

/// A line when `leaf` is out of date now. It is served all the same: that is for clients to judge, and a server that does
/// not start helps nobody.
fn validity_warning(files: &TlsFiles, leaf: &CertificateDer<'_>, provider: &CryptoProvider) -> Option<String> {
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    let algorithms = provider.signature_verification_algorithms.all;
    // Without authorities nothing is ever trusted, but a certificate's dates are looked at first.
    let error =
        verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], UnixTime::now(), algorithms);
    let what = match error {
        Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "has expired"
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            "is not valid yet"
        }
        _ => return None,
    };
    let shown = files.certificate.display();
    Some(format!("TLS_CERT_FILE={shown}: the certificate {what}; clients will reject it; renew it and send SIGHUP"))
}
