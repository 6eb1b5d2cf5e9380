//! The states of the model and what a step makes of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A message about the stream of a vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Begin(u8),
    End(u8),
}
pub(super) use Message::{Begin, End};

impl Message {
    pub(super) fn begins(self) -> Option<u8> {
        match self {
            Begin(vb) => Some(vb),
            End(_) => None,
        }
    }
}

pub(super) type Batch = &'static [Message];

/// What is tried, beside each batch that the source sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    pub(super) workers: usize,
    pub(super) batches: &'static [Batch],
    pub(super) source_ends: bool,
    pub(super) stop_from_feed: bool,
    pub(super) closes: u8,
    pub(super) panics: u8,
    /// The shards are locked: the workers take no data, only control.
    pub(super) is_locked: bool,
}

/// A step that a broken variant of the protocol leaves out or does otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    No,
    EndsAreNotPosted,
    LedgerAfterHandOff,
    UntoldIsForgotten,
    UntoldIsOwedAnEnd,
    FinIsNotGiven,
    SendIgnoresFin,
    ReplyIsNotTriedAgain,
    WorkerEndIsNotSeen,
}

/// What the feed is owed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Ledger {
    pub(super) begun: BTreeSet<u8>,
    pub(super) untold: VecDeque<Message>,
}

impl Ledger {
    /// Takes out what the feed is told next.
    fn next_untold(&mut self) -> Option<Message> {
        let message = self.untold.pop_front()?;
        match message {
            Begin(vb) => self.begun.insert(vb),
            End(vb) => self.begun.remove(&vb),
        };
        Some(message)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Control {
    Serve,
    Stop,
    Fin,
    AwaitLedger,
    CloseWorkers,
    JoinWorkers,
    PostEnds,
    PostFin,
    Done,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scatter {
    Take,
    Note(Batch),
    HandOff(Batch, usize),
    Tell,
    HandOver,
    Leave,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a signal of its own")]
pub(super) struct Worker {
    pub(super) queued: u8,
    pub(super) in_call: bool,
    pub(super) order: bool,
    pub(super) stop: bool,
    pub(super) ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    None,
    Pending,
    Produced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    Check,
    Send,
    Wait,
    Result,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Closer {
    Send,
    AwaitDone,
    Join,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Request {
    Change,
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a signal of its own")]
pub(super) struct State {
    pub(super) gen_server_fin: bool,
    pub(super) run_scatter_fin: bool,
    pub(super) gen_server_stop: bool,
    pub(super) done: bool,
    pub(super) control: Control,
    pub(super) scatter: Scatter,
    pub(super) ledger: Ledger,
    pub(super) handed_over: Option<Ledger>,
    pub(super) workers: Vec<Worker>,
    pub(super) answers: usize,
    pub(super) upstream: VecDeque<Batch>,
    pub(super) batches_left: &'static [Batch],
    pub(super) source_ends: bool,
    pub(super) source_gone: bool,
    pub(super) requests: VecDeque<Request>,
    pub(super) reply: Reply,
    pub(super) asker: Asker,
    pub(super) closer: Closer,
    pub(super) closes_left: u8,
    pub(super) stop_left: bool,
    pub(super) panics_left: u8,
    pub(super) is_locked: bool,
    /// Streams whose begin a worker has.
    pub(super) given: BTreeSet<u8>,
    /// Begins and ends that the feed was told of.
    pub(super) book: BTreeMap<u8, (u8, u8)>,
    pub(super) fins: u8,
    /// Something happened after which the data path has to end.
    pub(super) must_end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    Control,
    Scatter,
    Worker(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
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

impl State {
    pub(super) fn new(scenario: Scenario) -> Self {
        Self {
            gen_server_fin: false,
            run_scatter_fin: false,
            gen_server_stop: false,
            done: false,
            control: Control::Serve,
            scatter: Scatter::Take,
            ledger: Ledger::default(),
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

    /// The feed is told. It counts the end of a stream that begins again by itself.
    pub(super) fn post(&mut self, message: Message) {
        match message {
            Begin(vb) => {
                let (begins, ends) = self.book.entry(vb).or_default();
                *ends += u8::from(begins > ends);
                *begins += 1;
            }
            End(vb) => self.book.entry(vb).or_default().1 += 1,
        }
    }

    pub(super) fn scatter_is_over(&self) -> bool {
        matches!(self.scatter, Scatter::HandOver | Scatter::Leave | Scatter::Ended)
    }

    /// One round of `gen_server`. `None` where it waits.
    pub(super) fn control(&mut self, broken: Broken) -> Option<()> {
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
                Control::CloseWorkers
            }
            Control::CloseWorkers => {
                self.workers.iter_mut().for_each(|worker| worker.stop = true);
                Control::JoinWorkers
            }
            Control::JoinWorkers if self.workers.iter().all(|worker| worker.ended) => Control::PostEnds,
            Control::PostEnds => {
                let owed = self.handed_over.get_or_insert_default();
                if broken == Broken::UntoldIsOwedAnEnd {
                    owed.begun.extend(owed.untold.drain(..).filter_map(Message::begins));
                } else if broken == Broken::UntoldIsForgotten {
                    owed.untold.clear();
                }
                let message = owed.next_untold().or_else(|| owed.begun.pop_first().map(End));
                match message {
                    Some(End(_)) if broken == Broken::EndsAreNotPosted => Control::PostEnds,
                    Some(message) => {
                        self.post(message);
                        Control::PostEnds
                    }
                    None => Control::PostFin,
                }
            }
            Control::PostFin => {
                self.fins += 1;
                Control::Done
            }
            Control::Done => {
                self.done = true;
                Control::Ended
            }
            Control::JoinWorkers | Control::Ended => return None,
        };
        Some(())
    }

    pub(super) fn serve(&mut self, broken: Broken) -> Option<Control> {
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
    pub(super) fn scatter(&mut self, broken: Broken) -> Option<()> {
        self.scatter = match self.scatter {
            Scatter::Take if self.run_scatter_fin => Scatter::HandOver,
            Scatter::Take => match self.upstream.pop_front() {
                Some(batch) => Scatter::Note(batch),
                None if self.source_gone => Scatter::HandOver,
                None => return None,
            },
            Scatter::Note(batch) => {
                if broken != Broken::LedgerAfterHandOff {
                    self.ledger.untold.extend(batch);
                }
                Scatter::HandOff(batch, 0)
            }
            Scatter::HandOff(batch, number) => match self.workers.get_mut(number) {
                None => {
                    if broken == Broken::LedgerAfterHandOff {
                        self.ledger.untold.extend(batch);
                    }
                    Scatter::Tell
                }
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
            Scatter::Tell => match self.ledger.next_untold() {
                None => Scatter::Take,
                Some(message) => {
                    self.post(message);
                    Scatter::Tell
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

    /// One round of a worker's data thread.
    pub(super) fn work(&mut self, number: usize) -> Option<()> {
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

    pub(super) fn panic(&mut self, thread: Thread) -> Option<()> {
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

    pub(super) fn ask(&mut self, broken: Broken) -> Option<()> {
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

    pub(super) fn close(&mut self) -> Option<()> {
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

    pub(super) fn send(&mut self) -> Option<()> {
        let (batch, left) = self.batches_left.split_first()?;
        if self.source_gone || self.scatter_is_over() || !self.upstream.is_empty() {
            return None;
        }
        self.upstream.push_back(batch);
        self.batches_left = left;
        Some(())
    }

    pub(super) fn end_source(&mut self) -> Option<()> {
        if !self.source_ends || self.source_gone {
            return None;
        }
        self.source_gone = true;
        self.must_end = true;
        Some(())
    }

    pub(super) fn stop_scatter(&mut self) -> Option<()> {
        if !self.stop_left {
            return None;
        }
        self.stop_left = false;
        self.run_scatter_fin = true;
        self.must_end = true;
        Some(())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.control == Control::Ended
            && self.scatter == Scatter::Ended
            && self.workers.iter().all(|worker| worker.ended)
    }

    /// Whether an end may rest here: everybody got an answer, and what had to end has ended.
    pub(super) fn may_rest(&self) -> bool {
        let has_answers = matches!(self.asker, Asker::Result | Asker::Closed) && self.closes_left == 0;
        has_answers && (!self.must_end || self.has_ended() && self.done)
    }
}
