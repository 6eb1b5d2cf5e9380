//! A cancel ends a pause and a resume whose archive has stopped answering, at whichever call: soon, with every lock
//! free, and with nothing changed that was not to be.
//!
//! How long the longest took is printed: `cargo test --test suite -- pause_cancel --nocapture`.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse::bucket::{BucketState, PauseOptions};
use dormouse::objstore::{ObjectStore, S3Config, S3Store, StoreError};
use dormouse::shard::StoreKind;
use dormouse::thread::{Cancel, Fin, FinHolder, Until, fin};
use parking_lot::Mutex;

use crate::support::buckets::{World, close, ids, ingest, is_locked, lines, scan};
use crate::support::shards::for_each_store;
use crate::support::stores::forward::{Around, Call, Carries, Forward, Pass};
use crate::support::stores::gateway::Gateway;
use crate::support::stores::memory::MemoryStore;
use crate::support::stores::proxy::{Fault, Proxy};
use crate::support::{eventually, watchdog};

for_each_store! {
    a_cancel_ends_a_pause_whose_archive_stalls_at_any_call,
    a_cancel_ends_a_resume_whose_archive_stalls_at_any_call,
}

const DOCUMENTS: u32 = 300;

/// When the chosen call stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stalls {
    /// Before it has done anything.
    Before,
    /// With content, a byte at a time, which takes for ever; without, like the others.
    Dribbles,
    /// After it was carried out: its answer does not come.
    After,
}

/// Hands calls on to another store. One of them does not end before its limit does.
type StallingStore<'a> = Forward<'a, Stalling>;

struct Stalling {
    stall_at: usize,
    stalls: Stalls,
    calls: AtomicUsize,
    stands: Mutex<Option<FinHolder>>,
    stood: Fin,
}

impl<'a> StallingStore<'a> {
    fn new(inner: &'a dyn ObjectStore, stall_at: usize, stalls: Stalls) -> Self {
        let (holder, stood) = fin();
        let (calls, stands) = (AtomicUsize::new(0), Mutex::new(Some(holder)));
        Self::around(inner, Stalling { stall_at, stalls, calls, stands, stood })
    }

    fn has_stalled(&self) -> bool {
        self.around.stood.is_given()
    }
}

impl Around for Stalling {
    fn call<T>(
        &self,
        call: &Call<'_>,
        go: &mut dyn FnMut(Pass<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 != self.stall_at {
            return go(Pass::Whole);
        }
        if self.stalls == Stalls::After {
            go(Pass::Whole)?;
        }
        drop(self.stands.lock().take());
        let until = call.until;
        if self.stalls == Stalls::Dribbles && matches!(call.carries, Carries::Content | Carries::Draft) {
            let wait = || {
                let _ = until.cancel().fin().wait(&Until::within(Duration::from_millis(5)));
                until.check().map_err(io::Error::other)
            };
            return go(Pass::Slowly(&wait)).map_err(|error| match until.check() {
                Err(why) => call.failed(why),
                Ok(()) => error,
            });
        }
        let ended = until.cancel().fin().wait(&watchdog());
        assert!(ended.is_ok(), "nobody told the call");
        Err(call.failed(until.check().unwrap_err()))
    }
}

/// Cancels `work` when `stands`, and gives how long it took to come back then, with its result; no time where it came
/// back before.
fn cancelled_when<T: Send>(
    work: impl FnOnce(&Until) -> T + Send,
    stands: impl Fn() -> bool,
) -> (Option<Duration>, T) {
    let cancel = Cancel::new();
    let until = Until::new(watchdog().deadline(), cancel.clone());
    std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&until));
        eventually("it stands still, or is over", || stands() || working.is_finished());
        if !stands() {
            return (None, working.join().unwrap());
        }
        let began = Instant::now();
        cancel.cancel();
        let done = working.join().unwrap();
        (Some(began.elapsed()), done)
    })
}

/// The longest time, printed and held against a bound that is far above it: a machine that tests share may be slow.
#[derive(Default)]
struct Longest(Duration);

impl Longest {
    fn note(&mut self, took: Duration, what: &str) {
        assert!(took < Duration::from_secs(20), "{what} took {took:?}");
        self.0 = self.0.max(took);
    }

    fn print(&self, what: &str) {
        println!("cancelled {what}: at most {:?}", self.0);
    }
}

fn awake(kind: StoreKind) -> World {
    let world = World::of(kind);
    let bucket = world.filled("b", 0..DOCUMENTS);
    close(bucket);
    world
}

/// Cancels a pause at each of its calls. Gives how many there are.
fn pause_until_no_call_stalls(
    world: &World,
    inner: &dyn ObjectStore,
    stalls: Stalls,
    longest: &mut Longest,
) -> usize {
    let bucket = world.open("b");
    let options = PauseOptions { compress: true, ..PauseOptions::default() };
    for number in 1.. {
        let what = format!("call {number} {stalls:?}");
        let store = StallingStore::new(inner, number, stalls);
        let pause = |until: &Until| bucket.pause(&store, options, until, &mut |_| {});
        let (took, paused) = cancelled_when(pause, || store.has_stalled());
        assert!(!is_locked(&bucket), "{what}: a lock is left");
        if let Some(took) = took {
            longest.note(took, &what);
        }
        let state = bucket.describe().state;
        match paused {
            // What did not tell that it was carried out was found to be.
            Ok(_) => {
                assert!(matches!(state, BucketState::Paused { .. }), "{what}: {state}");
                close(bucket);
                return number;
            }
            Err(error) => assert_eq!(state, BucketState::Online, "{what}: {error}"),
        }
        // Each change may be another file, and another call, of the next pause: a few of them do.
        if number <= 3 {
            ingest(&bucket, lines(0..1)).unwrap();
        }
        assert_eq!(scan(&bucket), ids(0..DOCUMENTS));
    }
    unreachable!()
}

fn a_cancel_ends_a_pause_whose_archive_stalls_at_any_call(kind: StoreKind) {
    let world = awake(kind);
    for is_in_memory in [false, true] {
        let mut longest = Longest::default();
        for stalls in [Stalls::Before, Stalls::Dribbles, Stalls::After] {
            let (world, memory) = (world.copy(), MemoryStore::default());
            let inner: &dyn ObjectStore = if is_in_memory { &memory } else { &world.store };
            let calls = pause_until_no_call_stalls(&world, inner, stalls, &mut longest);
            // The last one finds all uploaded: two listings, a probe put and removed, and the manifest are left.
            assert!(calls > 5, "a pause has more calls than {calls}");
        }
        longest.print(if is_in_memory { "pause into memory" } else { "pause into a folder" });
    }
}

fn a_cancel_ends_a_resume_whose_archive_stalls_at_any_call(kind: StoreKind) {
    let (world, mut longest) = (awake(kind), Longest::default());
    let bucket = world.open("b");
    let options = PauseOptions { evict: true, compress: true };
    bucket.pause(&world.store, options, &watchdog(), &mut |_| {}).unwrap();
    close(bucket);
    let before = world.local();
    for stalls in [Stalls::Before, Stalls::Dribbles, Stalls::After] {
        for number in 1.. {
            let copy = world.copy();
            let store = StallingStore::new(&world.store, number, stalls);
            let resume = |until: &Until| copy.resume_from(&store, "b", until).map(drop);
            let (took, resumed) = cancelled_when(resume, || store.has_stalled());
            let Some(took) = took else {
                resumed.unwrap();
                break;
            };
            longest.note(took, "a resume");
            resumed.unwrap_err();
            assert!(copy.local() == before, "call {number} {stalls:?}: local state changed");
            copy.resume("b", &watchdog()).unwrap();
            let bucket = copy.open("b");
            assert_eq!(scan(&bucket), ids(0..DOCUMENTS));
            assert!(!is_locked(&bucket));
            close(bucket);
        }
    }
    longest.print("resume from a folder");
}

/// A server that says nothing to one request, or all of it a byte at a time.
#[test]
fn a_cancel_ends_a_pause_and_a_resume_over_a_server_that_stalls_at_any_request() {
    let Some(gateway) = Gateway::get() else { return };
    for fault in [Fault::Stall, Fault::Dribble] {
        let (world, mut longest) = (awake(StoreKind::Lsm), Longest::default());
        let proxy = Proxy::before(gateway.port());
        let config = S3Config { endpoint: Some(proxy.url()), ..gateway.config() };
        let store = S3Store::open(config).unwrap();
        let bucket = world.open("b");
        for number in 1.. {
            let before = proxy.faulty();
            proxy.plan(fault, number, |_| true);
            let options = PauseOptions { compress: true, ..PauseOptions::default() };
            let pause = |until: &Until| bucket.pause(&store, options, until, &mut |_| {});
            let (took, paused) = cancelled_when(pause, || proxy.faulty() > before);
            assert!(!is_locked(&bucket), "request {number} {fault:?}: a lock is left");
            match took {
                Some(took) => longest.note(took, "a pause"),
                None => drop(paused.as_ref().unwrap()),
            }
            if paused.is_ok() {
                break;
            }
        }
        longest.print(&format!("pause into a server, {fault:?}"));
        // One that was in doubt, or is paused, is evicted.
        proxy.plan(fault, usize::MAX, |_| true);
        let evict = PauseOptions { evict: true, compress: true };
        bucket.pause(&store, evict, &watchdog(), &mut |_| {}).unwrap();
        close(bucket);
        let mut longest = Longest::default();
        for number in 1.. {
            let before = proxy.faulty();
            proxy.plan(fault, number, |_| true);
            let resume = |until: &Until| world.resume_from(&store, "b", until).map(drop);
            let (took, resumed) = cancelled_when(resume, || proxy.faulty() > before);
            match took {
                Some(took) => longest.note(took, "a resume"),
                None => drop(resumed.as_ref().unwrap()),
            }
            if resumed.is_ok() {
                break;
            }
        }
        longest.print(&format!("resume from a server, {fault:?}"));
        let bucket = world.open("b");
        assert_eq!(scan(&bucket), ids(0..DOCUMENTS));
        close(bucket);
    }
}
