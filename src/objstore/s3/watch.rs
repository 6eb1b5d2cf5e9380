//! Ends exchanges with a server whose limit has ended.
//!
//! A thread that waits for a socket sees neither a cancel nor a deadline. The thread `dm-s3-watch` waits for both
//! in its place and closes the connection under it.
//!
//! Invariant: an exchange that is over is never ended: which of the two comes first, its own end or that of its
//! limit, is decided by one atomic step. So a connection can be used again as soon as its exchange is over.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Select, Sender, unbounded};
use ureq::Agent;

use crate::thread::{Thread, Until, spawn};

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
        let (orders, incoming) = unbounded();
        let thread = spawn("dm-s3-watch", move || watch(&incoming))?;
        Ok(Self { orders: Some(orders), thread: Some(thread), last_id: AtomicU64::new(0) })
    }

    /// Shuts `agent` down when `until` ends before the ticket is dropped.
    pub(super) fn watch(&self, agent: &Agent, until: &Until) -> Ticket {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(AtomicU8::new(RUNNING));
        let watched = Watched { agent: agent.clone(), until: until.clone(), state: Arc::clone(&state) };
        tell(self.orders.as_ref(), Order::Watch(id, watched));
        Ticket { id, orders: self.orders.clone(), state }
    }
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
    /// Whether the limit has ended the exchange.
    pub(super) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) == ENDED
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

/// The queue has no bound, and holds at most two orders for each exchange under way.
fn tell(orders: Option<&Sender<Order>>, order: Order) {
    if let Some(orders) = orders {
        let _ = orders.try_send(order);
    }
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
        watched.retain(|_, exchange| {
            let goes_on = exchange.until.check().is_ok();
            if !goes_on && exchange.end() {
                exchange.agent.clone().shutdown();
            }
            goes_on
        });
    }
}

impl Watched {
    fn end(&self) -> bool {
        self.state.compare_exchange(RUNNING, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok()
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
