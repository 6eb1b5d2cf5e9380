//! A model of how a `KvData` ends, searched in every interleaving.
//!
//! Each step of the model is one atomic step of a thread; what stands between two steps of one thread, the others
//! may do in between. Its parts and the code:
//!
//! | model | code |
//! |---|---|
//! | [`Step::Control`] in `Serve` | one round of the `select_biased!` of `gen_server`: its fin, a worker that ended, an answer, a request |
//! | `Stop`, `Fin`, `AwaitLedger`, `CloseWorker`, `PostEnds`, `PostFin`, `Done` | the steps of `GenServer::finish`, in their order |
//! | [`Step::Scatter`] in `Take` | one round of the `select_biased!` of `run_scatter`: its fin, a batch, the end of the source |
//! | `Expect`, `HandOff`, `Post` | a batch's begins into the ledger, one send to a worker, one event told to the feed |
//! | `HandOver`, `Leave` | the thread's last message, the drop of `gen_server_fin` |
//! | [`Step::Work`] | one round of a worker's data thread: its fin, an order, a batch; and the return of the endpoint's call |
//! | [`Step::Panic`] | `thread::catch` around each loop, and a worker's endpoint that panics or refuses for good |
//! | [`Step::Ask`] | `KvData::add_engines`: the check of the stop, the send, the wait for the answer |
//! | [`Step::Close`] | `KvData::close`: the send of the request, the wait for `done`, the join |
//! | [`Step::StopScatter`] | `KvData::stop_scatter`, as `Feed::stop` calls it first |
//! | [`Step::Send`], [`Step::EndSource`] | the source's sends and the drop of its sender |
//!
//! A worker's two threads are one here: its control thread only passes on and joins. A step that is never taken
//! stands for a thread that is slow. Every step uses something up, so no run is endless: that something happens
//! in the end is that it has happened wherever no step is left.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A message about the stream of a vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Message {
    Begin(u8),
    End(u8),
}
use Message::{Begin, End};

impl Message {
    fn begins(self) -> Option<u8> {
        match self {
            Begin(vb) => Some(vb),
            End(_) => None,
        }
    }
}

type Batch = &'static [Message];

/// What is tried, beside each batch that the source sends.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    workers: usize,
    batches: &'static [Batch],
    source_ends: bool,
    stop_from_feed: bool,
    closes: u8,
    panics: u8,
    /// The shards are locked: the workers take no data, only control.
    is_locked: bool,
}

/// A step that a broken variant of the protocol leaves out or does otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    EndsAreNotPosted,
    LedgerAfterHandOff,
    FinIsNotGiven,
    SendIgnoresFin,
    ReplyIsNotTriedAgain,
    WorkerEndIsNotSeen,
    SupersededInAdvance,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Control {
    Serve,
    Stop,
    Fin,
    AwaitLedger,
    CloseWorker(usize),
    PostEnds,
    PostFin,
    Done,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scatter {
    Take,
    Expect(Batch),
    HandOff(Batch, usize),
    Post(Batch, usize),
    HandOver,
    Leave,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a signal of its own")]
struct Worker {
    queued: u8,
    in_call: bool,
    order: bool,
    stop: bool,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reply {
    None,
    Pending,
    Produced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asker {
    Check,
    Send,
    Wait,
    Result,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Closer {
    Send,
    AwaitDone,
    Join,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Request {
    Change,
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a signal of its own")]
struct State {
    gen_server_fin: bool,
    run_scatter_fin: bool,
    gen_server_stop: bool,
    done: bool,
    control: Control,
    scatter: Scatter,
    /// Streams that are owed an end, with whether the feed knows that they began.
    ledger: BTreeMap<u8, bool>,
    handed_over: Option<BTreeMap<u8, bool>>,
    workers: Vec<Worker>,
    answers: usize,
    upstream: VecDeque<Batch>,
    batches_left: &'static [Batch],
    source_ends: bool,
    source_gone: bool,
    requests: VecDeque<Request>,
    reply: Reply,
    asker: Asker,
    closer: Closer,
    closes_left: u8,
    stop_left: bool,
    panics_left: u8,
    is_locked: bool,
    /// Streams whose begin a worker has.
    given: BTreeSet<u8>,
    /// Begins and ends that the feed was told of.
    book: BTreeMap<u8, (u8, u8)>,
    fins: u8,
    /// Something happened after which the data path has to end.
    must_end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thread {
    Control,
    Scatter,
    Worker(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Control,
    Scatter,
    Work(usize),
    Panic(Thread),
    Ask,
    Close,
    StopScatter,
    Send,
    EndSource,
}

struct Protocol {
    scenarios: Vec<Scenario>,
    broken: Broken,
}

impl State {
    fn new(scenario: Scenario) -> Self {
        Self {
            gen_server_fin: false,
            run_scatter_fin: false,
            gen_server_stop: false,
            done: false,
            control: Control::Serve,
            scatter: Scatter::Take,
            ledger: BTreeMap::new(),
            handed_over: None,
            workers: vec![Worker::default(); scenario.workers],
            answers: 0,
            upstream: VecDeque::new(),
            batches_left: scenario.batches,
            source_ends: scenario.source_ends,
            source_gone: false,
            requests: VecDeque::new(),
            reply: Reply::None,
            asker: Asker::Check,
            closer: Closer::Send,
            closes_left: scenario.closes,
            stop_left: scenario.stop_from_feed,
            panics_left: scenario.panics,
            is_locked: scenario.is_locked,
            given: BTreeSet::new(),
            book: BTreeMap::new(),
            fins: 0,
            must_end: false,
        }
    }

    fn post(&mut self, message: Message) {
        match message {
            Begin(vb) => self.book.entry(vb).or_default().0 += 1,
            End(vb) => self.book.entry(vb).or_default().1 += 1,
        }
    }

    fn scatter_is_over(&self) -> bool {
        matches!(self.scatter, Scatter::HandOver | Scatter::Leave | Scatter::Ended)
    }

    /// One round of `gen_server`. `None` where it waits.
    fn control(&mut self, broken: Broken) -> Option<()> {
        self.control = match self.control {
            Control::Serve => self.serve(broken)?,
            Control::Stop => {
                self.gen_server_stop = true;
                Control::Fin
            }
            Control::Fin => {
                self.run_scatter_fin |= broken != Broken::FinIsNotGiven;
                Control::AwaitLedger
            }
            Control::AwaitLedger => {
                self.handed_over.as_ref()?;
                Control::CloseWorker(0)
            }
            Control::CloseWorker(number) => match self.workers.get_mut(number) {
                Some(worker) if worker.ended => Control::CloseWorker(number + 1),
                Some(worker) if !worker.stop => {
                    worker.stop = true;
                    Control::CloseWorker(number)
                }
                Some(_) => return None,
                None => Control::PostEnds,
            },
            Control::PostEnds => {
                for vb in self.handed_over.take().unwrap_or_default().into_keys() {
                    if broken != Broken::EndsAreNotPosted {
                        self.post(End(vb));
                    }
                }
                Control::PostFin
            }
            Control::PostFin => {
                self.fins += 1;
                Control::Done
            }
            Control::Done => {
                self.done = true;
                Control::Ended
            }
            Control::Ended => return None,
        };
        Some(())
    }

    fn serve(&mut self, broken: Broken) -> Option<Control> {
        let worker_ended = self.workers.iter().any(|worker| worker.ended);
        if self.gen_server_fin || worker_ended && broken != Broken::WorkerEndIsNotSeen {
            return Some(Control::Stop);
        }
        if self.answers == self.workers.len() {
            self.answers = 0;
            self.reply = Reply::Produced;
            return Some(Control::Serve);
        }
        match self.requests.pop_front()? {
            Request::Close => Some(Control::Stop),
            Request::Change => {
                for worker in &mut self.workers {
                    worker.order = true;
                }
                Some(Control::Serve)
            }
        }
    }

    /// One step of `run_scatter`.
    fn scatter(&mut self, broken: Broken) -> Option<()> {
        self.scatter = match self.scatter {
            Scatter::Take if self.run_scatter_fin => Scatter::HandOver,
            Scatter::Take => match self.upstream.pop_front() {
                Some(batch) => Scatter::Expect(batch),
                None if self.source_gone => Scatter::HandOver,
                None => return None,
            },
            Scatter::Expect(batch) => {
                if broken != Broken::LedgerAfterHandOff {
                    self.expect(batch, broken);
                }
                Scatter::HandOff(batch, 0)
            }
            Scatter::HandOff(batch, number) => match self.workers.get_mut(number) {
                None => Scatter::Post(batch, 0),
                Some(_) if self.run_scatter_fin && broken != Broken::SendIgnoresFin => Scatter::HandOver,
                Some(worker) if worker.ended => {
                    self.must_end = true;
                    Scatter::HandOver
                }
                Some(worker) if worker.queued == 0 => {
                    worker.queued += 1;
                    self.given.extend(batch.iter().filter_map(|message| message.begins()));
                    Scatter::HandOff(batch, number + 1)
                }
                Some(_) => return None,
            },
            Scatter::Post(batch, number) => match batch.get(number) {
                None => Scatter::Take,
                Some(message) => {
                    self.tell(*message, broken);
                    Scatter::Post(batch, number + 1)
                }
            },
            Scatter::HandOver => {
                self.handed_over = Some(std::mem::take(&mut self.ledger));
                Scatter::Leave
            }
            Scatter::Leave => {
                self.gen_server_fin = true;
                Scatter::Ended
            }
            Scatter::Ended => return None,
        };
        Some(())
    }

    fn expect(&mut self, batch: Batch, broken: Broken) {
        for message in batch {
            let Some(vb) = message.begins() else { continue };
            let was_there = self.ledger.contains_key(&vb);
            self.ledger.entry(vb).or_insert(false);
            if was_there && broken == Broken::SupersededInAdvance {
                self.post(End(vb));
            }
        }
    }

    fn tell(&mut self, message: Message, broken: Broken) {
        match message {
            Begin(_) if broken == Broken::SupersededInAdvance => {}
            Begin(vb) => {
                if self.ledger.insert(vb, true) == Some(true) {
                    self.post(End(vb));
                }
            }
            End(vb) => {
                self.ledger.remove(&vb);
            }
        }
        self.post(message);
    }

    /// One round of a worker's data thread.
    fn work(&mut self, number: usize) -> Option<()> {
        let nothing_comes = self.scatter_is_over();
        let worker = self.workers.get_mut(number).filter(|worker| !worker.ended)?;
        if worker.in_call {
            worker.in_call = false;
        } else if worker.stop {
            worker.ended = true;
        } else if worker.order {
            worker.order = false;
            self.answers += 1;
        } else if worker.queued > 0 && !self.is_locked {
            worker.queued -= 1;
            worker.in_call = true;
        } else if nothing_comes {
            worker.ended = true;
        } else {
            return None;
        }
        Some(())
    }

    fn panic(&mut self, thread: Thread) -> Option<()> {
        self.panics_left = self.panics_left.checked_sub(1)?;
        match thread {
            Thread::Control if self.control == Control::Serve => self.control = Control::Stop,
            Thread::Scatter if !self.scatter_is_over() => self.scatter = Scatter::HandOver,
            Thread::Worker(number) => {
                self.workers.get_mut(number).filter(|worker| !worker.ended && worker.in_call)?.ended = true;
            }
            Thread::Control | Thread::Scatter => return None,
        }
        self.must_end = true;
        Some(())
    }

    fn ask(&mut self, broken: Broken) -> Option<()> {
        let at_the_stop = |reply| match reply {
            Reply::Produced if broken != Broken::ReplyIsNotTriedAgain => Asker::Result,
            _ => Asker::Closed,
        };
        self.asker = match self.asker {
            Asker::Check | Asker::Send if self.gen_server_stop => Asker::Closed,
            Asker::Check => Asker::Send,
            Asker::Send if self.requests.is_empty() => {
                self.requests.push_back(Request::Change);
                self.reply = Reply::Pending;
                Asker::Wait
            }
            // The round of the select that finds the result first is the one below without the stop.
            Asker::Wait if self.gen_server_stop => at_the_stop(self.reply),
            Asker::Wait if self.reply == Reply::Produced => Asker::Result,
            _ => return None,
        };
        Some(())
    }

    fn close(&mut self) -> Option<()> {
        if self.closes_left == 0 {
            return None;
        }
        self.closer = match self.closer {
            Closer::Send if self.gen_server_stop => Closer::AwaitDone,
            Closer::Send if self.requests.is_empty() => {
                self.requests.push_back(Request::Close);
                self.must_end = true;
                Closer::AwaitDone
            }
            Closer::AwaitDone if self.done => Closer::Join,
            Closer::Join if self.has_ended() => {
                self.closes_left -= 1;
                Closer::Send
            }
            _ => return None,
        };
        Some(())
    }

    fn send(&mut self) -> Option<()> {
        let (batch, left) = self.batches_left.split_first()?;
        if self.source_gone || self.scatter_is_over() || !self.upstream.is_empty() {
            return None;
        }
        self.upstream.push_back(batch);
        self.batches_left = left;
        Some(())
    }

    fn end_source(&mut self) -> Option<()> {
        if !self.source_ends || self.source_gone {
            return None;
        }
        self.source_gone = true;
        self.must_end = true;
        Some(())
    }

    fn stop_scatter(&mut self) -> Option<()> {
        if !self.stop_left {
            return None;
        }
        self.stop_left = false;
        self.run_scatter_fin = true;
        self.must_end = true;
        Some(())
    }

    fn has_ended(&self) -> bool {
        self.control == Control::Ended
            && self.scatter == Scatter::Ended
            && self.workers.iter().all(|worker| worker.ended)
    }

    /// Whether an end may rest here: everybody got an answer, and what had to end has ended.
    fn may_rest(&self) -> bool {
        let has_answers = matches!(self.asker, Asker::Result | Asker::Closed) && self.closes_left == 0;
        has_answers && (!self.must_end || self.has_ended() && self.done)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        self.scenarios.iter().copied().map(State::new).collect()
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        // Those that cannot be taken now lead to no state.
        steps.extend(all_steps(state));
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Control => next.control(self.broken),
            Step::Scatter => next.scatter(self.broken),
            Step::Work(number) => next.work(number),
            Step::Panic(thread) => next.panic(thread),
            Step::Ask => next.ask(self.broken),
            Step::Close => next.close(),
            Step::StopScatter => next.stop_scatter(),
            Step::Send => next.send(),
            Step::EndSource => next.end_source(),
        }?;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nobody waits for ever", |model: &Self, state: &State| {
                state.may_rest() || all_steps(state).any(|step| model.next_state(state, step).is_some())
            }),
            Property::always("at most one fin, and it comes before done", |_, state: &State| {
                state.fins <= 1 && (!state.done || state.fins == 1)
            }),
            Property::always(
                "no end without its begin, and no begin of a stream that is there",
                |_, state: &State| {
                    state.book.values().all(|(begins, ends)| ends <= begins && begins - ends <= 1)
                        || state.control > Control::PostEnds
                },
            ),
            Property::always("when it is done each begin has one end", |_, state: &State| {
                // A stream whose begin a worker has gets its end, also where the feed was not told of the begin.
                let is_even = |(begins, ends): &(u8, u8)| ends == begins || (*begins, *ends) == (0, 1);
                !state.done
                    || state.book.values().all(is_even)
                        && state.given.iter().all(|vb| state.book.get(vb).is_some_and(|(_, ends)| *ends > 0))
            }),
            Property::always("done means that nothing runs", |_, state: &State| {
                !state.done || state.scatter_is_over() && state.workers.iter().all(|worker| worker.ended)
            }),
            Property::always("a result that was produced is delivered", |_, state: &State| {
                state.asker != Asker::Closed || state.reply != Reply::Produced
            }),
            Property::sometimes("a result is delivered after the stop", |_, state: &State| {
                state.gen_server_stop && state.asker == Asker::Wait && state.reply == Reply::Produced
            }),
            Property::sometimes("an end is owed", |_, state: &State| {
                state.handed_over.as_ref().is_some_and(|ledger| !ledger.is_empty())
            }),
        ]
    }
}

fn all_steps(state: &State) -> impl Iterator<Item = Step> {
    [Step::Control, Step::Scatter, Step::Ask, Step::Close, Step::StopScatter, Step::Send, Step::EndSource]
        .into_iter()
        .chain([Thread::Control, Thread::Scatter].map(Step::Panic))
        .chain(
            (0..state.workers.len())
                .flat_map(|number| [Step::Work(number), Step::Panic(Thread::Worker(number))]),
        )
}

/// Everything that can end a data path, alone and two at a time.
fn scenarios() -> Vec<Scenario> {
    let batches: [&[Batch]; 3] = [
        &[&[Begin(0), Begin(1)], &[End(0)]],
        &[&[Begin(0)], &[End(0), Begin(0)]],
        &[&[Begin(0)], &[Begin(0)]],
    ];
    let with = |workers, batches| {
        let quiet = Scenario {
            workers,
            batches,
            source_ends: false,
            stop_from_feed: false,
            closes: 0,
            panics: 0,
            is_locked: false,
        };
        [
            Scenario { panics: 1, ..quiet },
            Scenario { is_locked: true, closes: 1, ..quiet },
            Scenario { stop_from_feed: true, closes: 1, ..quiet },
            Scenario { source_ends: true, panics: 1, ..quiet },
            Scenario { source_ends: true, closes: 1, ..quiet },
            Scenario { closes: 2, panics: 1, ..quiet },
        ]
    };
    // A second worker is one more place to stand at for each state: the first endings show what it adds.
    let pairs = with(2, batches[0]).into_iter().take(3);
    batches.into_iter().flat_map(|batches| with(1, batches)).chain(pairs).collect()
}

#[test]
fn whatever_ends_first_the_data_path_ends_in_order() {
    let protocol = Protocol { scenarios: scenarios(), broken: Broken::No };
    let checked = protocol.checker().spawn_bfs().join();
    checked.assert_properties();
    assert!(checked.is_done());
}

#[test]
fn the_model_sees_each_step_that_is_left_out() {
    for (broken, seen_by) in [
        (Broken::EndsAreNotPosted, "when it is done each begin has one end"),
        (Broken::LedgerAfterHandOff, "when it is done each begin has one end"),
        (Broken::FinIsNotGiven, "nobody waits for ever"),
        (Broken::SendIgnoresFin, "nobody waits for ever"),
        (Broken::ReplyIsNotTriedAgain, "a result that was produced is delivered"),
        (Broken::WorkerEndIsNotSeen, "nobody waits for ever"),
        (Broken::SupersededInAdvance, "no end without its begin, and no begin of a stream that is there"),
    ] {
        let protocol = Protocol { scenarios: scenarios(), broken };
        let checked =
            protocol.checker().finish_when(HasDiscoveries::AnyOf([seen_by].into())).spawn_dfs().join();
        assert!(checked.discovery(seen_by).is_some(), "{broken:?} is not seen by: {seen_by}");
    }
}
