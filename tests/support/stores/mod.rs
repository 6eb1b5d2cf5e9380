//! Stores and servers for tests of the contract of an object store.

pub(crate) mod failing;
pub(crate) mod forward;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod lost;
pub(crate) mod memory;
pub(crate) mod proxy;
pub(crate) mod signature;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use dormouse::objstore::{Body, CHUNK_BYTES, ChunkHash, ObjectStore, Part, StoreError, Upload};
use sha2::{Digest, Sha256};

use super::{forever, key, watchdog};

pub(crate) fn chunks_of(content: &[u8]) -> Vec<ChunkHash> {
    let chunk_bytes = usize::try_from(CHUNK_BYTES).unwrap();
    content.chunks(chunk_bytes).map(|chunk| ChunkHash(Sha256::digest(chunk).into())).collect()
}

/// A file with this content, open for reading.
pub(crate) fn file_with(folder: &Path, content: &[u8]) -> File {
    let path = folder.join("content");
    fs::write(&path, content).unwrap();
    File::open(path).unwrap()
}

/// Content in which no two chunks, and no two pieces of a few bytes, are alike.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn put(store: &dyn ObjectStore, name: &str, content: &[u8]) {
    store.put(&key(name), Body::Bytes(content), &forever()).unwrap();
}

pub(crate) fn get(store: &dyn ObjectStore, name: &str) -> Result<Vec<u8>, StoreError> {
    let mut content = Vec::new();
    let length_bytes = store.get(&key(name), &mut content, &forever())?;
    assert_eq!(length_bytes, content.len() as u64);
    Ok(content)
}

pub(crate) fn names(store: &dyn ObjectStore, folder: Option<&str>) -> Vec<String> {
    let folder = folder.map(key);
    let listed = store.list(folder.as_ref(), &forever()).unwrap();
    listed.into_iter().map(|object| object.key.to_string()).collect()
}

/// A receiver that takes nothing.
pub(crate) struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One call of each kind but a look, all of which fail. The bodies of a put and of a part are `content`.
pub(crate) fn each_call_but_a_look(store: &dyn ObjectStore, content: &[u8]) -> Vec<StoreError> {
    let (x, until) = (key("x"), watchdog());
    let parts = store.in_parts().unwrap();
    let upload = Upload { key: x.clone(), id: "id".to_owned() };
    let part = Part { number: 1, length_bytes: 1, tag: "\"tag\"".to_owned() };
    vec![
        store.put(&x, Body::Bytes(content), &until).unwrap_err(),
        store.put_if_absent(&x, Body::Bytes(b"x"), &until).unwrap_err(),
        store.get(&x, &mut io::sink(), &until).unwrap_err(),
        store.get_range(&x, 0..1, &mut io::sink(), &until).unwrap_err(),
        store.list(None, &until).unwrap_err(),
        store.delete(std::slice::from_ref(&x), &until).unwrap_err(),
        parts.begin(&x, &until).unwrap_err(),
        parts.put_part(&upload, 1, Body::Bytes(content), &until).unwrap_err(),
        parts.parts(&upload, &until).unwrap_err(),
        parts.complete(&upload, &[part], &until).unwrap_err(),
        parts.abort(&upload, &until).unwrap_err(),
        parts.uploads(None, &until).unwrap_err(),
    ]
}
