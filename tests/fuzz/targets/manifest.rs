//! Bytes as sealed documents and as manifests of pauses: the checksum is made right, so that what is behind it is read.

#![no_main]

use std::io::Write;
use std::ops::Range;

use dormouse::durable::{hex, unseal};
use dormouse::objstore::{Body, ObjectKey, ObjectStore, Operation, Page, PageMark, StoreCause, StoreError};
use dormouse::pause::{BucketPart, Manifest, Membership, PauseId};
use dormouse::thread::Until;
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Has one object under every key.
struct One(Vec<u8>);

impl One {
    fn refuse<T>(&self, key: &ObjectKey) -> Result<T, StoreError> {
        Err(StoreError::new(Operation::Put, Some(key), self.describe(), StoreCause::Exists))
    }
}

impl ObjectStore for One {
    fn describe(&self) -> String {
        "memory".to_owned()
    }
    fn put(&self, key: &ObjectKey, _: Body<'_>, _: &Until) -> Result<(), StoreError> {
        self.refuse(key)
    }
    fn put_if_absent(&self, key: &ObjectKey, _: Body<'_>, _: &Until) -> Result<(), StoreError> {
        self.refuse(key)
    }
    fn get(&self, key: &ObjectKey, to: &mut dyn Write, _: &Until) -> Result<u64, StoreError> {
        if to.write_all(&self.0).is_err() {
            return self.refuse(key);
        }
        Ok(self.0.len() as u64)
    }
    fn get_range(&self, key: &ObjectKey, _: Range<u64>, _: &mut dyn Write, _: &Until) -> Result<u64, StoreError> {
        self.refuse(key)
    }
    fn head(&self, _: &ObjectKey, _: &Until) -> Result<Option<u64>, StoreError> {
        Ok(Some(self.0.len() as u64))
    }
    fn list_page(&self, _: Option<&ObjectKey>, _: Option<&PageMark>, _: &Until) -> Result<Page, StoreError> {
        Ok(Page { objects: Vec::new(), next: None })
    }
    fn delete(&self, _: &[ObjectKey], _: &Until) -> Result<(), StoreError> {
        Ok(())
    }
}

fn sealed(body: &[u8]) -> Vec<u8> {
    let mut sealed = format!("dormouse manifest 1 {}\n", hex(&Sha256::digest(body))).into_bytes();
    sealed.extend_from_slice(body);
    sealed
}

fuzz_target!(|data: &[u8]| {
    let _ = unseal::<Value>("manifest", 1, data);
    let Ok(body) = serde_json::from_slice::<Value>(data) else { return };
    assert_eq!(unseal::<Value>("manifest", 1, &sealed(data)), Ok(body.clone()));
    let word = |name: &str| body.get(name).and_then(Value::as_str);
    let (Some(bucket), Some(pause)) = (word("bucket"), word("pause")) else { return };
    let Ok(pause) = pause.parse::<PauseId>() else { return };
    let membership = body.get("membership").and_then(|member| Membership::deserialize(member).ok());
    let part = BucketPart::new(bucket, membership.unwrap_or_default());
    let Ok(manifest) = Manifest::read(&One(sealed(data)), &part, pause, &Until::default()) else { return };
    assert!(manifest.bytes() >= manifest.files.iter().map(|file| file.length_bytes).max().unwrap_or(0));
    let again = serde_json::to_vec(&manifest).expect("it is written again");
    let read = Manifest::read(&One(sealed(&again)), &part, pause, &Until::default()).expect("it is read again");
    assert_eq!(serde_json::to_value(&read).expect("a value"), serde_json::to_value(&manifest).expect("a value"));
});
