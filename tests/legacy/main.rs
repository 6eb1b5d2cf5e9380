//! A service as it was written ten years ago: a plain `main`, threads and a logger of its own, and no runtime. It links
//! the library and holds it to what a host is owed.
//!
//! Each promise is kept or broken by a whole process, so each is tried in a process of its own: without an order this
//! program starts itself once for each of [`PROMISES`], two at a time, and tells how they ended.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is the failure of a test"
)]

mod day;
mod forked;
mod gone;
mod hung;
#[path = "../support/little_node.rs"]
mod little_node;
mod poisoned;
mod process;
mod runtime;
mod service;
mod starved;

use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What this program is to do, for its own process.
const ORDER: &str = "DORMOUSE_TEST_LEGACY";
/// Longer than any of them takes that does not hang.
const WATCHDOG: Duration = Duration::from_secs(180);
/// Between two looks at processes that run.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

type Promise = (&'static str, fn(), fn(&mut Command));

fn as_it_is(_: &mut Command) {}

const PROMISES: &[Promise] = &[
    ("a_hung_reader_is_named_by_close_until_it_ends", hung::a_reader, as_it_is),
    ("threads_files_signals_and_memory_are_after_a_day_what_they_were", day::after_another, day::prepare),
    ("two_instances_end_their_own_threads_alone", day::of_two_instances, as_it_is),
    ("an_async_host_does_as_it_is_advised", runtime::with_one_worker, as_it_is),
    ("where_threads_cannot_be_started_none_is_left", starved::of_threads, starved::prepare),
    ("a_fork_is_refused_and_leaves_everything_alone", forked::child, as_it_is),
    ("forks_under_load_are_refused_at_once", forked::under_load, as_it_is),
    ("nothing_of_the_environment_is_read", poisoned::environment, poisoned::prepare),
    ("a_server_that_goes_away_raises_no_signal", poisoned::broken_pipe, as_it_is),
    ("a_node_that_goes_away_raises_no_signal", gone::while_it_is_answered, as_it_is),
    ("a_fork_leaves_a_connection_to_a_node_alone", gone::in_a_fork, as_it_is),
    ("a_signal_ends_no_read_and_no_write_of_a_node", gone::and_signals, as_it_is),
];

struct Running {
    name: &'static str,
    began: Instant,
    child: Child,
}

fn main() -> ExitCode {
    if let Ok(order) = std::env::var(ORDER) {
        let (_, work, _) = PROMISES.iter().find(|(name, ..)| *name == order).unwrap();
        work();
        return ExitCode::SUCCESS;
    }
    // As the harness of other tests has it: words are parts of names, and options are not for us.
    let filters: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let mut waiting: Vec<&Promise> = PROMISES.iter().filter(|(name, ..)| is_wanted(name)).rev().collect();
    let (mut running, mut failed, mut passed) = (Vec::new(), 0, 0);
    // The first of them only waits.
    let most = 1 + std::thread::available_parallelism().map_or(1, usize::from);
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < most
            && let Some((name, _, prepare)) = waiting.pop()
        {
            running.push(start(name, *prepare));
        }
        running.retain_mut(|one| match ended(one) {
            None => true,
            Some(is_kept) => {
                println!("promise {} ... {}", one.name, if is_kept { "ok" } else { "FAILED" });
                *if is_kept { &mut passed } else { &mut failed } += 1;
                false
            }
        });
        std::thread::park_timeout(LOOK_INTERVAL);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(name: &'static str, prepare: fn(&mut Command)) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    prepare(&mut command);
    let child = command.env(ORDER, name).stdin(Stdio::null()).spawn().unwrap();
    Running { name, began: Instant::now(), child }
}

/// Whether it has ended, and well. One that hangs is ended here, and tells what its threads were at.
fn ended(running: &mut Running) -> Option<bool> {
    if let Some(status) = running.child.try_wait().unwrap() {
        return Some(status.success());
    }
    if running.began.elapsed() < WATCHDOG {
        return None;
    }
    println!("promise {} hangs; its threads: {:?}", running.name, process::threads_of(running.child.id()));
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    Some(false)
}
