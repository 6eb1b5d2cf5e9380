//! A model of how a `KvData` ends, searched in every interleaving.
//!
//! Each step of the model is one atomic step of a thread; what stands between two steps of one thread, the others
//! may do in between. Its parts and the code:
//!
//! | model | code |
//! |---|---|
//! | [`Step::Control`] in `Serve` | one round of the `select_biased!` of `gen_server`: its fin, a worker that ended, an answer, a request |
//! | `Stop`, `Fin`, `AwaitLedger`, `CloseWorkers`, `JoinWorkers`, `PostEnds`, `PostFin`, `Done` | the steps of `GenServer::finish`, in their order |
//! | [`Step::Scatter`] in `Take` | one round of the `select_biased!` of `run_scatter`: its fin, a batch, the end of the source |
//! | `Note`, `HandOff`, `Tell` | a batch's begins and ends into the ledger, one send to a worker, one event told to the feed |
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

mod protocol;

use stateright::{Checker, HasDiscoveries, Model, Property};

use protocol::{Asker, Batch, Begin, Broken, End, Reply, Scenario, State, Step, Thread};

struct Protocol {
    scenarios: Vec<Scenario>,
    broken: Broken,
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
            Property::always("no end without its begin", |_, state: &State| {
                state.book.values().all(|(begins, ends)| ends <= begins && begins - ends <= 1)
            }),
            Property::always("when it is done each begin has one end", |_, state: &State| {
                // Also a stream whose begin a worker has and the feed was not told of in time.
                let is_told = |vb| state.book.get(vb).is_some_and(|(begins, _)| *begins > 0);
                !state.done
                    || state.book.values().all(|(begins, ends)| begins == ends)
                        && state.given.iter().all(is_told)
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
                state.handed_over.as_ref().is_some_and(|ledger| !ledger.begun.is_empty())
            }),
            Property::sometimes("a begin is on its way when the data path ends", |_, state: &State| {
                state.handed_over.as_ref().is_some_and(|ledger| !ledger.untold.is_empty())
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
        (Broken::UntoldIsForgotten, "when it is done each begin has one end"),
        (Broken::UntoldIsOwedAnEnd, "no end without its begin"),
        (Broken::FinIsNotGiven, "nobody waits for ever"),
        (Broken::SendIgnoresFin, "nobody waits for ever"),
        (Broken::ReplyIsNotTriedAgain, "a result that was produced is delivered"),
        (Broken::WorkerEndIsNotSeen, "nobody waits for ever"),
    ] {
        let protocol = Protocol { scenarios: scenarios(), broken };
        let checked =
            protocol.checker().finish_when(HasDiscoveries::AnyOf([seen_by].into())).spawn_dfs().join();
        assert!(checked.discovery(seen_by).is_some(), "{broken:?} is not seen by: {seen_by}");
    }
}
