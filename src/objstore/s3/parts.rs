//! The calls on objects in parts.

use std::collections::BTreeMap;

use rusoto_s3::{
    AbortMultipartUploadRequest, CompleteMultipartUploadRequest, CompletedMultipartUpload, CompletedPart,
    CreateMultipartUploadRequest, ListMultipartUploadsRequest, ListPartsRequest, S3, UploadPartRequest,
};

use super::objects::{decode, length};
use super::{S3Store, blame, payload, tag};
use crate::objstore::error::{Operation, StoreCause, StoreError};
use crate::objstore::key::ObjectKey;
use crate::objstore::store::{Body, Part, PartStore, Upload};
use crate::thread::Until;

/// The document of an upload that was begun. Servers made of `gofakes3` leave its last word off.
const BEGUN: [&str; 2] = ["InitiateMultipartUploadResult", "InitiateMultipartUpload"];

impl S3Store {
    fn begin_parts(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreCause> {
        let (server_side_encryption, ssekms_key_id) = self.encryption();
        let request = CreateMultipartUploadRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(key)?,
            content_type: Some("application/octet-stream".to_owned()),
            server_side_encryption,
            ssekms_key_id,
            storage_class: self.storage_class.clone(),
            ..CreateMultipartUploadRequest::default()
        };
        let asked = self.requests(until).for_document(&BEGUN);
        let output = asked.send(|client| client.create_multipart_upload(request))?;
        let id = output.upload_id.filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| StoreCause::Answer("it has no upload id".to_owned()))?;
        Ok(Upload { key: key.clone(), id })
    }

    fn upload_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreCause> {
        let request = UploadPartRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(&upload.key)?,
            part_number: i64::from(number),
            upload_id: upload.id.clone(),
            ..UploadPartRequest::default()
        };
        let requests = self.requests(until).with_payload(payload(body, until)?);
        let output = requests.send(|client| client.upload_part(request));
        let tag = tag(output.map_err(|cause| blame(body, cause, until))?.e_tag)?;
        Ok(Part { number, length_bytes: body.length_bytes(), tag })
    }

    fn list_parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreCause> {
        // By number: a server may repeat the last part of a page, and give them in any order.
        let mut parts = BTreeMap::new();
        let mut marker = None;
        loop {
            let request = ListPartsRequest {
                bucket: self.server.bucket.clone(),
                key: self.full_key(&upload.key)?,
                upload_id: upload.id.clone(),
                part_number_marker: marker,
                ..ListPartsRequest::default()
            };
            let asked = self.requests(until).for_document(&["ListPartsResult"]);
            let output = asked.send(|client| client.list_parts(request))?;
            for part in output.parts.unwrap_or_default() {
                let number = part.part_number.and_then(|number| u32::try_from(number).ok());
                let number = number.ok_or_else(|| StoreCause::Answer("a part has no number".to_owned()))?;
                let (length_bytes, tag) = (length(part.size)?, tag(part.e_tag)?);
                parts.insert(number, Part { number, length_bytes, tag });
            }
            let next = output.next_part_number_marker.filter(|_| output.is_truncated == Some(true));
            if next.is_none() || next <= marker {
                return Ok(parts.into_values().collect());
            }
            marker = next;
        }
    }

    fn complete_parts(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreCause> {
        let named = parts
            .iter()
            .map(|part| CompletedPart {
                e_tag: Some(part.tag.clone()),
                part_number: Some(i64::from(part.number)),
            })
            .collect();
        let request = CompleteMultipartUploadRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(&upload.key)?,
            upload_id: upload.id.clone(),
            multipart_upload: Some(CompletedMultipartUpload { parts: Some(named) }),
            ..CompleteMultipartUploadRequest::default()
        };
        let asked = self.requests(until).for_document(&["CompleteMultipartUploadResult"]);
        let output = asked.send(|client| client.complete_multipart_upload(request))?;
        let Err(no_tag) = tag(output.e_tag) else { return Ok(()) };
        // Ceph has none before it is asked once more. What is there tells as much.
        let expected_bytes = parts.iter().map(|part| part.length_bytes).sum();
        let found_bytes = self.head_object(&upload.key, until)?;
        if found_bytes == Some(expected_bytes) { Ok(()) } else { Err(no_tag) }
    }

    fn abort_parts(&self, upload: &Upload, until: &Until) -> Result<(), StoreCause> {
        let request = AbortMultipartUploadRequest {
            bucket: self.server.bucket.clone(),
            key: self.full_key(&upload.key)?,
            upload_id: upload.id.clone(),
            ..AbortMultipartUploadRequest::default()
        };
        let asked = self.requests(until);
        match asked.send(|client| client.abort_multipart_upload(request)) {
            Ok(_) | Err(StoreCause::NotFound) => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    fn list_uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreCause> {
        let prefix = match key {
            Some(key) => self.full_key(key)?,
            None => self.full_prefix(None),
        };
        let mut found = Vec::new();
        let mut marker = (None, None);
        loop {
            let request = ListMultipartUploadsRequest {
                bucket: self.server.bucket.clone(),
                prefix: (!prefix.is_empty()).then(|| prefix.clone()),
                key_marker: marker.0.clone(),
                upload_id_marker: marker.1.clone(),
                encoding_type: Some("url".to_owned()),
                ..ListMultipartUploadsRequest::default()
            };
            let asked = self.requests(until).for_document(&["ListMultipartUploadsResult"]);
            let output = match asked.send(|client| client.list_multipart_uploads(request)) {
                // Some servers take parts and list no uploads. Then none is taken up, and none found by a prune.
                Err(StoreCause::Refused { status: 501, .. }) => return Ok(Vec::new()),
                output => output?,
            };
            let is_encoded = output.encoding_type.as_deref() == Some("url");
            let plain = |text: String| if is_encoded { decode(&text) } else { Ok(text) };
            for upload in output.uploads.unwrap_or_default() {
                let (Some(full), Some(id)) = (upload.key, upload.upload_id) else {
                    return Err(StoreCause::Answer("an upload has no key or no id".to_owned()));
                };
                let own = self.own_key(&plain(full)?);
                if let Some(own) = own.filter(|own| key.is_none_or(|key| key == own)) {
                    found.push((own.clone(), upload.initiated, Upload { key: own, id }));
                }
            }
            let next = (output.next_key_marker.map(plain).transpose()?, output.next_upload_id_marker);
            if output.is_truncated != Some(true) || next.0.is_none() || next == marker {
                break;
            }
            if next.0 < marker.0 {
                return Err(StoreCause::Answer("it lists uploads out of order".to_owned()));
            }
            marker = next;
        }
        found.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        Ok(found.into_iter().map(|(_, _, upload)| upload).collect())
    }
}

impl PartStore for S3Store {
    fn begin(&self, key: &ObjectKey, until: &Until) -> Result<Upload, StoreError> {
        self.begin_parts(key, until).map_err(|cause| self.error(Operation::Begin, Some(key), cause))
    }

    fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Body<'_>,
        until: &Until,
    ) -> Result<Part, StoreError> {
        let put = self.upload_part(upload, number, body, until);
        put.map_err(|cause| self.error(Operation::PutPart, Some(&upload.key), cause))
    }

    fn parts(&self, upload: &Upload, until: &Until) -> Result<Vec<Part>, StoreError> {
        self.list_parts(upload, until).map_err(|cause| self.error(Operation::Parts, Some(&upload.key), cause))
    }

    fn complete(&self, upload: &Upload, parts: &[Part], until: &Until) -> Result<(), StoreError> {
        let completed = self.complete_parts(upload, parts, until);
        completed.map_err(|cause| self.error(Operation::Complete, Some(&upload.key), cause))
    }

    fn abort(&self, upload: &Upload, until: &Until) -> Result<(), StoreError> {
        self.abort_parts(upload, until)
            .map_err(|cause| self.error(Operation::Abort, Some(&upload.key), cause))
    }

    fn uploads(&self, key: Option<&ObjectKey>, until: &Until) -> Result<Vec<Upload>, StoreError> {
        self.list_uploads(key, until).map_err(|cause| self.error(Operation::Uploads, key, cause))
    }
}
