//! What became of streams, as far as the shards have it.
//!
//! An answer or an end is noted only after everything that came before it on its stream is applied. Whoever asks for
//! a stream again after such a note therefore continues exactly what the shard has, and nothing of the earlier stream
//! is on its way any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;
use parking_lot::Mutex;

use crate::event::{DcpEvent, EventKind};
use crate::projector::{Endpoint, EndpointRefused, ShardEndpoint};
use crate::shard::batch::WriteBatch;
use crate::shard::{Shard, ShardId};

/// See the module.
pub(super) struct Notes {
    told: Mutex<Vec<DcpEvent>>,
    moves: AtomicU64,
    wake: Sender<()>,
}

impl Notes {
    /// A message is sent into `wake` for each note, where there is room.
    pub(super) fn new(wake: Sender<()>) -> Arc<Self> {
        Arc::new(Self { told: Mutex::default(), moves: AtomicU64::new(0), wake })
    }

    /// Answers and ends since the last call.
    pub(super) fn take(&self) -> Vec<DcpEvent> {
        std::mem::take(&mut self.told.lock())
    }

    /// Batches so far that moved something on.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }
}

/// The shards of a bucket, with notes of what they took.
pub(super) struct NotedEndpoint {
    shards: ShardEndpoint,
    notes: Arc<Notes>,
}

impl NotedEndpoint {
    pub(super) fn new(shards: &[Shard], notes: &Arc<Notes>) -> Self {
        Self { shards: ShardEndpoint::new(shards), notes: Arc::clone(notes) }
    }
}

impl Endpoint for NotedEndpoint {
    fn try_apply(&self, shard: ShardId, batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        let is_of_stream = |event: &&DcpEvent| {
            matches!(event.kind, EventKind::StreamReq { .. } | EventKind::StreamEnd { .. })
        };
        let told: Vec<DcpEvent> = batch.notes.iter().filter(is_of_stream).copied().collect();
        let moves = !batch.advances.is_empty();
        let empty = self.shards.try_apply(shard, batch)?;
        if moves {
            self.notes.moves.fetch_add(1, Ordering::Relaxed);
        }
        if !told.is_empty() {
            self.notes.told.lock().extend(told);
            let _ = self.notes.wake.try_send(());
        }
        Ok(empty)
    }
}
