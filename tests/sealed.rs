//! TLS in front of servers that speak none, with certificates of our own making.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fred::rustls::ServerConfig;
use fred::rustls::pki_types::pem::PemObject as _;
use fred::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate and its key, in files.
pub struct Certificate {
    /// The certificate.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Who vouches for servers, and the file that says so.
pub fn authority(folder: &Path, name: &str) -> (CertifiedIssuer<'static, KeyPair>, PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
    let file = folder.join(name);
    fs::write(&file, issuer.pem()).expect("a file");
    (issuer, file)
}

/// A server's certificate.
pub fn certificate(issuer: &CertifiedIssuer<'static, KeyPair>, folder: &Path) -> Certificate {
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let of = Certificate { chain: folder.join("server.pem"), key: folder.join("server.key") };
    for (file, text) in [(&of.chain, certificate.pem()), (&of.key, key.serialize_pem())] {
        let mut options = fs::OpenOptions::new();
        let new = options.write(true).create_new(true).mode(0o600).open(file);
        new.and_then(|mut new| new.write_all(text.as_bytes())).expect("a file");
    }
    of
}

/// TLS in front of a server at `address`, `HOST:PORT`. Nobody is let in without. `asked_for`: the
/// protocol asks for it first, as `PostgreSQL`'s does.
pub async fn seal(of: &Certificate, address: &str, asked_for: bool) -> SocketAddr {
    let chain = CertificateDer::pem_file_iter(&of.chain).expect("a file");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&of.key).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let sealed = listener.local_addr().expect("an address");
    let address = address.to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, address) = (acceptor.clone(), address.clone());
            tokio::spawn(async move {
                if asked_for {
                    let mut request = [0; 8];
                    client.read_exact(&mut request).await?;
                    // SSLRequest, in "Message Formats" of the protocol.
                    if request != *b"\0\0\0\x08\x04\xd2\x16\x2f" {
                        return Ok(());
                    }
                    client.write_all(b"S").await?;
                }
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(address).await?;
                copy_bidirectional(&mut client, &mut server).await.map(|_| ())
            });
        }
    });
    sealed
}
