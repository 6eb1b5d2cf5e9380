//! A bucket of an S3 server as an object store.
//!
//! `rusoto_s3` knows the requests and the answers; the exchanges are blocking and our own (`dispatch`, `http`), so
//! there is no runtime. A call runs on its caller's thread. A store has two threads besides, from its opening to
//! its dropping: `dm-s3-watch` ends calls whose limit has ended, `dm-s3-names` resolves names.
//!
//! Nothing is taken for granted of a server that is not asked of each answer: lengths and entity tags have to be
//! there and right, a success may hold an error, and conditions on a `put` may be ignored. What a server checks is
//! the hash of each payload, which is signed.
//!
//! Invariant: what is stored is the bytes as they are: no encoding, no other type than `application/octet-stream`.

mod answer;
mod credentials;
mod dispatch;
mod http;
mod names;
mod objects;
mod parts;
mod sign;
mod watch;

pub use credentials::{CredentialSource, Credentials, Secret};

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::Uri;

use self::answer::says_payload_differs;
use self::credentials::Provider;
use self::dispatch::{HashedPayload, Requests, Server};
use self::http::{Http, Payload};
use super::error::{Operation, StoreCause, StoreError};
use super::hash::{ContentHash, HashingWriter, read_pieces};
use super::key::{KEY_BYTES_MAX, ObjectKey};
use super::store::Body;
use crate::thread::Until;

/// Calls at the same time, unless the host says otherwise.
pub const PARALLEL_DEFAULT: usize = 8;

/// The longest silence of a server, unless the host says otherwise. Some requests are much work for one.
const SILENCE_DEFAULT: Duration = Duration::from_secs(60);

/// Where a store lies and how it is talked to.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The bucket. It is not created.
    pub bucket: String,
    /// Everything is below this key and a slash; `None` is the whole bucket.
    pub prefix: Option<ObjectKey>,
    /// The region, which is part of what is signed.
    pub region: String,
    /// URL of the server, without a path; `None` is AWS in the region.
    pub endpoint: Option<String>,
    /// Whether the bucket is named in the path (`https://host/bucket/key`), as many servers other than AWS want it,
    /// and not in the host (`https://bucket.host/key`). A host that is an address is always spoken to so.
    pub path_style: bool,
    /// Certificates, as PEM, of the only authorities that are trusted; `None` trusts those that browsers trust.
    pub authorities_pem: Option<Vec<u8>>,
    /// Where credentials are looked for, in order. None at all: requests are not signed.
    pub credentials: Vec<CredentialSource>,
    /// How the server encrypts what it stores.
    pub encryption: Encryption,
    /// The class that objects are stored in, as S3 names it; `None` is the bucket's usual one.
    pub storage_class: Option<String>,
    /// Calls that are made at the same time for many files, or parts of one.
    pub parallel: usize,
    /// The longest time in which a server neither takes nor gives a byte, before a call fails for the moment.
    pub silence_limit: Duration,
}

/// How a server encrypts what it stores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket is set.
    #[default]
    Bucket,
    /// With keys that S3 keeps: `AES256`.
    S3,
    /// With a key of KMS: `aws:kms`; without a name the account's own.
    Kms(Option<String>),
}

/// An [`ObjectStore`](super::ObjectStore) in a bucket.
pub struct S3Store {
    server: Arc<Server>,
    prefix: Option<ObjectKey>,
    encryption: Encryption,
    storage_class: Option<String>,
    parallel: usize,
    url: String,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("url", &self.url).finish_non_exhaustive()
    }
}

impl S3Config {
    /// A bucket of AWS, with nothing special, and no credentials.
    pub fn new(bucket: impl Into<String>, region: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: None,
            region: region.into(),
            endpoint: None,
            path_style: false,
            authorities_pem: None,
            credentials: Vec::new(),
            encryption: Encryption::Bucket,
            storage_class: None,
            parallel: PARALLEL_DEFAULT,
            silence_limit: SILENCE_DEFAULT,
        }
    }

    /// The store's URL, and where its server is another than AWS that too: buckets of two servers are two buckets,
    /// whatever their names are.
    fn url(&self) -> String {
        let prefix = self.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
        let server = self.endpoint.as_ref();
        let server = server.map(|endpoint| format!(" at {}", shown(endpoint).trim_end_matches('/')));
        format!("s3://{}{prefix}{}", self.bucket, server.unwrap_or_default())
    }
}

impl S3Store {
    /// Makes the store ready for calls and starts its threads. The server is not asked yet.
    pub fn open(config: S3Config) -> Result<Self, StoreError> {
        let url = config.url();
        Self::make(config, url.clone()).map_err(|cause| StoreError::new(Operation::Open, None, url, cause))
    }

    fn make(config: S3Config, url: String) -> Result<Self, StoreCause> {
        check_words(&config)?;
        let (scheme, host) = match &config.endpoint {
            Some(endpoint) => read_endpoint(endpoint)?,
            None => ("https".to_owned(), host_of_aws(&config.region)),
        };
        let server = Server {
            http: Http::start(config.authorities_pem.as_deref(), config.silence_limit)?,
            provider: Provider::new(config.credentials),
            scheme,
            bucket: config.bucket,
            region: config.region,
            path_style: config.path_style || is_address(&host),
            host,
            waits_for_continue: AtomicBool::new(true),
            wants_md5: AtomicBool::new(false),
        };
        Ok(Self {
            server: Arc::new(server),
            prefix: config.prefix,
            encryption: config.encryption,
            storage_class: config.storage_class,
            parallel: config.parallel.max(1),
            url,
        })
    }

    fn requests(&self, until: &Until) -> Requests {
        Requests::new(&self.server, until)
    }

    fn error(&self, operation: Operation, key: Option<&ObjectKey>, cause: StoreCause) -> StoreError {
        StoreError::new(operation, key, self.url.clone(), cause)
    }

    /// The object's key in the bucket.
    fn full_key(&self, key: &ObjectKey) -> Result<String, StoreCause> {
        let full = match &self.prefix {
            Some(prefix) => format!("{prefix}/{key}"),
            None => key.to_string(),
        };
        if full.len() > KEY_BYTES_MAX {
            return Err(StoreCause::Endpoint(format!(
                "with the archive's prefix the key has more than {KEY_BYTES_MAX} bytes; use a shorter prefix"
            )));
        }
        Ok(full)
    }

    /// What all keys of the store, or of a folder of it, begin with in the bucket.
    fn full_prefix(&self, folder: Option<&ObjectKey>) -> String {
        let folders = [self.prefix.as_ref(), folder];
        folders.into_iter().flatten().fold(String::new(), |prefix, folder| prefix + folder.as_str() + "/")
    }

    /// The store's own key of one in the bucket; `None` for what is none of ours.
    fn own_key(&self, full: &str) -> Option<ObjectKey> {
        let rest = full.strip_prefix(&self.full_prefix(None))?;
        ObjectKey::new(rest).ok()
    }
}

/// Words that become parts of names and paths.
fn check_words(config: &S3Config) -> Result<(), StoreCause> {
    let is_word =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let refused = |what: &str, text: &str| {
        Err(StoreCause::Endpoint(format!("{text:?} is no {what}: letters, digits, dots and dashes make one")))
    };
    if !is_word(&config.bucket) {
        return refused("bucket", &config.bucket);
    }
    if !is_word(&config.region) {
        return refused("region", &config.region);
    }
    Ok(())
}

fn host_of_aws(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{suffix}")
}

fn read_endpoint(endpoint: &str) -> Result<(String, String), StoreCause> {
    let refused = || {
        StoreCause::Endpoint(format!(
            "{:?} is no endpoint: give http or https, a host and perhaps a port, as in https://s3.example.org:9000",
            shown(endpoint)
        ))
    };
    let uri: Uri = endpoint.parse().map_err(|_| refused())?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme)).ok_or_else(refused)?;
    let authority =
        uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(refused)?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(refused());
    }
    // The client does not send the port that goes without saying, so it is not signed either.
    let implied = if scheme == "https" { 443 } else { 80 };
    let host = if authority.port_u16() == Some(implied) { authority.host() } else { authority.as_str() };
    Ok((scheme.to_owned(), host.to_owned()))
}

/// An endpoint without the user and the password that somebody may have put into it.
fn shown(endpoint: &str) -> String {
    match endpoint.rsplit_once('@') {
        None => endpoint.to_owned(),
        Some((login, rest)) => {
            let scheme = login.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}…@{rest}")
        }
    }
}

/// Whether a host, with its port if it has one, is no name, before which nothing can stand.
fn is_address(host: &str) -> bool {
    host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok() || host.parse::<SocketAddrV4>().is_ok()
}

/// What is sent for a body, with its hash. One chunk goes with the hash that it was given, which the server
/// compares; of other bodies the hash is not known yet.
fn payload(body: Body<'_>, until: &Until) -> Result<HashedPayload, StoreCause> {
    let (file, offset_bytes, length_bytes, chunks) = match body {
        Body::Bytes(bytes) => {
            let sha256 = Sha256::digest(bytes).into();
            return Ok(HashedPayload { payload: Payload::Bytes(Arc::from(bytes)), sha256 });
        }
        Body::File { file, offset_bytes, length_bytes, chunks } => (file, offset_bytes, length_bytes, chunks),
    };
    let sha256 = match chunks {
        [only] => only.0,
        _ => hash_all(body, until)?,
    };
    let file = Arc::new(file.try_clone().map_err(StoreCause::Body)?);
    Ok(HashedPayload { payload: Payload::File { file, offset_bytes, length_bytes }, sha256 })
}

/// Reads the body, compares it with its chunks' hashes and gives the hash of all of it.
fn hash_all(body: Body<'_>, until: &Until) -> Result<[u8; 32], StoreCause> {
    let Body::File { file, offset_bytes, length_bytes, chunks } = body else {
        return Ok(Sha256::digest([]).into());
    };
    let mut all = HashingWriter::new(std::io::sink());
    let mut whole = Sha256::new();
    let range = offset_bytes..offset_bytes.saturating_add(length_bytes);
    read_pieces(file, range, until, |piece| {
        whole.update(piece);
        Ok::<_, StoreCause>(std::io::Write::write_all(&mut all, piece)?)
    })?;
    let is_as_promised = all.finish().0.hash == ContentHash::of_chunks(chunks);
    if is_as_promised { Ok(whole.finalize().into()) } else { Err(StoreCause::BodyChanged) }
}

/// Where the server got other bytes than were signed: the file was changed, or they were on their way.
fn blame(body: Body<'_>, cause: StoreCause, until: &Until) -> StoreCause {
    if !says_payload_differs(&cause) {
        return cause;
    }
    if let Err(of_file) = hash_all(body, until) {
        return of_file;
    }
    match cause {
        StoreCause::Refused { status, code, message, retry_after, .. } => {
            StoreCause::Refused { status, code, message, retry_after, is_temporary: true }
        }
        other => other,
    }
}

/// The entity tag that an answer has to have.
fn tag(tag: Option<String>) -> Result<String, StoreCause> {
    tag.filter(|tag| !tag.trim_matches('"').is_empty())
        .ok_or_else(|| StoreCause::Answer("it has no entity tag".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_that_a_scheme_has_by_itself_is_no_part_of_the_host() {
        for (endpoint, host) in [
            ("https://s3.example.org:443", "s3.example.org"),
            ("http://s3.example.org:80", "s3.example.org"),
            ("http://s3.example.org:443", "s3.example.org:443"),
            ("https://s3.example.org:9000/", "s3.example.org:9000"),
            ("https://[::1]:443", "[::1]"),
            ("https://[::1]", "[::1]"),
        ] {
            let (_, read) = read_endpoint(endpoint).ok().unwrap_or_default();
            assert_eq!(read, host, "{endpoint}");
        }
    }

    #[test]
    fn a_password_in_an_endpoint_is_not_shown() {
        let config = S3Config {
            endpoint: Some("https://backup:hunter2@minio.example:9000".to_owned()),
            ..S3Config::new("bucket", "us-east-1")
        };
        let text = S3Store::open(config).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("https://…@minio.example:9000") && !text.contains("hunter2"), "{text}");
    }
}
