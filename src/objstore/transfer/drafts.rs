//! Files to a store that names objects after it has written them: each is read once.
//!
//! Invariant: an object's key is made of the content that was written.

use std::fs::File;
use std::path::Path;

use super::pour::{FileContent, PourError, pour};
use super::{TransferError, run_jobs};
use crate::objstore::encoding::Encoding;
use crate::objstore::error::StoreCause;
use crate::objstore::key::ObjectKey;
use crate::objstore::store::DraftStore;
use crate::thread::Until;

/// A file that is to become an object whose key is not known yet.
#[derive(Debug, Clone, Copy)]
pub struct FileDraft<'a> {
    /// Where the file lies.
    pub path: &'a Path,
    /// How many of its first bytes belong to the object.
    pub length_bytes: u64,
    /// How it is encoded where that pays.
    pub encoding: Option<Encoding>,
}

/// What came of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drafted {
    /// What it holds, and what the object does.
    pub content: FileContent,
    /// The object; `None` where its namer wanted none.
    pub object: Option<ObjectKey>,
}

/// Gives the key for what was written of the file with this number; none where no object is to be made of it.
pub type NameDraft<'a> = dyn Fn(usize, &FileContent) -> Result<Option<ObjectKey>, StoreCause> + Sync + 'a;

/// Makes an object in `folder` of each file, on up to `parallel` threads, named by `name`, and tells of each when it is
/// durable. Gives what came of them, in the files' order.
pub fn draft_files(
    (drafts, parallel): (&dyn DraftStore, usize),
    folder: &ObjectKey,
    files: &[FileDraft<'_>],
    name: &NameDraft<'_>,
    until: &Until,
    on_durable: &mut dyn FnMut(usize),
) -> Result<Vec<Option<Drafted>>, TransferError> {
    let jobs: Vec<(usize, FileDraft<'_>)> = files.iter().copied().enumerate().collect();
    let work = |&(number, file): &(usize, FileDraft<'_>), until: &Until| {
        let encoded = match file.encoding {
            Some(_) => draft(drafts, folder, (number, file), name, until)?,
            None => None,
        };
        let as_it_is = FileDraft { encoding: None, ..file };
        match encoded {
            Some(drafted) => Ok((number, Some(drafted))),
            None => Ok((number, draft(drafts, folder, (number, as_it_is), name, until)?)),
        }
    };
    let mut found = vec![None; files.len()];
    run_jobs(parallel, &jobs, until, work, &mut |(number, drafted)| {
        if let Some(place) = found.get_mut(number) {
            *place = drafted;
        }
        on_durable(number);
        Ok(())
    })?;
    Ok(found)
}

/// One object; nothing where its encoding does not pay.
fn draft(
    drafts: &dyn DraftStore,
    folder: &ObjectKey,
    (number, file): (usize, FileDraft<'_>),
    name: &NameDraft<'_>,
    until: &Until,
) -> Result<Option<Drafted>, TransferError> {
    let mut content = None;
    let object = drafts.put_draft(
        folder,
        &mut |to| {
            let from = File::open(file.path).map_err(StoreCause::Body)?;
            content = pour(&from, file.length_bytes, file.encoding, to, until).map_err(|e| match e {
                PourError::Read(error) => StoreCause::from(error),
                PourError::Write(error) => StoreCause::Io(error),
            })?;
            content.as_ref().map_or(Ok(None), |content| name(number, content))
        },
        until,
    );
    let object = object.map_err(|error| match error.cause {
        StoreCause::Stopped(why) => why.into(),
        _ => TransferError::Store { file: number, error },
    })?;
    Ok(content.map(|content| Drafted { content, object }))
}
