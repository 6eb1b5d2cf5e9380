//! Layers over a store: what they count, what they hold back, and how often they try again.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse::objstore::{
    Body, CallInfo, Count, Counts, Floor, Layer, ObjectStore, Policy, Rate, Retry, RetryConfig, StoreCause,
    StoreError,
};
use dormouse::thread::{Failure, Stopped, Until, fin, spawn};

use crate::support::stores::memory::MemoryStore;
use crate::support::stores::{content, get, names, put};
use crate::support::{forever, key, watchdog};

/// Every call ends in an error that may pass.
#[derive(Clone, Default)]
struct Down(Arc<AtomicUsize>);

impl Policy for Down {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        _: &Until,
        _: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let cause = io::Error::from(io::ErrorKind::TimedOut);
        Err(StoreError::new(call.operation, None, "memory:", cause))
    }
}

fn rate(bytes_per_second: u64) -> Rate {
    Rate::new(NonZeroU64::new(bytes_per_second).unwrap())
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
    let store = Layer::new(Box::new(MemoryStore::default()), rate(100_000));
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
    let store = Layer::new(Box::new(memory.clone()), rate(1));
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

/// Fails the first tries as a busy server does, which asks to be left alone for a while.
struct Busy {
    failures: AtomicUsize,
    retry_after: Option<Duration>,
}

impl Busy {
    fn layer(failures: usize, retry_after: Option<Duration>, config: RetryConfig) -> Layer<Retry> {
        let busy = Self { failures: AtomicUsize::new(failures), retry_after };
        Layer::new(Box::new(Layer::new(Box::new(MemoryStore::default()), busy)), Retry::new(config))
    }
}

impl Policy for Busy {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let left =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            return go(until);
        }
        let (code, message) = ("SlowDown".to_owned(), String::new());
        let retry_after = self.retry_after;
        let cause = StoreCause::Refused { status: 503, code, message, is_temporary: true, retry_after };
        Err(StoreError::new(call.operation, None, "memory:", cause))
    }
}

#[test]
fn another_try_waits_as_long_as_the_server_asks_and_not_beyond_the_deadline() {
    let config = RetryConfig { first_wait: Duration::ZERO, ..RetryConfig::default() };
    let store = Busy::layer(2, Some(Duration::from_millis(60)), config);
    let began = Instant::now();
    assert_eq!(store.head(&key("x"), &forever()).unwrap(), None);
    assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
    let store = Busy::layer(2, Some(Duration::from_secs(300)), config);
    let began = Instant::now();
    let error = store.head(&key("x"), &watchdog()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Refused { status: 503, .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30), "it waited for nothing: {:?}", began.elapsed());
}

#[test]
fn waits_are_drawn_between_nothing_and_their_bound() {
    let bound = Duration::from_secs(1);
    let config = RetryConfig { first_wait: bound, longest_wait: bound, ..RetryConfig::default() };
    let calls: Vec<_> = (0..24)
        .map(|number| {
            let store = Busy::layer(1, None, config);
            spawn(format!("caller {number}"), move || {
                let began = Instant::now();
                store.head(&key("x"), &forever()).unwrap();
                began.elapsed()
            })
            .unwrap()
        })
        .collect();
    let waits: Vec<_> = calls.into_iter().map(|call| call.join(&watchdog()).unwrap()).collect();
    // That all 24 are on one side of the middle happens once in ten million times, or less.
    assert!(waits.iter().any(|wait| *wait < bound / 2), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait > bound / 2), "{waits:?}");
}

#[test]
fn what_is_permanent_is_not_tried_again() {
    let counts = Arc::new(Counts::default());
    let counted = Layer::new(Box::new(MemoryStore::default()), Count::new(Arc::clone(&counts)));
    let store = Layer::new(Box::new(counted), Retry::new(RetryConfig::default()));
    get(&store, "x").unwrap_err();
    assert_eq!((counts.calls(), counts.failed_calls()), (1, 1));
}

#[test]
fn all_threads_share_one_rate() {
    let store = Arc::new(Layer::new(Box::new(MemoryStore::default()), rate(100_000)));
    let began = Instant::now();
    let threads: Vec<_> = (0..5)
        .map(|number| {
            let store = Arc::clone(&store);
            spawn(format!("putter {number}"), move || put(&*store, &format!("{number}"), &content(4000)))
                .unwrap()
        })
        .collect();
    for thread in threads {
        thread.join(&watchdog()).unwrap();
    }
    // The last of them waits until the 16,000 bytes of the others are paid for.
    assert!(began.elapsed() >= Duration::from_millis(160), "{:?}", began.elapsed());
}

/// Takes its time with what comes.
struct Slow;

impl Policy for Slow {
    fn call<T>(
        &self,
        _: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (_holder, never) = fin();
        let _ = never.wait(&until.at_most(Duration::from_millis(300)));
        go(until)
    }
}

fn floor(bytes_per_second: u64, grace_ms: u64) -> Floor {
    Floor { bytes_per_second, grace: Duration::from_millis(grace_ms), call_limit: None }
}

#[test]
fn a_call_has_the_time_that_its_bytes_need_and_one_without_content_ten_times_the_grace() {
    let memory = MemoryStore::default();
    put(&memory, "x", b"content");
    // Seven bytes have a second, as any number of them up to a thousand.
    let store = Layer::new(Box::new(Layer::new(Box::new(memory.clone()), Slow)), floor(1000, 250));
    assert_eq!(get(&store, "x").unwrap(), b"content");
    assert_eq!(store.head(&key("x"), &forever()).unwrap(), Some(7));
    let impatient = Layer::new(Box::new(Layer::new(Box::new(memory), Slow)), floor(1000, 1));
    let error = impatient.head(&key("x"), &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::TooSlow { limit } if limit.as_millis() == 10), "{error}");
    assert!(error.is_temporary());
    let stuck = || Box::new(Layer::new(Box::new(MemoryStore::default()), Stuck));
    let never_enough = Layer::new(stuck(), floor(1_000_000_000, 1));
    let error = never_enough.put(&key("x"), Body::Bytes(b"content"), &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::TooSlow { .. }), "{error}");
    let limit = Until::within(Duration::from_millis(1));
    let error = never_enough.put(&key("x"), Body::Bytes(b"content"), &limit).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::DeadlinePassed)), "the caller's own: {error}");
}

#[test]
fn a_limit_of_calls_holds_for_each_of_them_whatever_it_carries() {
    let limit = Duration::from_millis(20);
    let limited = Floor { call_limit: Some(limit), ..floor(1, 60_000) };
    let store = Layer::new(Box::new(Layer::new(Box::new(MemoryStore::default()), Stuck)), limited);
    for error in [
        store.head(&key("x"), &watchdog()).unwrap_err(),
        store.put(&key("x"), Body::Bytes(b""), &watchdog()).unwrap_err(),
        store.put(&key("x"), Body::Bytes(b"content"), &watchdog()).unwrap_err(),
    ] {
        assert!(matches!(error.cause, StoreCause::TooSlow { limit: had } if had == limit), "{error}");
        assert!(error.to_string().contains("it took longer than 20ms"), "{error}");
    }
}

/// Waits for the end of its limit.
struct Stuck;

impl Policy for Stuck {
    fn call<T>(
        &self,
        _: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (_holder, never) = fin();
        let _ = never.wait(until);
        go(until)
    }
}
