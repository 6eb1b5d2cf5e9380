//! Threads, signals and limits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crossbeam::channel::bounded;
use dormouse::thread::{
    Cancel, Fin, FinHolder, JoinError, RecvError, Roster, Stopped, Until, fin, recv, send, spawn,
};

use crate::support::{cancelled, forever, watchdog};

fn passed() -> Until {
    Until::within(Duration::ZERO)
}

#[test]
fn a_fin_is_given_when_its_holder_is_dropped() {
    let (holder, fin) = fin();
    assert!(!fin.is_given());
    drop(holder);
    assert!(fin.is_given());
    assert_eq!(fin.wait(&passed()), Ok(()));
}

#[test]
fn a_fin_is_given_while_its_holder_unwinds() {
    let (holder, fin) = fin();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _holder = holder;
        panic!("on purpose");
    }));
    assert!(unwound.is_err() && fin.is_given());
}

#[test]
fn a_wait_for_a_fin_ends_with_its_limit() {
    let (_holder, fin) = fin();
    assert_eq!(fin.wait(&passed()), Err(Stopped::DeadlinePassed));
    assert_eq!(fin.wait(&cancelled()), Err(Stopped::Cancelled));
}

#[test]
fn a_send_that_is_ended_gives_the_message_back() {
    let (sender, _full) = bounded(0);
    let (holder, stop) = fin();
    let blocked = spawn("t-send", move || send(&sender, "kept", &stop)).unwrap();
    drop(holder);
    assert_eq!(blocked.join(&watchdog()).unwrap(), Err("kept"));
}

#[test]
fn a_send_to_nobody_gives_the_message_back() {
    let (sender, receiver) = bounded(1);
    drop(receiver);
    let (_holder, stop) = fin();
    assert_eq!(send(&sender, "kept", &stop), Err("kept"));
}

#[test]
fn nothing_is_sent_after_the_signal_even_where_there_is_room() {
    let (sender, receiver) = bounded(1);
    let (holder, stop) = fin();
    drop(holder);
    assert_eq!(send(&sender, 1, &stop), Err(1));
    assert!(receiver.is_empty());
}

#[test]
fn a_message_that_is_there_is_received_after_the_limit() {
    let (sender, receiver) = bounded(2);
    let (_holder, stop) = fin();
    send(&sender, 1, &stop).unwrap();
    send(&sender, 2, &stop).unwrap();
    assert_eq!(recv(&receiver, &passed()), Ok(1));
    assert_eq!(recv(&receiver, &cancelled()), Ok(2));
    assert_eq!(recv(&receiver, &passed()), Err(RecvError::Stopped(Stopped::DeadlinePassed)));
    drop(sender);
    assert_eq!(recv(&receiver, &forever()), Err(RecvError::Closed));
}

#[test]
fn a_cancel_may_be_given_twice_and_ends_every_clone_of_its_limit() {
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let sooner = until.at_most(Duration::from_secs(3600));
    assert!(until.check().is_ok() && sooner.check().is_ok());
    cancel.cancel();
    cancel.cancel();
    assert_eq!(until.check(), Err(Stopped::Cancelled));
    assert_eq!(sooner.check(), Err(Stopped::Cancelled));
}

#[test]
fn the_sooner_deadline_counts() {
    let hour = Until::within(Duration::from_secs(3600));
    assert_eq!(hour.at_most(Duration::ZERO).check(), Err(Stopped::DeadlinePassed));
    assert_eq!(hour.at_most(Duration::from_secs(7200)).deadline(), hour.deadline());
    assert_eq!(Until::within(Duration::MAX).deadline(), None);
}

#[test]
fn a_join_that_ends_early_gives_the_thread_back() {
    let (holder, released) = fin();
    let thread = spawn("t-join", move || released.wait(&forever()).map(|()| 7)).unwrap();
    let Err(JoinError::StillRunning(thread)) = thread.join(&passed()) else {
        panic!("it ended before it was released");
    };
    assert_eq!(thread.name(), "t-join");
    drop(holder);
    assert_eq!(thread.join(&watchdog()).unwrap(), Ok(7));
}

#[test]
fn a_panic_is_delivered_with_the_name_of_its_thread_and_its_text() {
    let thread = spawn("t-panic", || panic!("number {}", 5)).unwrap();
    let Err(JoinError::<()>::Panicked(panicked)) = thread.join(&watchdog()) else {
        panic!("no panic was delivered");
    };
    assert_eq!(panicked.to_string(), "thread t-panic panicked: number 5");
}

/// Takes its time to go: it tells that it goes, and waits to be let.
struct Lingering(FinHolder, Fin);

impl Drop for Lingering {
    fn drop(&mut self) {
        let (other, _) = fin();
        drop(std::mem::replace(&mut self.0, other));
        self.1.wait(&watchdog()).unwrap();
    }
}

#[test]
fn a_thread_is_on_its_roster_until_its_outcome_can_be_taken() {
    let roster = Roster::default();
    let ((goes_holder, goes), (hold, may_go)) = (fin(), fin());
    let lingering = Lingering(goes_holder, may_go);
    let thread = roster.spawn("lingers", move || std::panic::panic_any(lingering)).unwrap();
    goes.wait(&watchdog()).unwrap();
    assert_eq!(roster.running(), ["lingers"]);
    let Err(JoinError::<()>::StillRunning(thread)) = thread.join(&passed()) else { panic!("it was joined") };
    drop(hold);
    assert!(matches!(thread.join(&watchdog()), Err(JoinError::Panicked(_))));
    assert!(roster.running().is_empty());
}

#[test]
fn a_child_of_a_token_ends_with_it_and_alone() {
    let parent = Cancel::new();
    let (alone, together) = (parent.child(), parent.child().child());
    alone.cancel();
    assert!(alone.is_cancelled() && !parent.is_cancelled() && !together.is_cancelled());
    parent.cancel();
    assert!(together.is_cancelled());
    assert!(parent.child().is_cancelled(), "one that is born late");
}
