//! Layers over a store: what they count, what they hold back, and how often they try again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse::objstore::{
    Body, CallInfo, Count, Counts, Layer, ObjectStore, Policy, Rate, Retry, RetryConfig, StoreCause,
    StoreError,
};
use dormouse::thread::{Stopped, Until};

use crate::support::stores::memory::MemoryStore;
use crate::support::stores::{content, get, names, put};
use crate::support::{forever, key};

/// Every call ends in an error that may pass.
#[derive(Clone, Default)]
struct Down(Arc<AtomicUsize>);

impl Policy for Down {
    fn call<T>(
        &self,
        call: CallInfo,
        _: &Until,
        _: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let cause = io::Error::from(io::ErrorKind::TimedOut);
        Err(StoreError::new(call.operation, None, "memory:", cause))
    }
}

#[test]
fn calls_and_bytes_are_counted_both_ways() {
    let counts = Arc::new(Counts::default());
    let store = Layer::new(Box::new(MemoryStore::default()), Count::new(Arc::clone(&counts)));
    put(&store, "x", &content(5000));
    assert_eq!(get(&store, "x").unwrap(), content(5000));
    get(&store, "y").unwrap_err();
    assert_eq!((counts.calls(), counts.failed_calls()), (3, 1));
    assert_eq!((counts.durable_bytes(), counts.received_bytes()), (5000, 5000));
}

#[test]
fn what_a_failed_call_sent_is_not_durable() {
    let counts = Arc::new(Counts::default());
    let down = Layer::new(Box::new(MemoryStore::default()), Down::default());
    let store = Layer::new(Box::new(down), Count::new(Arc::clone(&counts)));
    store.put(&key("x"), Body::Bytes(b"content"), &forever()).unwrap_err();
    assert_eq!((counts.failed_calls(), counts.durable_bytes()), (1, 0));
}

#[test]
fn bytes_pass_no_faster_than_the_rate_both_ways_together() {
    let store = Layer::new(Box::new(MemoryStore::default()), Rate::new(100_000));
    let began = Instant::now();
    put(&store, "x", &content(5000));
    get(&store, "x").unwrap();
    put(&store, "y", &content(1));
    // The last of them waits until the 10,000 bytes before it are paid for.
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
}

#[test]
fn a_wait_for_the_rate_ends_with_the_callers_limit() {
    let memory = MemoryStore::default();
    let store = Layer::new(Box::new(memory.clone()), Rate::new(1));
    put(&store, "x", b"an hour's worth of bytes, or nearly");
    let limit = Until::within(Duration::from_millis(20));
    let error = store.put(&key("y"), Body::Bytes(b"y"), &limit).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::DeadlinePassed)), "{error}");
    assert_eq!(names(&memory, None), ["x"]);
}

#[test]
fn all_calls_share_one_budget_of_further_tries() {
    let down = Down::default();
    let config = RetryConfig { tries: 10, first_wait: Duration::ZERO, budget: 12, ..RetryConfig::default() };
    let store =
        Layer::new(Box::new(Layer::new(Box::new(MemoryStore::default()), down.clone())), Retry::new(config));
    let tries = |calls: usize| {
        (0..calls).for_each(|_| assert!(store.head(&key("x"), &forever()).is_err()));
        down.0.swap(0, Ordering::Relaxed)
    };
    assert_eq!(tries(1), 10);
    assert_eq!(tries(1), 1 + 3, "what was left of the budget");
    assert_eq!(tries(5), 5);
}
