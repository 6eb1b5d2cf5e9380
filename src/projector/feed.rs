//! The books of one topic: which streams were asked for, which are active, and how a data path ended.
//!
//! What comes back from the data path is a *book*, not a queue: one record for each generation and vbucket,
//! changed under a mutex, and a wake-up that never blocks the one who gives it. Nobody can therefore be held up
//! by a reader that does not come, and nothing that was not read yet is lost: a later message about a stream
//! replaces only an earlier one about the same stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::event::{Generation, StreamEndReason, VbId};
use crate::timestamp::{Position, TsVbuuid};

use super::kvdata::EndReason;

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// It was asked for, from this position on.
    Requested(Position),
    /// It began, at this position.
    Active(Position),
    /// It ended.
    Ended(StreamEndReason),
}

#[derive(Default)]
struct Books {
    streams: BTreeMap<(Generation, VbId), StreamState>,
    fins: BTreeMap<Generation, EndReason>,
}

struct Shared {
    books: Mutex<Books>,
    wake: Sender<()>,
}

/// The side of the books that reads.
pub struct Feed {
    shared: Arc<Shared>,
    woken: Receiver<()>,
}

/// The side of the books that one generation's data path writes.
#[derive(Clone)]
pub struct FeedLink {
    shared: Arc<Shared>,
    generation: Generation,
}

impl Default for Feed {
    fn default() -> Self {
        let (wake, woken) = bounded(1);
        Self { shared: Arc::new(Shared { books: Mutex::default(), wake }), woken }
    }
}

impl Feed {
    /// Notes that a generation's streams are asked for, and gives the link for its data path.
    pub fn begin_generation(&self, generation: Generation, requested: &TsVbuuid) -> FeedLink {
        let mut books = self.shared.books.lock();
        for (vb, position) in requested.iter() {
            books.streams.insert((generation, vb), StreamState::Requested(position));
        }
        FeedLink { shared: Arc::clone(&self.shared), generation }
    }

    /// Holds a message when something was written since it was last read.
    pub fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Where the streams of a generation stand.
    pub fn streams(&self, generation: Generation) -> Vec<(VbId, StreamState)> {
        let books = self.shared.books.lock();
        let range = (generation, VbId(0))..=(generation, VbId(u16::MAX));
        books.streams.range(range).map(|((_, vb), state)| (*vb, *state)).collect()
    }

    /// Takes the fin of a generation's data path, once it has ended. Its streams are forgotten with it.
    pub fn take_fin(&self, generation: Generation) -> Option<EndReason> {
        let mut books = self.shared.books.lock();
        let fin = books.fins.remove(&generation)?;
        books.streams.retain(|(of, _), _| *of != generation);
        Some(fin)
    }
}

impl FeedLink {
    /// The generation that the link writes for.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn post_stream(&self, vb: VbId, state: StreamState) {
        self.shared.books.lock().streams.insert((self.generation, vb), state);
        let _ = self.shared.wake.try_send(());
    }

    pub(super) fn post_fin(&self, reason: EndReason) {
        self.shared.books.lock().fins.entry(self.generation).or_insert(reason);
        let _ = self.shared.wake.try_send(());
    }
}
