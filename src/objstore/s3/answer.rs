//! What a server's answers mean.
//!
//! Invariant: nothing that a server sends is handed on unless it can be read without a panic: `rusoto` takes
//! numbers out of headers and documents as if they were always well formed, so those are looked at first.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde::Deserialize;

use super::http::Answer;
use crate::objstore::error::StoreCause;

/// The longest document that is read: 1,000 keys of 1,024 bytes, each three times as long when encoded, and more.
pub(super) const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// The document of an error.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ErrorDocument {
    code: String,
    message: String,
}

/// What the server says with a document of an error; `None` where the document is another.
pub(super) fn error_in(document: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(document).ok()?;
    if root(text) != "Error" {
        return None;
    }
    let ErrorDocument { code, message } = quick_xml::de::from_str(text.trim_start()).ok()?;
    Some((code, one_line(&message)))
}

/// The name of the document's outermost element, or nothing.
fn root(text: &str) -> &str {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let text = match text.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, rest)| rest.trim_start()),
        None => text,
    };
    let name = text.strip_prefix('<').unwrap_or_default();
    name.split(['>', '/', ' ', '\t', '\r', '\n']).next().unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Makes an error of an answer whose status says that it is one. An answer to a look at an object never has a document;
/// any other that is about what is not there has one, or it is not the store's: something on the way to it says so of
/// itself.
pub(super) fn refusal(answer: Answer, is_look: bool) -> StoreCause {
    let status = answer.status;
    let retry_after = answer.header("retry-after").and_then(retry_after);
    let date = answer.header("date").map(str::to_owned);
    let kind = answer.header("content-type").map(str::to_owned);
    let document = match answer.read_all(DOCUMENT_BYTES_MAX) {
        Ok(document) => document,
        Err(stopped @ StoreCause::Stopped(_)) => return stopped,
        // The status says enough.
        Err(_) => Vec::new(),
    };
    let Some((code, message)) = error_in(&document) else {
        let came = if is_look { String::new() } else { foreign(&document, kind.as_deref()) };
        if status == 404 && !is_look {
            let code = named(status).to_owned();
            return StoreCause::Refused { status, code, message: came, is_temporary: true, retry_after };
        }
        return refused(status, String::new(), came, retry_after);
    };
    refused(status, code, with_date(message, date), retry_after)
}

/// Characters of a foreign document that an error shows.
const SHOWN: usize = 80;

/// What came in place of a document of S3.
fn foreign(document: &[u8], kind: Option<&str>) -> String {
    let text = one_line(&String::from_utf8_lossy(document));
    if text.is_empty() {
        return "it came without a document of S3".to_owned();
    }
    let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    let kind = kind.map(|kind| format!(" of the type {kind}")).unwrap_or_default();
    format!("what came{kind} is no document of S3: {shown:?}")
}

/// A clock that is off shows only in the server's own time.
fn with_date(message: String, date: Option<String>) -> String {
    match date {
        Some(date) if message.contains("request time") || message.contains("too large") => {
            format!("{message} (the server's clock says {date})")
        }
        _ => message,
    }
}

/// The error that a status and a code stand for.
pub(super) fn refused(
    status: u16,
    code: String,
    message: String,
    retry_after: Option<Duration>,
) -> StoreCause {
    match (status, code.as_str()) {
        (404, "NoSuchKey" | "NoSuchUpload" | "NotFound" | "") => return StoreCause::NotFound,
        (412, _) => return StoreCause::Exists,
        _ => {}
    }
    let is_temporary = match code.as_str() {
        "SlowDown"
        | "InternalError"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "IncompleteBody"
        | "Busy" => true,
        _ => matches!(status, 408 | 429 | 500 | 502 | 503 | 504 | 509),
    };
    let code = if code.is_empty() { named(status).to_owned() } else { code };
    StoreCause::Refused { status, code, message, is_temporary, retry_after }
}

/// A request that is refused without a reason.
const BAD_REQUEST: &str = "BadRequest";

/// A word for a status that came without a document, as it does for every look at an object.
fn named(status: u16) -> &'static str {
    match status {
        301 => "PermanentRedirect",
        307 => "TemporaryRedirect",
        400 => BAD_REQUEST,
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        408 => "RequestTimeout",
        416 => "InvalidRange",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        _ => "an error without a code",
    }
}

/// Whether the server says that the bytes it got are not those that were signed.
pub(super) fn says_payload_differs(cause: &StoreCause) -> bool {
    let codes = ["XAmzContentSHA256Mismatch", "InvalidDigest", "BadDigest"];
    matches!(cause, StoreCause::Refused { code, .. } if codes.contains(&code.as_str()))
}

/// Whether the server says that it wants the MD5 of a payload beside its SHA-256: the bucket retains objects, by Object
/// Lock, and takes none otherwise.
pub(super) fn says_md5_is_missing(cause: &StoreCause) -> bool {
    matches!(cause, StoreCause::Refused { status: 400, message, .. } if message.contains("Content-MD5"))
}

/// Whether the server says that the credentials are too old, or may say so: a look at an object is answered without
/// a document, and then this is all that is said.
pub(super) fn says_token_expired(cause: &StoreCause) -> bool {
    let codes =
        ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", BAD_REQUEST];
    matches!(cause, StoreCause::Refused { code, .. } if codes.contains(&code.as_str()))
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    let wait = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()?,
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// Elements of the documents that are read as numbers, and as truth values.
const NUMBERS: [&str; 10] = [
    "Size",
    "KeyCount",
    "MaxKeys",
    "PartNumber",
    "PartNumberMarker",
    "NextPartNumberMarker",
    "MaxParts",
    "MaxUploads",
    "PartsCount",
    "TotalPartsCount",
];
const TRUTHS: [&str; 2] = ["IsTruncated", "DeleteMarker"];

/// Whether the document is the one that was asked for, whole and well formed, with numbers where numbers belong.
/// `rusoto` reads another document, or none, as one without content, panics at what should be a number and is not,
/// and reads one whose elements do not close for ever.
pub(super) fn check_document(document: &[u8], expected: &[&str]) -> Result<(), StoreCause> {
    let text = std::str::from_utf8(document)
        .map_err(|_| StoreCause::Answer("its document is no text".to_owned()))?;
    if !expected.contains(&root(text)) {
        return Err(StoreCause::Answer(format!("it is no {}", expected.join(" or "))));
    }
    let broken = |why: &dyn Display| StoreCause::Answer(format!("its document is not well formed: {why}"));
    let mut reader = Reader::from_str(text.trim());
    let mut open: Vec<(String, String)> = Vec::new();
    loop {
        // The reader compares the names of the ends.
        match reader.read_event().map_err(|e| broken(&e))? {
            Event::Start(start) => open.push((name_of(&start), String::new())),
            Event::Empty(empty) => check_value(&name_of(&empty), "")?,
            Event::Text(text) => {
                if let Some((_, value)) = open.last_mut() {
                    value.push_str(&String::from_utf8_lossy(&text));
                }
            }
            Event::End(_) => {
                if let Some((name, value)) = open.pop() {
                    check_value(&name, &value)?;
                }
            }
            Event::Eof if open.is_empty() => return Ok(()),
            Event::Eof => return Err(broken(&"it ends too early")),
            _ => {}
        }
    }
}

fn name_of(start: &BytesStart<'_>) -> String {
    String::from_utf8_lossy(start.local_name().as_ref()).into_owned()
}

fn check_value(name: &str, value: &str) -> Result<(), StoreCause> {
    let is_wrong = (NUMBERS.contains(&name) && value.parse::<i64>().is_err())
        || (TRUTHS.contains(&name) && value.parse::<bool>().is_err());
    if is_wrong { Err(StoreCause::Answer(format!("its document holds a wrong {name}"))) } else { Ok(()) }
}
