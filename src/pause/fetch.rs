//! From an archive to whatever looks at its objects.
//!
//! Invariant: what is told of a file is judged by all bytes of its object, and by what they decode to.

use std::path::Path;

use super::manifest::ManifestFile;
use super::verify::{Difference, compare};
use crate::objstore::{
    Decoded, EncodedFetch, FileFetch, ObjectStore, StoreCause, StoreError, TransferError, fetch_encoded,
    fetch_files,
};
use crate::thread::Until;

/// What is told of a file: whether its object is right, or an error of the store that says nothing of it.
pub(super) type Judged = Result<Result<(), Difference>, StoreError>;

/// Fetches the objects of the files, to a path where there is one, and tells of each once with its number in `files`. A
/// file that is told to be right is flushed to the disk. The call ends early with the first error of `on_file`.
pub(super) fn fetch_all(
    store: &dyn ObjectStore,
    files: &[(&ManifestFile, Option<&Path>)],
    until: &Until,
    on_file: &mut dyn FnMut(usize, Judged) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let (mut plain, mut encoded) = (Vec::new(), Vec::new());
    for (number, (file, path)) in files.iter().enumerate() {
        match file.stored {
            None => {
                let (key, length_bytes) = (&file.object, file.length_bytes);
                plain.push((number, *file, FileFetch { key, length_bytes, path: *path }));
            }
            Some(stored) => {
                let fetch = EncodedFetch {
                    key: &file.object,
                    object_bytes: stored.length_bytes,
                    encoding: stored.encoding,
                    file_bytes: file.length_bytes,
                    path: *path,
                };
                encoded.push((number, *file, fetch));
            }
        }
    }
    let wanted: Vec<FileFetch<'_>> = plain.iter().map(|(_, _, fetch)| *fetch).collect();
    fetch_files(store, &wanted, until, &mut |place, came| {
        let Some((number, file, _)) = plain.get(place) else { return Ok(()) };
        on_file(*number, judge(came.map(|content| compare(file.content(), content))))
    })?;
    let wanted: Vec<EncodedFetch<'_>> = encoded.iter().map(|(_, _, fetch)| *fetch).collect();
    fetch_encoded(store, &wanted, until, &mut |place, came| {
        let Some((number, file, _)) = encoded.get(place) else { return Ok(()) };
        on_file(*number, judge(came.map(|decoded| compare_decoded(file, decoded))))
    })
}

fn judge(came: Judged) -> Judged {
    match came {
        Err(StoreError { cause: StoreCause::NotFound, .. }) => Ok(Err(Difference::Missing)),
        came => came,
    }
}

/// A damaged object is told as such; what it decodes to does not matter then.
fn compare_decoded(
    file: &ManifestFile,
    Decoded { object, file: decoded }: Decoded,
) -> Result<(), Difference> {
    compare(file.object_content(), object)?;
    let decoded = decoded.map_err(Difference::Encoded)?;
    compare(file.content(), decoded).map_err(|difference| Difference::Encoded(difference.to_string()))
}
