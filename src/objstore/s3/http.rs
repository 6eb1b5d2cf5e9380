//! One HTTP exchange after the other, on the caller's thread.
//!
//! Requests go out and answers come in on the thread that asks; nothing is started for them. Each exchange has a
//! connection of its own for as long as it lasts, so that its limit can end it without touching another; idle ones
//! are kept for the next.
//!
//! Invariants: no exchange outlasts its [`Until`] by more than a connect that is under way ([`CONNECT_LIMIT`]); none
//! waits longer than it was told to for a peer that says nothing. Neither proxies nor anything else is taken from the
//! environment. Bodies are asked for as they are; one that the client may have unpacked or recoded is told from one that
//! it has not touched ([`Answer::changed`]).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use parking_lot::Mutex;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::{HeaderMap, Request, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, BodyReader, SendBody};

use super::names::Names;
use super::watch::{Ticket, Watch};
use crate::objstore::error::StoreCause;
use crate::objstore::hash::read_pieces;
use crate::thread::Until;

/// The longest time to a connection, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The longest wait for a server's word that it wants the body. One that never gives it costs this once.
const CONTINUE_LIMIT: Duration = Duration::from_millis(500);
/// How long an idle connection is used again; servers close them after a little more.
const IDLE_LIMIT: Duration = Duration::from_secs(15);
/// The encoding of content that is not encoded.
const PLAIN: &str = "identity";
/// What a connection takes from its socket at once, and gives to it: more than the 64 KiB that the head of an answer may
/// have, so that a longer one is told as such. glibc has pieces from 128 KiB on begin where the kernel's copies are slow
/// on some CPUs, see [`PageBuffer`](crate::durable::PageBuffer).
const BUFFER_BYTES: usize = 96 * 1024;
/// Idle connections that are kept.
const IDLE_MAX: usize = 64;

/// What a request carries.
#[derive(Clone)]
pub(super) enum Payload {
    Bytes(Arc<[u8]>),
    /// Bytes of a file, read by position while they are sent.
    File {
        file: Arc<File>,
        offset_bytes: u64,
        length_bytes: u64,
    },
}

pub(super) struct Http {
    config: Config,
    lanes: Mutex<Vec<Lane>>,
    names: Names,
    watch: Watch,
}

/// A client with at most one connection.
struct Lane {
    agent: Agent,
    addresses: Addresses,
}

/// Where the lane's next connection goes: names were resolved before.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<Vec<SocketAddr>>>);

impl Resolver for Addresses {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut resolved = self.empty();
        for address in self.0.lock().iter().take(16) {
            resolved.push(*address);
        }
        Ok(resolved)
    }
}

/// An answer whose body has not been read yet.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    // Before the call: the connection has to be back in its lane when the lane is given back.
    body: BodyReader<'static>,
    call: Call,
}

/// A lane that is in use, and its limit.
struct Call {
    lane: Option<Lane>,
    ticket: Ticket,
    until: Until,
    // Last: where this is the last hold on it, its threads are joined, and they wait for the ticket to go.
    http: Arc<Http>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let is_good = self.ticket.close();
        let mut lanes = self.http.lanes.lock();
        if let Some(lane) = self.lane.take().filter(|_| is_good && lanes.len() < IDLE_MAX) {
            lanes.push(lane);
        }
    }
}

impl Http {
    /// A client that trusts the usual authorities, or only those whose certificates are given as PEM.
    pub(super) fn start(
        authorities: Option<&[u8]>,
        silence_limit: Duration,
    ) -> Result<Arc<Self>, StoreCause> {
        let roots = authorities.map_or(Ok(RootCerts::WebPki), read_authorities)?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .accept_encoding(PLAIN)
            .accept(AutoHeaderValue::None)
            .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE_LIMIT)
            .timeout_connect(Some(CONNECT_LIMIT.min(silence_limit)))
            .timeout_await_100(Some(CONTINUE_LIMIT))
            .timeout_recv_response(Some(silence_limit))
            .timeout_per_read(Some(silence_limit))
            .timeout_per_write(Some(silence_limit))
            .build();
        Ok(Arc::new(Self { config, lanes: Mutex::default(), names: Names::start()?, watch: Watch::start()? }))
    }

    fn lane(&self) -> Lane {
        self.lanes.lock().pop().unwrap_or_else(|| {
            let addresses = Addresses::default();
            let connector = DefaultConnector::default();
            Lane { agent: Agent::with_parts(self.config.clone(), connector, addresses.clone()), addresses }
        })
    }

    /// Sends a request and waits for the head of its answer. The payload's length has to be in the headers. Also
    /// gives whether the payload was asked for, or sent, without waiting for the server's word in vain.
    pub(super) fn send(
        self: &Arc<Self>,
        request: Request<()>,
        payload: Option<&Payload>,
        until: &Until,
    ) -> Result<(Answer, bool), StoreCause> {
        until.check()?;
        let began = Instant::now();
        let uri = request.uri();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let host = uri.host().unwrap_or_default().to_owned();
        let addresses = self.names.resolve(&host, port, until)?;
        let lane = self.lane();
        *lane.addresses.0.lock() = addresses;
        let (agent, ticket) = (lane.agent.clone(), self.watch.watch(&lane.agent, until)?);
        let call = Call { http: Arc::clone(self), lane: Some(lane), ticket, until: until.clone() };
        let mut sending =
            payload.map(|payload| Sending { payload, position: 0, until, first_read: None, failed: None });
        let ran = match sending.as_mut() {
            Some(sending) => {
                let request = request.map(|()| SendBody::from_reader(sending));
                agent
                    .run(agent.configure_request(request).timeout_connect(Some(connect_limit(until))).build())
            }
            None => agent
                .run(agent.configure_request(request).timeout_connect(Some(connect_limit(until))).build()),
        };
        match ran {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let body = body.into_with_config().limit(u64::MAX).reader();
                let first_read = sending.and_then(|sending| sending.first_read);
                let in_time = first_read.is_none_or(|at| at.duration_since(began) < CONTINUE_LIMIT);
                Ok((Answer { status: parts.status.as_u16(), headers: parts.headers, body, call }, in_time))
            }
            Err(error) => match sending.and_then(|sending| sending.failed) {
                Some(cause) => Err(cause),
                None => Err(call.failed(&host, &error)),
            },
        }
    }
}

fn connect_limit(until: &Until) -> Duration {
    let left = until.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Zero would be no limit at all.
    left.unwrap_or(CONNECT_LIMIT).clamp(Duration::from_millis(1), CONNECT_LIMIT)
}

fn read_authorities(pem: &[u8]) -> Result<RootCerts, StoreCause> {
    let refused = |why: String| StoreCause::Endpoint(format!("cannot use the given authorities: {why}"));
    let mut certificates = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| refused(e.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(refused("there is no certificate in the file".to_owned()));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

impl Call {
    fn ended(&self) -> Option<StoreCause> {
        self.ticket.ended(&self.until)
    }

    fn failed(&self, host: &str, error: &ureq::Error) -> StoreCause {
        if let Some(why) = self.ended() {
            return why;
        }
        // A connect ends by its own limit, which is the caller's if that is sooner.
        if let (ureq::Error::Timeout(_), Err(why)) = (error, self.until.check()) {
            return why.into();
        }
        let text = without_prefix(&error.to_string());
        match error {
            // An alert of the peer's and a certificate that is not accepted come as errors of the socket.
            _ if text.contains("not valid for name") => StoreCause::Endpoint(format!(
                "cannot trust {host}: {text}; name the server as its certificate does, and the bucket in the path \
                 where its name is a part of that one"
            )),
            _ if text.contains("certificate") => {
                StoreCause::Endpoint(format!("cannot trust {host}: {text}; name its authority"))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                StoreCause::Endpoint(format!("cannot talk to {host}: {text}"))
            }
            _ => StoreCause::Connection(format!("the exchange with {host} failed: {text}")),
        }
    }
}

/// The client names the kind of error first, which says nothing to a reader.
fn without_prefix(text: &str) -> String {
    text.strip_prefix("io: ").unwrap_or(text).to_owned()
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Why the body may have other bytes than came, if it may. The client recodes text of another character set than
    /// UTF-8, and unpacks what is packed, where any crate of the program has switched that on. The former it does not
    /// tell; of what it unpacks it drops encoding and length, so that no content can be taken for whole.
    pub(super) fn changed(&self) -> Option<String> {
        let encoding = self.header("content-encoding").filter(|encoding| *encoding != PLAIN);
        if let Some(encoding) = encoding {
            return Some(format!("its content is encoded as {encoding}, which was not asked for"));
        }
        let (kind, parameters) = self.header("content-type")?.split_once(';')?;
        let set = parameters
            .split(';')
            .filter_map(|parameter| parameter.trim().strip_prefix("charset="))
            .next_back()?;
        let is_recoded = kind.starts_with("text/") && !set.trim_matches('"').eq_ignore_ascii_case("utf-8");
        is_recoded.then(|| format!("its content is text in the character set {set}"))
    }

    /// Reads some of the body, and fills `buffer` as far as the body goes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, StoreCause> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.body.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(match self.call.ended() {
                        Some(why) => why,
                        None => StoreCause::Connection(format!(
                            "the answer broke off: {}",
                            without_prefix(&e.to_string())
                        )),
                    });
                }
            }
        }
        // A cancel while bytes flow: the watch has closed the connection, and what is buffered need not be read.
        self.call.ended().map_or(Ok(filled), Err)
    }

    /// The whole body, which may have at most `max_bytes`.
    pub(super) fn read_all(mut self, max_bytes: usize) -> Result<Vec<u8>, StoreCause> {
        let mut all = vec![0; max_bytes.saturating_add(1).min(16 * 1024)];
        let mut filled = 0;
        loop {
            let room = all.get_mut(filled..).unwrap_or_default();
            let count = self.fill(room)?;
            filled += count;
            if filled > max_bytes {
                return Err(StoreCause::Answer(format!("it has more than {max_bytes} bytes")));
            }
            if filled < all.len() {
                all.truncate(filled);
                return Ok(all);
            }
            all.resize(all.len().saturating_mul(2).min(max_bytes.saturating_add(1)), 0);
        }
    }
}

/// Reads a payload for the client. It never ends early without an error: the client would wait for the rest for
/// ever, busily.
struct Sending<'a> {
    payload: &'a Payload,
    position: u64,
    until: &'a Until,
    first_read: Option<Instant>,
    failed: Option<StoreCause>,
}

impl Sending<'_> {
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, StoreCause> {
        self.until.check()?;
        self.first_read.get_or_insert_with(Instant::now);
        let count = match self.payload {
            Payload::Bytes(bytes) => {
                let rest = usize::try_from(self.position).ok().and_then(|at| bytes.get(at..));
                let mut rest = rest.unwrap_or_default();
                rest.read(buffer)?
            }
            Payload::File { file, offset_bytes, length_bytes } => {
                let rest = usize::try_from(length_bytes - self.position).unwrap_or(usize::MAX);
                let room = buffer.len().min(rest);
                let wanted = buffer.get_mut(..room).unwrap_or_default();
                let count = file.read_at(wanted, offset_bytes + self.position).map_err(StoreCause::Body)?;
                if count == 0 && room > 0 {
                    let (expected_bytes, found_bytes) = (*length_bytes, self.position);
                    return Err(StoreCause::BodyTooShort { expected_bytes, found_bytes });
                }
                count
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}

impl Read for Sending<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer).map_err(|cause| {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, cause.to_string());
            self.failed = Some(cause);
            error
        })
    }
}

impl Payload {
    pub(super) fn length_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length_bytes, .. } => *length_bytes,
        }
    }

    pub(super) fn md5(&self, until: &Until) -> Result<[u8; 16], StoreCause> {
        let mut hash = Md5::new();
        match self {
            Self::Bytes(bytes) => hash.update(bytes),
            Self::File { file, offset_bytes, length_bytes } => {
                let range = *offset_bytes..offset_bytes.saturating_add(*length_bytes);
                read_pieces(file, range, until, |piece| {
                    hash.update(piece);
                    Ok::<_, StoreCause>(())
                })?;
            }
        }
        Ok(hash.finalize().into())
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}
