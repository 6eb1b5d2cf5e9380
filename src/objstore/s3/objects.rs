//! The calls on whole objects.

use std::io::Write;
use std::ops::Range;

use percent_encoding::percent_decode_str;
use rusoto_s3::{
    Delete, DeleteObjectsRequest, GetObjectOutput, GetObjectRequest, HeadObjectRequest, ListObjectsV2Request,
    ObjectIdentifier, PutObjectRequest, S3,
};

use super::http::Answer;
use super::{Encryption, S3Store, blame, payload, tag};
use crate::objstore::error::{Operation, StoreCause, StoreError};
use crate::objstore::key::ObjectKey;
use crate::objstore::store::{Body, ObjectMeta, ObjectStore, Page, PageMark, PartStore};
use crate::thread::Until;

/// Objects of a page, and of a request to delete them: the most that S3 allows.
const BATCH: usize = 1000;
/// Bytes of content that are handed on at once.
const READ_BYTES: usize = 256 * 1024;

impl S3Store {
    /// The headers for encryption: its kind, and the key.
    pub(super) fn encryption(&self) -> (Option<String>, Option<String>) {
        match &self.encryption {
            Encryption::Bucket => (None, None),
            Encryption::S3 => (Some("AES256".to_owned()), None),
            Encryption::Kms(key) => (Some("aws:kms".to_owned()), key.clone()),
        }
    }

    fn put_object(
        &self,
        key: &ObjectKey,
        body: Body<'_>,
        if_absent: bool,
        until: &Until,
    ) -> Result<(), StoreCause> {
        let (server_side_encryption, ssekms_key_id) = self.encryption();
        let request = PutObjectRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(key)?,
            server_side_encryption,
            ssekms_key_id,
            storage_class: self.storage_class.clone(),
            ..PutObjectRequest::default()
        };
        let mut requests = self.requests(until).with_payload(payload(body, until)?);
        if if_absent {
            requests = requests.with_header("if-none-match", "*");
        }
        let output = requests.send(|client| client.put_object(request));
        tag(output.map_err(|cause| blame(body, cause, until))?.e_tag)?;
        Ok(())
    }

    fn get_object(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreCause> {
        let request = GetObjectRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(key)?,
            range: range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end - 1)),
            ..GetObjectRequest::default()
        };
        let asked = self.requests(until).fetch(|client| client.get_object(request));
        let (output, content) = asked.map_err(|cause| match (cause, &range) {
            (StoreCause::Refused { status: 416, .. }, Some(range)) => {
                StoreCause::OutOfRange { start: range.start, end: range.end }
            }
            (cause, _) => cause,
        })?;
        let (expected_bytes, whole_bytes) = lengths(output, range)?;
        receive(content, expected_bytes, to)?;
        Ok(whole_bytes)
    }

    pub(super) fn head_object(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreCause> {
        let request = HeadObjectRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(key)?,
            ..HeadObjectRequest::default()
        };
        let asked = self.requests(until).send(|client| client.head_object(request));
        let output = match asked {
            Err(StoreCause::NotFound) => return Ok(None),
            asked => asked?,
        };
        tag(output.e_tag)?;
        length(output.content_length).map(Some)
    }

    fn list_objects(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreCause> {
        let prefix = self.full_prefix(folder);
        let request = ListObjectsV2Request {
            bucket: self.server.bucket.clone(),
            prefix: (!prefix.is_empty()).then(|| prefix.clone()),
            continuation_token: after.map(|mark| mark.0.clone()),
            max_keys: Some(1000),
            // Some keys cannot be told in a document otherwise.
            encoding_type: Some("url".to_owned()),
            ..ListObjectsV2Request::default()
        };
        let asked = self.requests(until).for_document(&["ListBucketResult"]);
        let output = asked.send(|client| client.list_objects_v2(request))?;
        let is_encoded = output.encoding_type.as_deref() == Some("url");
        let mut objects = Vec::new();
        for object in output.contents.unwrap_or_default() {
            let key = object.key.ok_or_else(|| StoreCause::Answer("an object has no key".to_owned()))?;
            let key = if is_encoded { decode(&key)? } else { key };
            if !key.starts_with(&prefix) {
                return Err(StoreCause::Answer(format!("it lists {key:?}, which is not below {prefix:?}")));
            }
            if let Some(key) = self.own_key(&key) {
                objects.push(ObjectMeta { key, length_bytes: length(object.size)? });
            }
        }
        // Some servers list folder by folder, where a dash comes behind a slash.
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let next = if output.is_truncated == Some(true) {
            let token = output.next_continuation_token.filter(|token| !token.is_empty());
            Some(token.ok_or_else(|| StoreCause::Answer("it breaks off a listing".to_owned()))?)
        } else {
            None
        };
        Ok(Page { objects, next: next.map(PageMark) })
    }

    fn delete_batch(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        let failed = |key: Option<&ObjectKey>, cause| self.error(Operation::Delete, key, cause);
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            let full = self.full_key(key).map_err(|cause| failed(Some(key), cause))?;
            objects.push(ObjectIdentifier { key: full, version_id: None });
        }
        let request = DeleteObjectsRequest {
            bucket: self.server.bucket.clone(),
            delete: Delete { objects, quiet: Some(true) },
            ..DeleteObjectsRequest::default()
        };
        let output = self
            .requests(until)
            .for_document(&["DeleteResult"])
            .send(|client| client.delete_objects(request))
            .map_err(|cause| failed(keys.first(), cause))?;
        let Some(error) = output.errors.unwrap_or_default().into_iter().next() else { return Ok(()) };
        let key = error.key.as_deref().and_then(|full| self.own_key(full));
        let (code, message) = (error.code.unwrap_or_default(), error.message.unwrap_or_default());
        let status = if code == "AccessDenied" { 403 } else { 500 };
        Err(failed(key.as_ref(), super::answer::refused(status, code, message, None)))
    }
}

impl ObjectStore for S3Store {
    fn describe(&self) -> String {
        self.url.clone()
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        let put = self.put_object(key, body, false, until);
        put.map_err(|cause| self.error(Operation::Put, Some(key), cause))
    }

    fn put_if_absent(&self, key: &ObjectKey, body: Body<'_>, until: &Until) -> Result<(), StoreError> {
        // Not every server honours the condition, so what is there already is looked for.
        let put = self.head_object(key, until).and_then(|found| match found {
            Some(_) => Err(StoreCause::Exists),
            None => match self.put_object(key, body, true, until) {
                // It knows no conditions, and says so.
                Err(StoreCause::Refused { status: 501, .. }) => self.put_object(key, body, false, until),
                put => put,
            },
        });
        put.map_err(|cause| self.error(Operation::Put, Some(key), cause))
    }

    fn get(&self, key: &ObjectKey, to: &mut dyn Write, until: &Until) -> Result<u64, StoreError> {
        let got = self.get_object(key, None, to, until);
        got.map_err(|cause| self.error(Operation::Get, Some(key), cause))
    }

    fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        to: &mut dyn Write,
        until: &Until,
    ) -> Result<u64, StoreError> {
        let got = if range.is_empty() {
            Err(StoreCause::OutOfRange { start: range.start, end: range.end })
        } else {
            self.get_object(key, Some(range), to, until)
        };
        got.map_err(|cause| self.error(Operation::Get, Some(key), cause))
    }

    fn head(&self, key: &ObjectKey, until: &Until) -> Result<Option<u64>, StoreError> {
        self.head_object(key, until).map_err(|cause| self.error(Operation::Head, Some(key), cause))
    }

    fn list_page(
        &self,
        folder: Option<&ObjectKey>,
        after: Option<&PageMark>,
        until: &Until,
    ) -> Result<Page, StoreError> {
        self.list_objects(folder, after, until).map_err(|cause| self.error(Operation::List, folder, cause))
    }

    fn delete(&self, keys: &[ObjectKey], until: &Until) -> Result<(), StoreError> {
        keys.chunks(BATCH).try_for_each(|batch| self.delete_batch(batch, until))
    }

    fn in_parts(&self) -> Option<&dyn PartStore> {
        Some(self)
    }

    fn parallel(&self) -> usize {
        self.parallel
    }
}

/// A length as `rusoto` reads it.
pub(super) fn length(read: Option<i64>) -> Result<u64, StoreCause> {
    let length = read.and_then(|length| u64::try_from(length).ok());
    length.ok_or_else(|| StoreCause::Answer("it has no length".to_owned()))
}

/// Servers that are asked to encode keys do it as in a form, where a plus sign is a space.
pub(super) fn decode(text: &str) -> Result<String, StoreCause> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| StoreCause::Answer(format!("the key {text:?} is no text")))
}

/// The bytes that are to come, and the length of the whole object.
fn lengths(output: GetObjectOutput, range: Option<Range<u64>>) -> Result<(u64, u64), StoreCause> {
    tag(output.e_tag)?;
    let content_bytes = length(output.content_length)?;
    let Some(range) = range else { return Ok((content_bytes, content_bytes)) };
    let wrong = |what: &str| StoreCause::Answer(format!("it gives the range {what:?}"));
    // The status may be 200 all the same; what counts is which bytes these are.
    let text = output.content_range.ok_or_else(|| {
        StoreCause::Answer("it gives the whole object where a range was asked for".to_owned())
    })?;
    let (bytes, whole) =
        text.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).ok_or_else(|| wrong(&text))?;
    let whole_bytes: u64 = whole.parse().map_err(|_| wrong(&text))?;
    let place = bytes.split_once('-').ok_or_else(|| wrong(&text))?;
    let (start, last): (u64, u64) =
        (place.0.parse().map_err(|_| wrong(&text))?, place.1.parse().map_err(|_| wrong(&text))?);
    if whole_bytes < range.end {
        return Err(StoreCause::OutOfRange { start: range.start, end: range.end });
    }
    if (start, last.saturating_add(1)) != (range.start, range.end) || content_bytes != range.end - range.start
    {
        return Err(wrong(&text));
    }
    Ok((content_bytes, whole_bytes))
}

/// Hands the content on, and sees to it that all of it came, and no more.
fn receive(mut content: Answer, expected_bytes: u64, to: &mut dyn Write) -> Result<(), StoreCause> {
    let size = usize::try_from(expected_bytes.saturating_add(1)).unwrap_or(READ_BYTES).min(READ_BYTES);
    let mut buffer = vec![0; size];
    let mut found_bytes: u64 = 0;
    loop {
        let count = content.fill(&mut buffer)?;
        found_bytes += count as u64;
        if found_bytes > expected_bytes {
            break;
        }
        to.write_all(buffer.get(..count).unwrap_or_default()).map_err(StoreCause::Receiver)?;
        if count < buffer.len() {
            break;
        }
    }
    if found_bytes != expected_bytes {
        return Err(StoreCause::Answer(format!(
            "its content has {found_bytes} bytes instead of {expected_bytes}"
        )));
    }
    to.flush().map_err(StoreCause::Receiver)
}
