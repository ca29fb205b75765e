//! TLS towards PostgreSQL, with libpq's meaning of `sslmode` and `sslrootcert`.
//!
//! | `sslmode` | encrypted | chain checked | name checked |
//! |---|---|---|---|
//! | `disable` | no | | |
//! | `allow`, `prefer` | where offered | no | no |
//! | `require` | yes | only with `sslrootcert` | no |
//! | `verify-ca` | yes | yes | no |
//! | `verify-full` | yes | yes | yes |
//!
//! Unlike libpq, the verifying modes trust the system's authorities where no `sslrootcert` is given, and a
//! name counts only as subject alternative name, never as common name. As with libpq, a self-signed
//! certificate is trusted where `sslrootcert` holds that very certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{DatabaseUrl, SslMode, SslRootCert};

/// Makes TLS streams, or is never asked to (`sslmode=disable`, unix sockets).
pub type Tls = MakeRustlsConnect;

/// How much of the server's certificate must be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// What `url` asks for. Reads `sslrootcert`; the error is one line for the user.
pub(super) fn connector(url: &DatabaseUrl) -> Result<Tls, String> {
    if url.is_unix_socket() {
        return build(Check::Nothing, Vec::new());
    }
    let (check, roots) = match (url.ssl_mode(), url.ssl_root_cert()) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => {
            (Check::Nothing, Vec::new())
        }
        (SslMode::Require | SslMode::VerifyCa, Some(SslRootCert::File(path))) => (Check::Chain, read_file(path)?),
        (SslMode::VerifyFull, Some(SslRootCert::File(path))) => (Check::ChainAndName, read_file(path)?),
        (SslMode::Require | SslMode::VerifyCa, _) => (Check::Chain, read_system()?),
        (SslMode::VerifyFull, _) => (Check::ChainAndName, read_system()?),
    };
    build(check, roots)
}

/// A connector for connections without TLS.
pub(super) fn unused() -> Tls {
    build(Check::Nothing, Vec::new()).expect("without certificates there is nothing that can be wrong")
}

fn build(check: Check, certificates: Vec<CertificateDer<'static>>) -> Result<Tls, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let (usable, _unusable) = roots.add_parsable_certificates(certificates.iter().cloned());
    if check != Check::Nothing && usable == 0 {
        return Err("none of the trusted certificates can be used".into());
    }
    let verifier = Verifier { check, roots, certificates, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // PostgreSQL 17 and newer want it with sslnegotiation=direct; older ones ignore it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(config))
}

fn read_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let problem = |error: rustls::pki_types::pem::Error| format!("sslrootcert={shown} cannot be read: {error}");
    let certificates = CertificateDer::pem_file_iter(path).map_err(problem)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(problem)?;
    if certificates.is_empty() {
        return Err(format!("sslrootcert={shown} contains no PEM certificate"));
    }
    Ok(certificates)
}

fn read_system() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(
            "no certificate authorities found to verify the server: install them (Debian: ca-certificates), or \
            set sslrootcert to a file that contains them"
                .into(),
        );
    }
    Ok(found.certs)
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: RootCertStore,
    /// The certificates that `roots` was made of, to recognise one that is the server's own.
    certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.certificates.iter().any(|trusted| trusted.as_ref() == end_entity.as_ref()) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
