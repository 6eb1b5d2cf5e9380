//! After a crash: what was interrupted is led to a state that lasts.
//!
//! The state in the bucket's metadata was written before the step that it speaks of, so it says what may have been
//! done: a pause that had not begun to publish is given up, one that had is in doubt until its archive is asked, a
//! resume that had not put the bucket in its place is given up and keeps what it downloaded, and local data that was
//! being removed is removed.

use std::fs;
use std::path::PathBuf;

use slog::{Logger, info, warn};

use crate::durable::{AtPath, PathError};
use crate::pause::{BucketState, Event};
use crate::shard::ShardSet;
use crate::thread::Until;

use super::error::BucketError;
use super::folder::DataDir;
use super::meta::{BucketMeta, BucketName};
use super::tasks::TaskKind;

impl DataDir {
    /// Cleans up what a crash interrupted, tells `logger` of it, and gives what the bucket keeps about itself
    /// afterwards. Where the bucket is in use nothing was interrupted, and the call fails.
    pub fn recover(&self, name: &BucketName, logger: &Logger) -> Result<BucketMeta, BucketError> {
        self.refuse_fork()?;
        let meta = self.bucket_meta(name)?;
        if meta.state.is_lasting() && self.leftovers(&meta)?.is_empty() {
            return Ok(meta);
        }
        let task = self
            .begin_task(name, TaskKind::Recovery, &Until::default())
            .map_err(|busy| BucketError::Busy { doing: "open", bucket: name.clone(), busy })?;
        task.end(self.recover_alone(name, logger))
    }

    /// The same for who has the bucket's entry.
    pub(super) fn recover_alone(
        &self,
        name: &BucketName,
        logger: &Logger,
    ) -> Result<BucketMeta, BucketError> {
        let folder = self.bucket_folder(name);
        let _claims = ShardSet::claim(&folder).map_err(BucketError::Shard)?;
        let meta = self.bucket_meta(name)?;
        let recovered = meta
            .after(Event::Restarted)
            .map_err(|refusal| BucketError::State { bucket: name.clone(), refusal })?;
        if recovered != meta {
            recovered.write(&folder)?;
            tell(name, &meta.state, &recovered.state, logger);
        }
        for leftover in self.leftovers(&recovered)? {
            self.discard(&leftover)?;
            info!(logger, "the interrupted removal of local data went on"; "bucket" => %name,
                "folder" => %leftover.display());
        }
        Ok(recovered)
    }

    /// Folders of shards whose data was to be removed.
    fn leftovers(&self, meta: &BucketMeta) -> Result<Vec<PathBuf>, PathError> {
        if !meta.state.is_evicted() {
            return Ok(Vec::new());
        }
        let folder = self.bucket_folder(&meta.name);
        let listed = fs::read_dir(&folder).at("list", &folder)?.collect::<Result<Vec<_>, _>>();
        let paths = listed.at("list", &folder)?.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.is_dir()).collect())
    }
}

fn tell(name: &BucketName, was: &BucketState, is: &BucketState, logger: &Logger) {
    match is {
        BucketState::InDoubt { .. } => {
            warn!(logger, "a pause was interrupted while it was published"; "bucket" => %name, "was" => %was,
                "is" => %is);
        }
        _ => {
            info!(logger, "what was interrupted was given up"; "bucket" => %name, "was" => %was, "is" => %is);
        }
    }
}
