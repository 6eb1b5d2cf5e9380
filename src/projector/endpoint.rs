//! Where workers send what they evaluated.
//!
//! Beside entries and positions an endpoint gets a note of all that happens to a stream: its begin, its end, refused
//! requests, the end of a request that nobody answered, and an end as superseded where a stream begins again without
//! one. A data path that
//! ends takes nothing to its endpoint any more: what it has in hand is dropped, because its positions have not
//! moved. The ends that it owes then go to the feed alone, and an endpoint takes the end of its data path for the
//! end of every stream in it.

use crate::shard::batch::WriteBatch;
use crate::shard::{Refused, Shard, ShardId};
use crate::thread::Fin;

/// Takes write batches, in the order of each shard's stream. Called by the workers' data threads, several at a
/// time and never two for the same shard of one `KvData`.
///
/// A call must not wait for long: what cannot be taken now is given back with a signal. An endpoint that hangs
/// all the same holds up its worker's data, and the close of the data path, but no control message.
///
/// One that counts the entries of each index, instead of storing them:
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::Mutex;
///
/// use dormouse::event::{Seqno, VbId};
/// use dormouse::projector::{Endpoint, EndpointRefused};
/// use dormouse::shard::batch::WriteBatch;
/// use dormouse::shard::{InstId, ShardId};
///
/// #[derive(Default)]
/// struct Counter(Mutex<BTreeMap<InstId, usize>>);
///
/// impl Endpoint for Counter {
///     fn try_apply(&self, _: ShardId, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
///         let mut entries = self.0.lock().map_err(|e| EndpointRefused::Never(anyhow::anyhow!("{e}")))?;
///         for change in batch.changes() {
///             *entries.entry(change.inst).or_default() += change.keys().len();
///         }
///         batch.clear();
///         Ok(batch)
///     }
/// }
///
/// // What a worker does with it:
/// let mut batch = Box::new(WriteBatch::default());
/// let document = batch.add_document(b"k");
/// batch.add_change(InstId(1), (VbId(0), Seqno(1)), document, [b"a".as_slice(), b"b"]);
/// let counter = Counter::default();
/// let back = counter.try_apply(ShardId(0), batch).ok();
/// assert!(back.is_some_and(|batch| batch.changes().count() == 0));
/// assert_eq!(counter.0.into_inner()?, BTreeMap::from([(InstId(1), 2)]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Endpoint: Send + Sync {
    /// Takes the batch as a whole and gives it back empty, or refuses it as a whole.
    fn try_apply(&self, shard: ShardId, batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused>;
}

/// Why a batch was not taken.
#[derive(Debug)]
pub enum EndpointRefused {
    /// Try again once `ready` is given.
    Later {
        /// The batch.
        batch: Box<WriteBatch>,
        /// Given when another try is worth it.
        ready: Fin,
    },
    /// The data path has to end.
    Never(anyhow::Error),
}

/// The built-in endpoint: the shards of a bucket.
pub struct ShardEndpoint {
    shards: Vec<Shard>,
}

impl ShardEndpoint {
    /// An endpoint that writes to all of a bucket's shards, which stand in the order of their ids.
    pub fn new(shards: &[Shard]) -> Self {
        Self { shards: shards.to_vec() }
    }
}

impl Endpoint for ShardEndpoint {
    fn try_apply(&self, shard: ShardId, batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        let Some(target) = self.shards.get(usize::from(shard.0)) else {
            return Err(EndpointRefused::Never(anyhow::anyhow!("there is no shard {shard}")));
        };
        target.try_apply(batch).map_err(|refused| match refused {
            Refused::Later { batch, ready, why: _ } => EndpointRefused::Later { batch, ready },
            Refused::Never(error) => EndpointRefused::Never(error.into()),
        })
    }
}
