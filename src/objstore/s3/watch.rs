//! Ends exchanges with a server whose limit has ended.
//!
//! A thread that waits for a socket sees neither a cancel nor a deadline. The thread `dm-s3-watch` waits for both
//! in its place and closes the connection under it.
//!
//! Invariants: an exchange that is over is never ended: which of the two comes first, its own end or that of its limit,
//! is decided by one atomic step. So a connection can be used again as soon as its exchange is over. None goes on that
//! nobody watches: with the thread end those that it watches, and none begins after it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Select, Sender, unbounded};
use ureq::Agent;

use crate::objstore::error::StoreCause;
use crate::thread::{Thread, Until, spawn};

const THREAD: &str = "dm-s3-watch";

/// How long the thread may take to end when it is told to.
const END_LIMIT: Duration = Duration::from_secs(5);

const RUNNING: u8 = 0;
const OVER: u8 = 1;
const ENDED: u8 = 2;

/// The thread and the way to it. Dropping it ends and joins the thread.
pub(super) struct Watch {
    orders: Option<Sender<Order>>,
    thread: Option<Thread<()>>,
    last_id: AtomicU64,
}

enum Order {
    Watch(u64, Watched),
    Forget(u64),
}

struct Watched {
    agent: Agent,
    until: Until,
    state: Arc<AtomicU8>,
}

/// An exchange that is watched, until this is dropped.
pub(super) struct Ticket {
    id: u64,
    orders: Option<Sender<Order>>,
    state: Arc<AtomicU8>,
}

impl Watch {
    pub(super) fn start() -> io::Result<Self> {
        Self::start_with(watch)
    }

    fn start_with(work: impl FnOnce(&Receiver<Order>) + Send + 'static) -> io::Result<Self> {
        let (orders, incoming) = unbounded();
        let thread = spawn(THREAD, move || work(&incoming))?;
        Ok(Self { orders: Some(orders), thread: Some(thread), last_id: AtomicU64::new(0) })
    }

    /// Shuts `agent` down when `until` ends before the ticket is dropped.
    pub(super) fn watch(&self, agent: &Agent, until: &Until) -> Result<Ticket, StoreCause> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(AtomicU8::new(RUNNING));
        let watched = Watched { agent: agent.clone(), until: until.clone(), state: Arc::clone(&state) };
        if !tell(self.orders.as_ref(), Order::Watch(id, watched)) {
            return Err(thread_is_gone(THREAD));
        }
        Ok(Ticket { id, orders: self.orders.clone(), state })
    }
}

/// Without its threads a store is of no use: no try can help, only a new store.
pub(super) fn thread_is_gone(name: &str) -> StoreCause {
    StoreCause::Endpoint(format!("the store's thread {name} has ended; open the archive again"))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It only waits, so it ends at once; one that does not is left to the end of the process.
            let _ = thread.join(&Until::within(END_LIMIT));
        }
    }
}

impl Ticket {
    /// Why the exchange was ended, if it was: its limit, which is `until`, has ended, or nobody watches it any more.
    pub(super) fn ended(&self, until: &Until) -> Option<StoreCause> {
        let has_ended = self.state.load(Ordering::Acquire) == ENDED;
        has_ended.then(|| until.check().map_or_else(Into::into, |()| thread_is_gone(THREAD)))
    }

    /// Says that the exchange is over. Gives whether its connection is still good.
    pub(super) fn close(&self) -> bool {
        self.state.compare_exchange(RUNNING, OVER, Ordering::AcqRel, Ordering::Acquire) != Err(ENDED)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close();
        tell(self.orders.as_ref(), Order::Forget(self.id));
    }
}

/// Whether the thread is there to take the order. The queue has no bound, and holds at most two orders for each
/// exchange under way.
fn tell(orders: Option<&Sender<Order>>, order: Order) -> bool {
    orders.is_some_and(|orders| orders.try_send(order).is_ok())
}

fn watch(orders: &Receiver<Order>) {
    let mut watched: BTreeMap<u64, Watched> = BTreeMap::new();
    // Tickets hold the way to this thread too: it ends when the last of them and the watch are gone.
    while let Some(order) = next(orders, &watched) {
        for order in order.into_iter().chain(orders.try_iter()) {
            match order {
                Order::Watch(id, exchange) => drop(watched.insert(id, exchange)),
                Order::Forget(id) => drop(watched.remove(&id)),
            }
        }
        watched.retain(|_, exchange| exchange.until.check().is_ok());
    }
}

/// Dropped when its limit has ended, when it is over, and when the thread that was to watch it ends.
impl Drop for Watched {
    fn drop(&mut self) {
        if self.state.compare_exchange(RUNNING, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.agent.clone().shutdown();
        }
    }
}

/// Waits for an order or for the end of a limit, and gives the order; nothing when no more can come.
#[expect(clippy::option_option, reason = "no order yet is another answer than no more orders")]
fn next(orders: &Receiver<Order>, watched: &BTreeMap<u64, Watched>) -> Option<Option<Order>> {
    let mut select = Select::new();
    select.recv(orders);
    for exchange in watched.values() {
        select.recv(exchange.until.cancel().fin().receiver());
    }
    let deadline = watched.values().filter_map(|exchange| exchange.until.deadline()).min();
    let ready = match deadline {
        Some(deadline) => select.ready_deadline(deadline).ok(),
        None => Some(select.ready()),
    };
    match ready {
        Some(0) => match orders.try_recv() {
            Ok(order) => Some(Some(order)),
            Err(e) if e.is_disconnected() => None,
            Err(_) => Some(None),
        },
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;
    use crate::thread::fin;

    fn is_gone(cause: &StoreCause) -> bool {
        matches!(cause, StoreCause::Endpoint(text) if text.contains(THREAD) && text.contains("open the archive again"))
    }

    #[test]
    fn when_the_thread_dies_what_it_watched_is_ended_and_nothing_new_begins() -> Result<(), StoreCause> {
        let (die, told) = fin();
        let watch = Watch::start_with(move |orders| {
            let _held = next(orders, &BTreeMap::new());
            let _ = told.wait(&Until::within(Duration::from_secs(60)));
            resume_unwind(Box::new("the thread's own defect"));
        })?;
        let (agent, until) = (Agent::new_with_defaults(), Until::default());
        let (taken, queued) = (watch.watch(&agent, &until)?, watch.watch(&agent, &until)?);
        assert!(taken.ended(&until).is_none() && queued.ended(&until).is_none());
        drop(die);
        let limit = Until::within(Duration::from_secs(60));
        while taken.ended(&until).is_none() || queued.ended(&until).is_none() {
            limit.pause(Duration::from_millis(1))?;
        }
        assert!(taken.ended(&until).is_some_and(|cause| is_gone(&cause)));
        assert!(queued.ended(&until).is_some_and(|cause| is_gone(&cause)));
        assert!(watch.watch(&agent, &until).is_err_and(|cause| is_gone(&cause)));
        Ok(())
    }
}
