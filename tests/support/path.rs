//! A data path whose source, evaluator and endpoint do what a test tells them to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, select_biased};
use dormouse::event::{
    ByteBudget, Datatype, DcpEvent, EventBatch, EventKind, Generation, OsoEdge, Seqno, Span, StreamEndReason,
    StreamStatus, SystemEvent, VbId, VbUuid,
};
use dormouse::index::{Document, KeyList};
use dormouse::projector::{Endpoint, EndpointRefused, Evaluator};
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{InstId, ShardId};
use dormouse::thread::{self, Cancel, Fin, JoinError, Thread, Until};
use parking_lot::Mutex;

/// A generator of numbers that the seed decides (`SplitMix64`).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// A number for a choice of up to 65,536.
    pub(crate) fn choose(&mut self, limit: u16) -> u16 {
        u16::try_from(self.below(u64::from(limit))).unwrap()
    }
}

/// What a call does now.
#[derive(Clone)]
pub(crate) enum Switch {
    Takes,
    /// It hangs until the token is given, and then does what the switch says by then.
    Hangs(Cancel),
    /// It refuses until the token is given.
    Later(Cancel),
    /// It refuses for good.
    Never,
    Panics,
}

/// A [`Switch`] that hangs are counted at.
pub(crate) struct Switched {
    switch: Mutex<Switch>,
    hanging: AtomicUsize,
}

impl Default for Switched {
    fn default() -> Self {
        Self { switch: Mutex::new(Switch::Takes), hanging: AtomicUsize::new(0) }
    }
}

impl Switched {
    pub(crate) fn set(&self, switch: Switch) {
        *self.switch.lock() = switch;
    }

    /// Calls that hang now.
    pub(crate) fn hanging(&self) -> usize {
        self.hanging.load(Ordering::SeqCst)
    }

    /// What the call that asks has to do, after it hung.
    fn pass(&self) -> Switch {
        loop {
            let switch = self.switch.lock().clone();
            match switch {
                Switch::Hangs(gate) if !gate.is_cancelled() => {
                    self.hanging.fetch_add(1, Ordering::SeqCst);
                    gate.fin().wait(&Until::default()).unwrap();
                    self.hanging.fetch_sub(1, Ordering::SeqCst);
                }
                Switch::Later(gate) if !gate.is_cancelled() => return Switch::Later(gate),
                Switch::Hangs(_) | Switch::Later(_) => return Switch::Takes,
                other => return other,
            }
        }
    }
}

/// What an endpoint was given.
#[derive(Default)]
pub(crate) struct Seen {
    /// The changes of each instance and vbucket, in the order in which they came.
    pub(crate) changes: BTreeMap<(InstId, VbId), Vec<Seqno>>,
    /// What is wrong with the batches.
    pub(crate) faults: Vec<String>,
    positions: BTreeMap<VbId, Seqno>,
    /// Streams that began and did not end.
    open: BTreeSet<VbId>,
}

/// Panics past the hook, which would print each of them with a backtrace.
fn panic_quietly(message: &str) -> ! {
    std::panic::resume_unwind(Box::new(message.to_owned()))
}

/// Takes batches and checks that each continues the one before it.
#[derive(Default)]
pub(crate) struct TestEndpoint {
    pub(crate) switched: Switched,
    pub(crate) put_off: AtomicUsize,
    pub(crate) seen: Mutex<Seen>,
}

impl Endpoint for TestEndpoint {
    fn try_apply(&self, _: ShardId, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        match self.switched.pass() {
            Switch::Later(gate) => {
                self.put_off.fetch_add(1, Ordering::SeqCst);
                return Err(EndpointRefused::Later { batch, ready: gate.fin().clone() });
            }
            Switch::Never => return Err(EndpointRefused::Never(anyhow::anyhow!("it was told to refuse"))),
            Switch::Panics => panic_quietly("the endpoint was told to panic"),
            Switch::Takes | Switch::Hangs(_) => self.seen.lock().take(&batch),
        }
        batch.clear();
        Ok(batch)
    }
}

impl Seen {
    fn take(&mut self, batch: &WriteBatch) {
        for note in &batch.notes {
            let is_in_turn = match note.kind {
                EventKind::StreamReq { status: StreamStatus::Success { .. } } => self.open.insert(note.vb),
                EventKind::StreamEnd { .. } => self.open.remove(&note.vb),
                _ => true,
            };
            if !is_in_turn {
                self.faults.push(format!("{note:?} is not its stream's turn"));
            }
        }
        for change in batch.changes() {
            self.changes.entry((change.inst, change.vb)).or_default().push(change.seqno);
        }
        let vbs: BTreeSet<VbId> = batch.advances.iter().map(|advance| advance.vb).collect();
        if vbs.len() != batch.advances.len() {
            self.faults.push(format!("a batch moves a vbucket twice: {:?}", batch.advances));
        }
        for advance in &batch.advances {
            let stored = self.positions.insert(advance.vb, advance.to.seqno).unwrap_or_default();
            if advance.from != stored {
                self.faults.push(format!("{advance:?} does not continue {stored}"));
            }
            let to = advance.to;
            if !(to.snap_start <= to.seqno && to.seqno <= to.snap_end) {
                self.faults.push(format!("{to:?} is no position"));
            }
        }
    }
}

/// Makes no keys. Fails or panics for documents whose id says so.
#[derive(Default)]
pub(crate) struct TestEvaluator {
    pub(crate) switched: Switched,
}

impl Evaluator for TestEvaluator {
    fn keys(&self, id: &str, _: &Document<'_>, _: &mut KeyList) -> anyhow::Result<()> {
        if id.ends_with('!') {
            panic_quietly("the evaluator was told to panic");
        }
        anyhow::ensure!(!id.ends_with('?'), "the evaluator was told to fail");
        self.switched.pass();
        Ok(())
    }
}

/// An evaluator that panics when a data path's control thread drops it.
pub(crate) struct Bomb;

impl Evaluator for Bomb {
    fn keys(&self, _: &str, _: &Document<'_>, _: &mut KeyList) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        let thread = std::thread::current();
        let is_control = thread.name().is_some_and(|name| name.starts_with("kv-ctl"));
        if is_control && !std::thread::panicking() {
            panic_quietly("the evaluator panics in its drop");
        }
    }
}

#[derive(Debug, Default)]
struct Stream {
    seqno: u64,
    is_open: bool,
    /// Seqnos of an out-of-order snapshot that are still to come.
    out_of_order: Option<Vec<u64>>,
}

/// Makes batches of every kind of event.
#[derive(Debug)]
pub(crate) struct Script {
    dice: Dice,
    generation: Generation,
    streams: Vec<Stream>,
    /// Times that each stream was told to begin, in batches that were sent.
    pub(crate) begins: BTreeMap<VbId, u64>,
    /// Vbuckets that had an out-of-order snapshot.
    pub(crate) out_of_order: BTreeSet<VbId>,
}

impl Script {
    pub(crate) fn new(seed: u64, generation: Generation, vbuckets: u16) -> Self {
        Self {
            dice: Dice::new(seed),
            generation,
            streams: (0..vbuckets).map(|_| Stream::default()).collect(),
            begins: BTreeMap::new(),
            out_of_order: BTreeSet::new(),
        }
    }

    /// Some events of some streams.
    pub(crate) fn batch(&mut self) -> EventBatch {
        let mut batch = EventBatch { generation: self.generation, ..EventBatch::default() };
        let vbuckets = u16::try_from(self.streams.len()).unwrap();
        for _ in 0..=self.dice.below(24) {
            let vb = VbId(self.dice.choose(vbuckets));
            self.event(vb, &mut batch);
        }
        batch
    }

    fn event(&mut self, vb: VbId, batch: &mut EventBatch) {
        let roll = self.dice.below(100);
        let stream = &mut self.streams[usize::from(vb.0)];
        if !stream.is_open {
            if roll < 80 {
                self.begin(vb, batch);
            } else {
                push(batch, vb, stream.seqno, refusal(roll));
            }
            return;
        }
        if let Some(left) = &mut stream.out_of_order {
            let Some(seqno) = left.pop() else {
                stream.out_of_order = None;
                return push(batch, vb, stream.seqno, EventKind::OsoSnapshot { edge: OsoEdge::End });
            };
            return document(batch, vb, seqno, roll);
        }
        match roll {
            0..68 => {
                stream.seqno += 1 + roll % 2;
                document(batch, vb, stream.seqno, roll);
            }
            68..74 => {
                stream.seqno += 3;
                push(batch, vb, stream.seqno, EventKind::SeqnoAdvanced);
            }
            74..80 => {
                stream.seqno += 1;
                let event = SystemEvent::CollectionCreate;
                push(batch, vb, stream.seqno, EventKind::SystemEvent { event });
            }
            80..86 => {
                let (start, end) = (Seqno(stream.seqno), Seqno(stream.seqno + 50));
                push(batch, vb, stream.seqno, EventKind::SnapshotMarker { start, end, each_once: false });
            }
            86..89 => {
                let from = stream.seqno;
                stream.out_of_order = Some(vec![from + 2, from + 4, from + 1, from + 3]);
                stream.seqno = from + 4;
                self.out_of_order.insert(vb);
                push(batch, vb, from, EventKind::OsoSnapshot { edge: OsoEdge::Start });
            }
            89..92 => self.begin(vb, batch),
            // Somebody asked for it once more.
            92..94 => push(batch, vb, stream.seqno, refusal(roll)),
            _ => {
                stream.is_open = false;
                let reason = StreamEndReason::StateChanged;
                push(batch, vb, stream.seqno, EventKind::StreamEnd { reason });
                if roll.is_multiple_of(2) {
                    self.begin(vb, batch);
                }
            }
        }
    }

    fn begin(&mut self, vb: VbId, batch: &mut EventBatch) {
        let stream = &mut self.streams[usize::from(vb.0)];
        stream.is_open = true;
        *self.begins.entry(vb).or_default() += 1;
        let status = StreamStatus::Success { vbuuid: VbUuid(7) };
        push(batch, vb, stream.seqno, EventKind::StreamReq { status });
    }
}

fn refusal(roll: u64) -> EventKind {
    let status = match roll % 4 {
        0 => StreamStatus::Rollback { to: Seqno(0) },
        1 => StreamStatus::UnknownCollection,
        2 => StreamStatus::UnknownScope,
        _ => StreamStatus::Refused { status: 0x24 },
    };
    EventKind::StreamReq { status }
}

fn push(batch: &mut EventBatch, vb: VbId, seqno: u64, kind: EventKind) {
    batch.events.push(DcpEvent { vb, seqno: Seqno(seqno), kind });
}

/// A document of which `roll` says what happened to it.
fn document(batch: &mut EventBatch, vb: VbId, seqno: u64, roll: u64) {
    let mut span = |text: &str| {
        let start = batch.buffer.len();
        batch.buffer.extend_from_slice(text.as_bytes());
        Span::since(start, &batch.buffer)
    };
    let tail = match roll {
        0 if seqno.is_multiple_of(5) => "!",
        1 => "?",
        _ => "",
    };
    let key = span(&format!("document-{seqno}{tail}"));
    let kind = match roll {
        50..60 => EventKind::Deletion { key },
        60..66 => EventKind::Expiration { key },
        66 => EventKind::Mutation {
            key: span("_txn:1"),
            value: span("x"),
            xattrs_len: 0,
            datatype: Datatype::XATTR,
        },
        _ => EventKind::Mutation { key, value: span("{\"a\":1}"), xattrs_len: 0, datatype: Datatype::JSON },
    };
    push(batch, vb, seqno, kind);
}

/// A source that sends what a [`Script`] makes until it is stopped.
pub(crate) struct Source {
    stop: Cancel,
    go: Cancel,
    is_full: Arc<AtomicBool>,
    thread: Thread<Script>,
}

impl Source {
    /// It sends one batch and goes on when [`Source::go`] is called.
    pub(crate) fn start(script: Script, budget: ByteBudget, capacity: usize) -> (Self, Receiver<EventBatch>) {
        let (sender, receiver) = bounded(capacity);
        let (stop, go, is_full) = (Cancel::new(), Cancel::new(), Arc::new(AtomicBool::new(false)));
        let (stopped, goes, full) = (stop.fin().clone(), go.fin().clone(), Arc::clone(&is_full));
        let thread = thread::spawn("test-source", move || {
            let mut script = script;
            if send(&mut script, &budget, &sender, &stopped, &full) {
                select_biased! {
                    recv(stopped.receiver()) -> _ => {}
                    recv(goes.receiver()) -> _ => {
                        while send(&mut script, &budget, &sender, &stopped, &full) {}
                    }
                }
            }
            // The sender is held until the end was asked for: only that closes the upstream.
            let _ = stopped.wait(&Until::default());
            script
        });
        (Self { stop, go, is_full, thread: thread.unwrap() }, receiver)
    }

    pub(crate) fn go(&self) {
        self.go.cancel();
    }

    /// Ends it, and closes the upstream thereby.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether it found its channel full.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    pub(crate) fn join(self) -> Script {
        self.stop();
        self.thread.join(&Until::default()).unwrap()
    }
}

/// Sends a batch. `false` when the source was stopped or nobody receives; what the batch began does not count then.
fn send(
    script: &mut Script,
    budget: &ByteBudget,
    to: &Sender<EventBatch>,
    stopped: &Fin,
    is_full: &AtomicBool,
) -> bool {
    let begins_before = script.begins.clone();
    let mut batch = script.batch();
    batch.charge = budget.charge(batch.weight_bytes(), stopped);
    if to.is_full() {
        is_full.store(true, Ordering::SeqCst);
    }
    let is_sent = batch.charge.is_some() && thread::send(to, batch, stopped).is_ok();
    if !is_sent {
        script.begins = begins_before;
    }
    is_sent
}

/// Counts what a data path logs about its end.
#[derive(Default)]
pub(crate) struct EndLines {
    pub(crate) ends: AtomicU64,
    pub(crate) second_fins: AtomicU64,
}

impl slog::Drain for EndLines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let line = record.msg().to_string();
        if line.starts_with("the data path ended: ") {
            self.ends.fetch_add(1, Ordering::SeqCst);
        } else if line.starts_with("a second fin") {
            self.second_fins.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Gives a token on every way out.
pub(crate) struct CancelOnDrop<'c>(pub(crate) &'c Cancel);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Asks again and again, as others may do what is waited for at any time.
pub(crate) fn wait_for(what: impl Fn() -> bool) {
    let never = Cancel::new();
    while !what() {
        let _ = never.fin().wait(&Until::within(Duration::from_micros(50)));
    }
}

/// The name and state of each thread of this process.
pub(crate) fn tasks() -> Vec<(String, String)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let read =
        |task: &std::path::Path, file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
    let task = |path: std::path::PathBuf| {
        let status = read(&path, "status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("gone");
        (read(&path, "comm").trim().to_owned(), state.trim().to_owned())
    };
    tasks.filter_map(Result::ok).map(|entry| task(entry.path())).collect()
}

/// Runs `work` and turns a hang into a failure that tells what each thread was at.
#[expect(clippy::panic, reason = "the failure of the test that it watches")]
pub(crate) fn watched(label: &str, work: impl FnOnce() + Send + 'static) {
    let running = thread::spawn("watched", work).unwrap();
    match running.join(&Until::within(Duration::from_secs(60))) {
        Ok(()) => {}
        Err(JoinError::Panicked(panicked)) => panic!("{label}: {}", panicked.message),
        Err(JoinError::StillRunning(_)) => {
            let mut threads = String::new();
            for (name, state) in tasks() {
                writeln!(threads, "{name:16} {state}").unwrap();
            }
            panic!("{label}: it hangs; the threads:\n{threads}");
        }
    }
}
