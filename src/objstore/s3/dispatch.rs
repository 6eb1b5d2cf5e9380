//! Between `rusoto_s3`, which knows what requests and answers look like, and our own exchanges.
//!
//! `rusoto` gives a request as a future. Ours does all its work in the first poll, on the thread that polls, so
//! nothing has to be woken: [`first_poll`] is all the runtime there is. Bodies go around `rusoto`: what is sent is
//! read where it lies, and what comes back is handed to whoever reads it.
//!
//! Invariants: every request is signed with the hash of its payload. An error is ours, with its kind, never one of
//! `rusoto`'s texts. Only headers that were looked at reach `rusoto`'s readers.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http02::{HeaderMap, HeaderName, StatusCode};
use parking_lot::Mutex;
use rusoto_core::request::{
    DispatchSignedRequest, DispatchSignedRequestFuture, HttpDispatchError, HttpResponse,
};
use rusoto_core::signature::{SignedRequest, SignedRequestPayload};
use rusoto_core::{ByteStream, Client, Region, RusotoError};
use rusoto_s3::S3Client;
use sha2::{Digest, Sha256};
use ureq::http::Request;

use super::answer::{
    DOCUMENT_BYTES_MAX, check_document, error_in, refusal, refused, says_md5_is_missing,
    says_payload_differs, says_token_expired,
};
use super::credentials::Provider;
use super::http::{Answer, Http, Payload};
use super::sign::{Signed, sign};
use crate::durable::hex;
use crate::objstore::error::StoreCause;
use crate::thread::{Until, catch};

/// A payload from this size on waits for the server's word that it wants it. A server that refuses a request
/// without reading the payload closes the connection, and its reason would be lost.
const EXPECT_FROM_BYTES: u64 = 64 * 1024;
/// Headers that `rusoto` may read, and whether they are numbers. Others it would read too, some of them as numbers.
const HEADERS: [(&str, bool); 3] = [("content-length", true), ("content-range", false), ("etag", false)];

/// Where requests go, and as whom.
pub(super) struct Server {
    pub(super) http: Arc<Http>,
    pub(super) provider: Provider,
    /// `http` or `https`.
    pub(super) scheme: String,
    /// Name and port.
    pub(super) host: String,
    pub(super) bucket: String,
    pub(super) region: String,
    /// The bucket is the first segment of the path, not the first label of the name.
    pub(super) path_style: bool,
    pub(super) waits_for_continue: AtomicBool,
    /// It refused a payload that came without its MD5, as those do whose buckets retain objects.
    pub(super) wants_md5: AtomicBool,
}

/// A payload and its hash.
#[derive(Clone)]
pub(super) struct HashedPayload {
    pub(super) payload: Payload,
    pub(super) sha256: [u8; 32],
}

/// One call: what goes out beside `rusoto`'s request, and what comes back beside its answer.
struct Call {
    server: Arc<Server>,
    until: Until,
    payload: Option<HashedPayload>,
    /// Headers that `rusoto` does not know.
    headers: Vec<(&'static str, String)>,
    /// What the outermost element of the document that is to come may be; `None` where none is to come.
    document: Option<&'static [&'static str]>,
    /// The body of the answer is not a document but content.
    wants_content: bool,
    came: Mutex<Came>,
}

#[derive(Default)]
struct Came {
    error: Option<StoreCause>,
    content: Option<Answer>,
}

/// A call in the making.
pub(super) struct Requests {
    call: Call,
}

impl Requests {
    pub(super) fn new(server: &Arc<Server>, until: &Until) -> Self {
        Self {
            call: Call {
                server: Arc::clone(server),
                until: until.clone(),
                payload: None,
                headers: Vec::new(),
                document: None,
                wants_content: false,
                came: Mutex::default(),
            },
        }
    }

    pub(super) fn with_payload(mut self, payload: HashedPayload) -> Self {
        self.call.payload = Some(payload);
        self
    }

    pub(super) fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.call.headers.push((name, value.to_owned()));
        self
    }

    /// The answer has to be a document with one of these as its outermost element.
    pub(super) fn for_document(mut self, roots: &'static [&'static str]) -> Self {
        self.call.document = Some(roots);
        self
    }

    /// Makes the one request that `ask` asks for.
    pub(super) fn send<T, E>(
        self,
        ask: impl for<'c> FnOnce(&'c S3Client) -> Asked<'c, T, E>,
    ) -> Result<T, StoreCause> {
        self.exchange(ask).map(|(output, _)| output)
    }

    /// Makes the one request that `ask` asks for, and gives the answer whose body is content.
    pub(super) fn fetch<T, E>(
        mut self,
        ask: impl for<'c> FnOnce(&'c S3Client) -> Asked<'c, T, E>,
    ) -> Result<(T, Answer), StoreCause> {
        self.call.wants_content = true;
        let (output, content) = self.exchange(ask)?;
        let content = content.ok_or_else(|| StoreCause::Answer("it has no content".to_owned()))?;
        Ok((output, content))
    }

    fn exchange<T, E>(
        self,
        ask: impl for<'c> FnOnce(&'c S3Client) -> Asked<'c, T, E>,
    ) -> Result<(T, Option<Answer>), StoreCause> {
        let server = &self.call.server;
        let endpoint = format!("{}://{}", server.scheme, server.host);
        let region = Region::Custom { name: server.region.clone(), endpoint };
        let call = Arc::new(self.call);
        let client = S3Client::new_with_client(Client::new_not_signing(Arc::clone(&call)), region);
        // What a server sends was looked at. Should that have missed something, it is still no panic of the host's.
        let polled = catch("s3", || first_poll(ask(&client)));
        let came = std::mem::take(&mut *call.came.lock());
        match (polled, came.error) {
            (_, Some(cause)) => Err(cause),
            (Ok(Some(Ok(output))), None) => Ok((output, came.content)),
            (Ok(Some(Err(_))), None) => {
                Err(StoreCause::Answer("its document is not the one for this call".to_owned()))
            }
            (Ok(None), None) => Err(StoreCause::Answer("it did not come with the call".to_owned())),
            (Err(panicked), None) => {
                Err(StoreCause::Answer(format!("it cannot be read: {}", panicked.message)))
            }
        }
    }
}

/// A request of `rusoto_s3` that is yet to be made.
type Asked<'c, T, E> = Pin<Box<dyn Future<Output = Result<T, RusotoError<E>>> + Send + 'c>>;

/// The output of a future that does all its work in its first poll.
fn first_poll<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

impl DispatchSignedRequest for Call {
    fn dispatch(
        &self,
        request: SignedRequest,
        _: Option<std::time::Duration>,
    ) -> DispatchSignedRequestFuture {
        let answer = self.run(request).map_err(|cause| {
            self.came.lock().error = Some(cause);
            HttpDispatchError::new(String::new())
        });
        Box::pin(std::future::ready(answer))
    }
}

impl Call {
    fn run(&self, request: SignedRequest) -> Result<HttpResponse, StoreCause> {
        let is_look = request.method == "HEAD";
        let answer = self.ask(request)?;
        let status = answer.status;
        if !(200..300).contains(&status) {
            return Err(self.refused(answer, is_look));
        }
        // The answer to a look has no body.
        if let Some(why) = answer.changed().filter(|_| !is_look) {
            return Err(StoreCause::Answer(why));
        }
        let mut headers: HeaderMap<String> = HeaderMap::default();
        for (name, is_number) in HEADERS {
            let Some(value) = answer.header(name) else { continue };
            if is_number && value.parse::<i64>().is_err() {
                return Err(StoreCause::Answer(format!("its header {name} is {value:?}")));
            }
            headers.insert(HeaderName::from_static(name), value.to_owned());
        }
        let body = if self.wants_content {
            self.came.lock().content = Some(answer);
            Vec::new()
        } else {
            let document = answer.read_all(DOCUMENT_BYTES_MAX)?;
            // Work that takes long is answered with a status before its outcome is known.
            if let Some((code, message)) = error_in(&document) {
                return Err(refused(500, code, message, None));
            }
            match self.document {
                Some(expected) => {
                    check_document(&document, expected)?;
                    // Blanks, sent to keep the connection, may stand before it, where no document may have any.
                    document.trim_ascii().to_vec()
                }
                None => Vec::new(),
            }
        };
        let status = StatusCode::from_u16(status)
            .map_err(|_| StoreCause::Answer(format!("its status is {status}")))?;
        Ok(HttpResponse { status, headers, body: ByteStream::from(body) })
    }

    /// Signs and sends the request, with our payload or with `rusoto`'s document.
    fn ask(&self, request: SignedRequest) -> Result<Answer, StoreCause> {
        let server = &self.server;
        let credentials = server.provider.get(&server.http, &self.until)?;
        let (host, path) = server.place(&request.canonical_uri);
        let payload = self.payload.clone().or_else(|| match request.payload {
            Some(SignedRequestPayload::Buffer(document)) if !document.is_empty() => Some(HashedPayload {
                sha256: Sha256::digest(&document).into(),
                payload: Payload::Bytes(Arc::from(&*document)),
            }),
            // Said to be empty, because else the client would announce pieces, which many servers refuse.
            _ if ["POST", "PUT"].contains(&request.method.as_str()) => Some(HashedPayload {
                sha256: Sha256::digest([]).into(),
                payload: Payload::Bytes(Arc::from([])),
            }),
            _ => None,
        });
        let sha256 = payload.as_ref().map_or_else(|| Sha256::digest([]).into(), |payload| payload.sha256);
        let mut headers = BTreeMap::from([("host".to_owned(), host.clone())]);
        for (name, values) in &request.headers {
            let is_ours = matches!(name.as_str(), "host" | "content-length" | "authorization");
            let is_for_payload = name == "content-type" && payload.is_none();
            if let (false, Some(value)) = (is_ours || is_for_payload, values.first()) {
                headers.insert(name.clone(), String::from_utf8_lossy(value).into_owned());
            }
        }
        headers.extend(self.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        if let Some(payload) = self.payload.as_ref().filter(|_| server.wants_md5.load(Ordering::Relaxed)) {
            headers.insert("content-md5".to_owned(), STANDARD.encode(payload.payload.md5(&self.until)?));
        }
        let query = request.canonical_query_string.as_str();
        let signed = Signed {
            method: &request.method,
            path: &path,
            query,
            payload: &hex(&sha256),
            region: &server.region,
            service: "s3",
        };
        if let Some(credentials) = &credentials {
            sign(&signed, &mut headers, credentials, SystemTime::now());
        }
        let question = if query.is_empty() { String::new() } else { format!("?{query}") };
        let uri = format!("{}://{host}{path}{question}", server.scheme);
        let mut builder = Request::builder().method(request.method.as_str()).uri(uri);
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            builder = builder.header(name, value);
        }
        let length_bytes = payload.as_ref().map(|payload| payload.payload.length_bytes());
        if let Some(length_bytes) = length_bytes {
            builder = builder.header("content-length", length_bytes);
        }
        let waits = length_bytes.is_some_and(|length_bytes| length_bytes >= EXPECT_FROM_BYTES)
            && server.waits_for_continue.load(Ordering::Relaxed);
        if waits {
            builder = builder.header("expect", "100-continue");
        }
        let built = builder
            .body(())
            .map_err(|e| StoreCause::Endpoint(format!("cannot make a request to {host}: {e}")))?;
        let sent = server.http.send(built, payload.as_ref().map(|payload| &payload.payload), &self.until);
        self.learn(waits, sent)
    }

    /// Whether to wait for a server's word before a payload: not where it says nothing, and again where that may
    /// have lost its reason for a refusal.
    fn learn(&self, waited: bool, sent: Result<(Answer, bool), StoreCause>) -> Result<Answer, StoreCause> {
        let waits = &self.server.waits_for_continue;
        match sent {
            Ok((answer, has_continued)) => {
                if waited && !has_continued && (200..300).contains(&answer.status) {
                    waits.store(false, Ordering::Relaxed);
                }
                Ok(answer)
            }
            Err(cause) => {
                if matches!(cause, StoreCause::Connection(_)) {
                    waits.store(true, Ordering::Relaxed);
                }
                Err(cause)
            }
        }
    }

    fn refused(&self, answer: Answer, is_look: bool) -> StoreCause {
        // AWS names the region of a bucket where a request went to another one.
        let region = answer.header("x-amz-bucket-region").map(str::to_owned);
        let other_region = region.filter(|region| *region != self.server.region);
        let mut cause = refusal(answer, is_look);
        let has_expired = other_region.is_none() && says_token_expired(&cause);
        let has_other_bytes = says_payload_differs(&cause);
        let lacks_md5 = self.payload.is_some() && says_md5_is_missing(&cause);
        if let StoreCause::Refused { is_temporary, message, .. } = &mut cause {
            if let Some(region) = other_region {
                let is_in = format!("the bucket is in the region {region}, not in {}", self.server.region);
                *message = if message.is_empty() { is_in } else { format!("{message} ({is_in})") };
            }
            // Others can be had, so another try helps.
            *is_temporary |= has_expired && self.server.provider.forget();
            // A document of a request is not read from a file: it was changed on its way.
            *is_temporary |= has_other_bytes && self.payload.is_none();
            // The first one says what all others need.
            self.server.wants_md5.fetch_or(lacks_md5, Ordering::Relaxed);
            *is_temporary |= lacks_md5;
        }
        cause
    }
}

impl Server {
    /// Host and path of a request whose path begins with the bucket.
    fn place(&self, path: &str) -> (String, String) {
        if self.path_style {
            return (self.host.clone(), path.to_owned());
        }
        let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(self.bucket.as_str()));
        let rest = rest.filter(|rest| !rest.is_empty()).unwrap_or("/");
        (format!("{}.{}", self.bucket, self.host), rest.to_owned())
    }
}
