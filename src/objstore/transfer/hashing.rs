//! What files hold, read by several threads.
//!
//! Invariant: a hash is told only of a file that had all of its bytes.

use std::fs::File;
use std::path::Path;

use super::{TransferError, run_jobs};
use crate::durable::AtPath;
use crate::objstore::hash::{CHUNK_BYTES, ChunkHash, ReadError, hash_chunk};
use crate::thread::Until;

/// The first bytes of a file.
#[derive(Debug, Clone, Copy)]
pub struct FileRead<'a> {
    /// Where the file lies.
    pub path: &'a Path,
    /// How many of its bytes are meant.
    pub length_bytes: u64,
}

/// The hashes of the chunks of all files, in the files' order, read by up to `parallel` threads.
pub fn hash_files(
    parallel: usize,
    files: &[FileRead<'_>],
    until: &Until,
) -> Result<Vec<Vec<ChunkHash>>, TransferError> {
    let chunks = |file: &FileRead<'_>| file.length_bytes.div_ceil(CHUNK_BYTES);
    let jobs: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(number, file)| (0..chunks(file)).map(move |chunk| (number, chunk)))
        .collect();
    let work = |&(number, chunk): &(usize, u64), until: &Until| {
        let hashed = files.get(number).map(|file| read_chunk(file, chunk, until)).transpose()?;
        Ok((number, chunk, hashed))
    };
    let mut found = vec![Vec::new(); files.len()];
    run_jobs(parallel, &jobs, until, work, &mut |(number, chunk, hashed)| {
        if let (Some(of_file), Some(hash)) = (found.get_mut(number), hashed) {
            of_file.push((chunk, hash));
        }
        Ok(())
    })?;
    let in_order = |mut of_file: Vec<(u64, ChunkHash)>| {
        of_file.sort_unstable_by_key(|(chunk, _)| *chunk);
        of_file.into_iter().map(|(_, hash)| hash).collect()
    };
    Ok(found.into_iter().map(in_order).collect())
}

fn read_chunk(wanted: &FileRead<'_>, chunk: u64, until: &Until) -> Result<ChunkHash, TransferError> {
    let path = wanted.path;
    let start = chunk * CHUNK_BYTES;
    let end = wanted.length_bytes.min(start + CHUNK_BYTES);
    let file = File::open(path).at("open", path)?;
    match hash_chunk(&file, start..end, until) {
        Ok(hash) => Ok(hash),
        Err(ReadError::Stopped(why)) => Err(why.into()),
        Err(ReadError::Io(error)) => Err(error).at("read", path)?,
        Err(ReadError::TooShort { found_bytes, .. }) => {
            let whole =
                ReadError::TooShort { expected_bytes: wanted.length_bytes, found_bytes: start + found_bytes };
            Err(TransferError::Short { path: path.to_owned(), what: whole.to_string() })
        }
    }
}
