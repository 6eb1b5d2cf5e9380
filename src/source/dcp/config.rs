//! Where a bucket's changes come from, and how they are asked for.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::leb128::CollectionId;

/// The longest name of a connection that a server takes, in bytes.
pub const NAME_BYTES_MAX: usize = 200;

/// One node of a cluster, and what to do there.
#[derive(Debug, Clone)]
pub struct DcpConfig {
    /// Where its KV service listens. Names are resolved by whoever knows the cluster.
    pub address: SocketAddr,
    /// TLS, unless the bytes go as they are.
    pub tls: Option<Tls>,
    /// Who logs in.
    pub login: Login,
    /// The bucket.
    pub bucket: String,
    /// The bucket's number of vbuckets.
    pub vbuckets: u16,
    /// The collection whose documents are followed. Keys are unique within one alone.
    pub collection: CollectionId,
    /// What connections are called at the server, beside what makes them unique; it is cut where it is too long.
    pub label: String,
    /// Let the producer send documents of a first snapshot in the order of its disk.
    pub out_of_order: bool,
    /// Take changes only once the node that tells them has them on its disk, so that none is taken that is lost when it
    /// fails. That costs the time until they are there, and a bucket that is kept in memory alone never comes on. A
    /// failover to a node that does not have what the failed one had on disk still takes changes back.
    pub persisted_only: bool,
    /// Bytes that the producer may send before they are acknowledged. While nobody takes batches a connection keeps
    /// these and one frame, as they came, in buffers that are filled by half at least, and some 40 bytes for each
    /// message; beside that there is what its byte budget grants, and one batch whose values are being inflated.
    pub window_bytes: u32,
    /// How often the producer asks whether anybody is there. A connection that hears nothing for twice as long is
    /// given up, as is one where a request is not answered for twice as long.
    pub noop_interval: Duration,
    /// How long a node may do nothing but refuse to be spoken to, in a way that does not pass by itself, before who
    /// follows the bucket gives up: one that starts, or joins or leaves the cluster, does so for a while. As long a
    /// node may be behind on the bucket's collections, of which it hears later than others.
    pub refusal_timeout: Duration,
    /// How long each step of opening a connection, and each write, may take.
    pub step_timeout: Duration,
    /// A batch is sent when its buffer has this many bytes, or when the next read would wait. One of inflated values is
    /// longer by one value at the most.
    pub batch_bytes: usize,
}

impl DcpConfig {
    /// The usual settings: the default collection of a bucket, 10 MiB of window, a noop every 20 seconds.
    pub fn new(address: SocketAddr, bucket: &str, vbuckets: u16, login: Login) -> Self {
        Self {
            address,
            tls: None,
            login,
            bucket: bucket.to_owned(),
            vbuckets,
            collection: CollectionId::default(),
            label: bucket.to_owned(),
            out_of_order: false,
            persisted_only: false,
            window_bytes: 10 * 1024 * 1024,
            noop_interval: Duration::from_secs(20),
            step_timeout: Duration::from_secs(10),
            refusal_timeout: Duration::from_secs(60),
            batch_bytes: 256 * 1024,
        }
    }

    /// A name for a connection that no other has, of at most [`NAME_BYTES_MAX`] bytes: two connections of one name
    /// end each other.
    pub fn connection_name(&self) -> Result<String, getrandom::Error> {
        let unique = format!(":{:016x}", getrandom::u64()?);
        let mut name = format!("dormouse:{}", self.label);
        while name.len() + unique.len() > NAME_BYTES_MAX {
            name.pop();
        }
        Ok(name + &unique)
    }
}

/// A user of a cluster.
#[derive(Clone)]
pub struct Login {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Whether the password may be sent as it is over a connection without TLS, where the server knows no other way.
    pub plain_without_tls: bool,
}

/// The password is nobody's business.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How a server proves who it is.
#[derive(Debug, Clone)]
pub struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) server: ServerName<'static>,
}

fn wrong(error: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
}

fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|e| wrong(format!("{host}: {e}")))
}

impl Tls {
    /// Trusts the certificate authorities in `authorities_pem` alone, for a server of the name `host`.
    pub fn new(host: &str, authorities_pem: &[u8]) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities_pem) {
            let authority = authority.map_err(|e| wrong(format!("no certificate authority: {e}")))?;
            roots.add(authority).map_err(|e| wrong(format!("no certificate authority: {e}")))?;
        }
        Self::with_roots(host, roots)
    }

    /// The same for authorities of which each is one certificate in DER, as a machine keeps them. Those that cannot be
    /// read are passed over, as a machine may have very old ones.
    pub fn from_der<'a>(host: &str, authorities: impl IntoIterator<Item = &'a [u8]>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities.into_iter().map(CertificateDer::from));
        Self::with_roots(host, roots)
    }

    fn with_roots(host: &str, roots: RootCertStore) -> io::Result<Self> {
        if roots.is_empty() {
            return Err(wrong("there is no certificate authority in it"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config), server: server_name(host)? })
    }

    /// Trusts the same authorities, for a server of another name.
    pub fn for_host(&self, host: &str) -> io::Result<Self> {
        Ok(Self { config: Arc::clone(&self.config), server: server_name(host)? })
    }
}
