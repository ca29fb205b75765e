//! Certificates, and TLS in front of a server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What comes before the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// PostgreSQL's SSLRequest.
    Postgres,
    /// Nothing.
    Nothing,
}

/// The certificates of one test.
pub struct Certificates {
    folder: tempfile::TempDir,
    server: Identity,
}

/// A certificate, with its chain, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Certificates {
    /// A server certificate for `name`, signed by an authority that is in `ca.pem`; `other.pem` holds another one. They
    /// have both signed certificates of clients, see [`Self::identity`].
    pub fn signed(name: &str) -> Self {
        let authority = || {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority")
        };
        let (ours, other) = (authority(), authority());
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &ours).expect("signed");
        let mut files = vec![("ca.pem".to_owned(), ours.pem()), ("other.pem".to_owned(), other.pem())];
        for (client, authority) in [("client", &ours), ("stranger", &other)] {
            let key = KeyPair::generate().expect("key");
            let params = CertificateParams::new(vec![client.to_owned()]).expect("a name");
            files.push((format!("{client}.pem"), params.signed_by(&key, authority).expect("signed").pem()));
            files.push((format!("{client}-key.pem"), key.serialize_pem()));
        }
        Self::files(&files, &certificate, &key)
    }

    /// A server certificate for `name` that has expired long ago.
    pub fn expired(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let key = KeyPair::generate().expect("key");
        Self::files(&[], &params.self_signed(&key).expect("signed"), &key)
    }

    /// A certificate that signed itself, as `openssl req -x509` makes it; `ca.pem` holds it.
    pub fn self_signed(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("signed");
        Self::files(&[("ca.pem".to_owned(), certificate.pem())], &certificate, &key)
    }

    /// Writes `files`, and `server.pem` and `server-key.pem`.
    fn files(files: &[(String, String)], certificate: &Certificate, key: &KeyPair) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let server = [("server.pem".to_owned(), certificate.pem()), ("server-key.pem".to_owned(), key.serialize_pem())];
        for (name, text) in files.iter().chain(&server) {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        Self { folder, server: (vec![certificate.der().clone()], key) }
    }

    /// What `{name}.pem` and `{name}-key.pem` hold.
    pub fn identity(&self, name: &str) -> Identity {
        let certificate = CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}-key.pem"))).expect("a key");
        (vec![certificate], key)
    }

    /// The path of a file of certificates.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts TLS in front of the server at `upstream`, whose build may lack it; the port to reach it at.
    pub fn serve(&self, upstream: SocketAddr, greeting: Greeting) -> u16 {
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(self.server.0.clone(), self.server.1.clone_key())
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("set");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("listener");
                while let Ok((stream, _)) = listener.accept().await {
                    // A client that refuses the certificate ends its connection, not the proxy.
                    tokio::spawn(proxy(stream, acceptor.clone(), upstream, greeting));
                }
            });
        });
        port
    }
}

/// Decrypts; answers PostgreSQL's SSLRequest with yes before, and passes a client that does not ask on as it is.
async fn proxy(
    mut stream: TcpStream,
    acceptor: TlsAcceptor,
    upstream: SocketAddr,
    greeting: Greeting,
) -> std::io::Result<()> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let mut server = TcpStream::connect(upstream).await?;
    if greeting == Greeting::Postgres {
        let mut first = [0; 8];
        stream.read_exact(&mut first).await?;
        if first != SSL_REQUEST {
            server.write_all(&first).await?;
            copy_bidirectional(&mut stream, &mut server).await?;
            return Ok(());
        }
        stream.write_all(b"S").await?;
    }
    let mut stream = acceptor.accept(stream).await?;
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}
