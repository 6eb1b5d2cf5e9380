//! One night: the cluster, what happens to it, and what the service is told.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use dormouse::bucket::DataDir;
use dormouse::pause::{BucketPart, list_pauses};
use dormouse::shard::StoreKind;
use dormouse::thread::{self, Cancel, Thread, Until};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::service::{Answer, Archive, Failing, Fault, Order, Place, VBUCKETS, answer_in, command, digest};
use crate::support::buckets::{prune_to_what_is_named, scratch};
use crate::support::consumer::{expected, write};
use crate::support::path::{CancelOnDrop, Dice};
use crate::support::producer::{BUCKET_NAME, Producer};
use crate::support::stores::gateway::Gateway;
use crate::support::{eventually, tree};

const NODES: u16 = 3;
/// What the service may have in memory: its bounds are a few MiB each.
const MEMORY_MIB_MAX: u64 = 192;
/// Changes that are made at a time, and the wait after them.
const BURST: u64 = 20;
const PACE: Duration = Duration::from_millis(3);
/// Changes of each vbucket that the cluster keeps although later ones came.
const KEPT_CHANGES: u64 = 2000;
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(150);

/// How often each thing happened.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, what: &str) {
        self.add_to(what, 1);
    }

    fn add_to(&mut self, what: &str, times: u64) {
        *self.0.entry(what.to_owned()).or_default() += times;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            let most = what.starts_with("most ");
            let sum = self.0.entry(what.clone()).or_default();
            *sum = if most { *times.max(sum) } else { *sum + times };
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(what, times)| format!("{what} {times}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// A service that runs, and the way to it.
struct Running {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<Answer>,
    reader: Thread<()>,
    state: Option<String>,
}

impl Running {
    fn start(place: &Place) -> Self {
        let mut child = command(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = bounded(16);
        let reader = thread::spawn("t-answers", move || {
            let answers = output.lines().map_while(Result::ok).filter_map(|line| answer_in(&line));
            answers.for_each(|answer| sender.try_send(answer).unwrap());
        });
        let orders = child.stdin.take().unwrap();
        let mut running = Self { child, orders, answers, reader: reader.unwrap(), state: None };
        let first = running.answer(&Until::within(PATIENCE)).unwrap();
        running.state = first.state;
        running
    }

    /// The next answer; `None` where the service was killed first.
    fn answer(&mut self, until: &Until) -> Option<Answer> {
        match thread::recv(&self.answers, until) {
            Ok(answer) => {
                self.state.clone_from(&answer.state);
                Some(answer)
            }
            Err(thread::RecvError::Closed) => None,
            Err(thread::RecvError::Stopped(_)) => {
                let process = self.child.id();
                let tasks =
                    std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
                let names: Vec<_> =
                    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect();
                self.child.kill().unwrap();
                panic!("the service does not answer; its threads: {names:?}");
            }
        }
    }

    fn order(&mut self, order: &Order) {
        // Where the service has been killed the answer does not come.
        let _ = writeln!(self.orders, "{}", serde_json::to_string(order).unwrap());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Waits for its end, which comes by itself.
    fn wait(mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        self.reader.join(&Until::within(PATIENCE)).unwrap();
        status
    }

    fn end(mut self) -> Answer {
        self.order(&Order::Close);
        let last = self.answer(&Until::within(PATIENCE)).unwrap();
        assert!(self.wait().success());
        last
    }
}

pub(super) struct Night {
    dice: Dice,
    producer: Arc<Producer>,
    /// Held while documents are changed.
    may_write: Arc<Mutex<()>>,
    archive: Archive,
    folders: [PathBuf; 2],
    /// In which of them the bucket lives.
    at: usize,
    store: StoreKind,
    service: Option<Running>,
    has_second: bool,
    tally: Tally,
    _root: TempDir,
}

impl Night {
    pub(super) fn new(seed: u64) -> Self {
        let root = scratch();
        let folders = ["here", "there"].map(|name| root.path().join(name));
        let store = [StoreKind::Lsm, StoreKind::Memdb, StoreKind::Cow][usize::try_from(seed % 3).unwrap()];
        let folder = Archive::Folder(root.path().join("archive"));
        let archive = match Gateway::get().filter(|_| seed.is_multiple_of(2)) {
            Some(gateway) => Archive::S3(gateway.endpoint(), format!("night-{}-{seed}", std::process::id())),
            None => folder,
        };
        Self {
            dice: Dice::new(seed),
            producer: Arc::new(Producer::start_nodes(VBUCKETS, usize::from(NODES), None)),
            may_write: Arc::default(),
            archive,
            folders,
            at: 0,
            store,
            service: None,
            has_second: false,
            tally: Tally::default(),
            _root: root,
        }
    }

    pub(super) fn live(mut self, length: Duration) -> Tally {
        let (over, seed) = (Cancel::new(), self.dice.below(u64::MAX));
        let (producer, may_write) = (Arc::clone(&self.producer), Arc::clone(&self.may_write));
        let changes = std::thread::scope(|scope| {
            let _over = CancelOnDrop(&over);
            let changing =
                scope.spawn(|| change_all_the_time(&producer, &may_write, &over, &mut Dice::new(seed)));
            let began = Instant::now();
            self.wake();
            while began.elapsed() < length {
                self.step();
                if self.dice.below(12) == 0 {
                    self.settle();
                }
            }
            self.settle();
            self.dawn();
            over.cancel();
            changing.join().unwrap()
        });
        self.assert_nothing_left();
        drop(producer);
        let Self { producer, mut tally, .. } = self;
        tally.add_to("changes", changes);
        tally.add_to("connections", producer.state.lock().connections.len() as u64);
        Arc::into_inner(producer).unwrap().check();
        tally
    }

    /// What happens next.
    fn step(&mut self) {
        match self.dice.below(20) {
            0..9 => self.disturb(),
            9..12 => self.pause_here(),
            12..14 => self.move_elsewhere(),
            14..17 => self.kill(),
            17 => self.change_indexes(),
            _ => {}
        }
        let (_holder, never) = thread::fin();
        let _ = never.wait(&Until::within(Duration::from_millis(self.dice.below(150))));
    }

    fn disturb(&mut self) {
        let (producer, dice) = (Arc::clone(&self.producer), &mut self.dice);
        let vb = dice.choose(VBUCKETS);
        let what = match dice.below(8) {
            0 | 1 => {
                let after = usize::from(dice.choose(40_000));
                producer.behave(|behaviour| behaviour.cut_after = Some(after));
                "cuts"
            }
            2 => {
                producer.fail_over(vb, producer.high(vb).saturating_sub(dice.below(40)));
                "fail-overs"
            }
            3 | 4 => {
                producer.move_vb(vb, Some(usize::from(dice.choose(NODES))));
                "moves"
            }
            5 => {
                // The first one is where the service begins, and has to be there when it does.
                let node = 1 + usize::from(dice.choose(NODES - 1));
                producer.set_down(node, true);
                (0..VBUCKETS).filter(|vb| usize::from(*vb) % 3 == node).for_each(|vb| {
                    producer.move_vb(vb, Some((node + 1) % 3));
                });
                producer.behave(|behaviour| behaviour.cut_after = Some(0));
                "nodes that went"
            }
            6 => {
                (0..usize::from(NODES)).for_each(|node| producer.set_down(node, false));
                (0..VBUCKETS).for_each(|vb| producer.move_vb(vb, Some(usize::from(vb % NODES))));
                "nodes that came back"
            }
            _ => {
                let pieces = (dice.below(2) == 0).then(|| 1 + usize::from(dice.choose(3000)));
                producer.behave(|behaviour| {
                    (behaviour.compresses, behaviour.pieces) = (!behaviour.compresses, pieces);
                });
                "other ways to send"
            }
        };
        self.tally.count(what);
    }

    fn calm(&self) {
        let producer = &self.producer;
        producer.behave(|behaviour| (behaviour.cut_after, behaviour.pieces) = (None, None));
        (0..usize::from(NODES)).for_each(|node| producer.set_down(node, false));
        (0..VBUCKETS).for_each(|vb| producer.move_vb(vb, Some(usize::from(vb % NODES))));
    }

    fn fault(&mut self) -> Option<Fault> {
        let fails = match self.dice.below(10) {
            0 => Failing::Before,
            1 => Failing::After,
            2 => Failing::Passing,
            3 => Failing::Half,
            4 => Failing::Kills,
            _ => return None,
        };
        Some(Fault { at_call: 1 + usize::from(self.dice.choose(60)), fails })
    }

    fn service(&mut self) -> &mut Running {
        let place = Place {
            folder: self.folders[self.at].clone(),
            archive: self.archive.clone(),
            producer: self.producer.address,
            store: self.store,
        };
        self.service.get_or_insert_with(|| Running::start(&place))
    }

    /// Gives an order and waits for the answer, unless the service is killed before it comes.
    fn order(&mut self, order: &Order) -> Option<Answer> {
        let service = self.service();
        service.order(order);
        let answer = service.answer(&Until::within(PATIENCE));
        println!("{order:?}: {answer:?}");
        match &answer {
            None => {
                let status = self.service.take().unwrap().wait();
                assert_eq!(status.signal(), Some(9), "the service has failed: {status}");
                self.tally.count("kills at a call of the archive");
            }
            Some(answer) => {
                let most = self.tally.0.entry("most MiB of the service".to_owned()).or_default();
                *most = answer.memory_mib.max(*most);
                assert!(answer.memory_mib <= MEMORY_MIB_MAX, "the service has {} MiB", answer.memory_mib);
            }
        }
        answer
    }

    /// Whatever the state is, in the end the bucket is followed.
    fn wake(&mut self) {
        loop {
            let state = self.service().state.clone();
            let is_awake = state.as_deref() == Some("online");
            let is_new = state.is_none() && !self.has_pauses();
            if is_awake || is_new {
                match self.order(&Order::Follow) {
                    Some(Answer { error: None, .. }) => return,
                    Some(Answer { error: Some(error), .. }) => panic!("it is not followed: {error}"),
                    None => continue,
                }
            }
            let fault = self.fault();
            match self.order(&Order::Resume { fault }) {
                Some(Answer { error: None, .. }) => self.tally.count("resumes"),
                // It turned out to be awake.
                Some(Answer { state: Some(state), .. }) if state == "online" => {
                    self.tally.count("resumes of what was awake");
                }
                Some(Answer { error: Some(error), .. }) => {
                    assert!(fault.is_some(), "it is not resumed: {error}");
                    self.tally.count("resumes that failed");
                }
                None => {}
            }
        }
    }

    fn has_pauses(&self) -> bool {
        let store = self.archive.open();
        let part = BucketPart::whole(BUCKET_NAME);
        !list_pauses(&*store, &part, &Until::within(PATIENCE)).unwrap().is_empty()
    }

    /// Pauses, and tells whether the bucket sleeps.
    fn pause(&mut self, evict: bool) -> bool {
        let fault = self.fault();
        let compress = self.dice.below(2) == 0;
        let Some(answer) = self.order(&Order::Pause { evict, compress, fault }) else { return false };
        let is_done = answer.error.is_none();
        self.tally.count(match (is_done, evict) {
            (true, true) => "pauses with eviction",
            (true, false) => "pauses",
            (false, _) => "pauses that failed",
        });
        if let Some(error) = answer.error.filter(|_| fault.is_none()) {
            // An index that is being built is the only other reason.
            assert!(error.contains("is unfinished"), "it is not paused: {error}");
        }
        is_done
    }

    fn pause_here(&mut self) {
        let evict = self.dice.below(2) == 0;
        self.pause(evict);
        if self.is_asleep_or_gone() {
            self.wake();
        }
    }

    fn is_asleep_or_gone(&self) -> bool {
        self.service.as_ref().is_none_or(|service| service.state.as_deref() != Some("online"))
    }

    /// Sleeps here and wakes up in the other folder.
    fn move_elsewhere(&mut self) {
        if self.pause(true) && self.order(&Order::Drop).is_some_and(|answer| answer.error.is_none()) {
            self.end_service();
            self.at = 1 - self.at;
            self.tally.count("moves to the other folder");
        }
        if self.is_asleep_or_gone() {
            self.wake();
        }
    }

    fn kill(&mut self) {
        let order = match self.dice.below(3) {
            0 => Some(Order::Pause { evict: self.dice.below(2) == 0, compress: true, fault: None }),
            _ => None,
        };
        let wait = Duration::from_micros(self.dice.below(60_000));
        if let Some(order) = &order {
            self.service().order(order);
        }
        let (_holder, never) = thread::fin();
        let _ = never.wait(&Until::within(wait));
        self.service.take().unwrap().kill();
        println!("it is killed after {wait:?} of {order:?}");
        self.tally.count(if order.is_some() { "kills in a pause" } else { "kills" });
        self.wake();
    }

    fn change_indexes(&mut self) {
        let order = if self.has_second { Order::DropIndex } else { Order::MakeIndex };
        if let Some(answer) = self.order(&order) {
            assert!(answer.error.is_none(), "{order:?}: {:?}", answer.error);
            self.has_second = !self.has_second;
            self.tally.count(if self.has_second { "indexes made" } else { "indexes dropped" });
        }
        if self.is_asleep_or_gone() {
            self.wake();
        }
    }

    /// Everything stands still for a moment, and every index holds what the cluster has.
    fn settle(&mut self) {
        self.calm();
        let (producer, may_write) = (Arc::clone(&self.producer), Arc::clone(&self.may_write));
        let _still = may_write.lock();
        let order = Order::Settle { highs: producer.highs(), digest: digest(&expected(&producer)) };
        let answer = self.order(&order).unwrap();
        assert!(answer.error.is_none(), "{:?}", answer.error);
        producer.compact(KEPT_CHANGES);
        self.tally.count("times all was compared");
    }

    /// It goes to sleep for good, is woken up once more to be looked at, and everything ends.
    fn dawn(&mut self) {
        for order in [
            Order::Pause { evict: true, compress: true, fault: None },
            Order::Resume { fault: None },
            Order::Follow,
        ] {
            let answer = self.order(&order).unwrap();
            assert!(answer.error.is_none(), "{order:?}: {:?}", answer.error);
        }
        self.settle();
        self.end_service();
    }

    fn end_service(&mut self) {
        let last = self.service.take().unwrap().end();
        assert!(last.left.is_empty(), "{:?}", last.left);
    }

    /// No lock, no file but the bucket's, no object but what a pause names.
    fn assert_nothing_left(&self) {
        for (number, folder) in self.folders.iter().enumerate().filter(|(_, folder)| folder.exists()) {
            let mut data = None;
            // A process that another test starts holds what is open here until its program runs.
            eventually("the folder is free", || {
                data = DataDir::open(folder).ok();
                data.is_some()
            });
            let buckets = data.unwrap().buckets().unwrap().len();
            assert_eq!(buckets, usize::from(number == self.at), "{}", folder.display());
            assert!(tree(&folder.join("staging")).is_empty(), "{}", folder.display());
        }
        prune_to_what_is_named(&*self.archive.open(), BUCKET_NAME);
    }
}

/// Changes documents until it is over. Gives their number.
fn change_all_the_time(producer: &Producer, may_write: &Mutex<()>, over: &Cancel, dice: &mut Dice) -> u64 {
    let mut changes = 0;
    while over.fin().wait(&Until::within(PACE)).is_err() {
        let _turn = may_write.lock();
        write(producer, dice, BURST);
        changes += BURST;
    }
    changes
}
