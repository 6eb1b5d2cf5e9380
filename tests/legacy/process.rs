//! What the system knows of a process.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the system may take to forget what has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a library must leave as it was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Signals that are caught, ignored, and blocked in the calling thread: a number with a bit for each.
    signals: Vec<String>,
    variables: BTreeMap<String, String>,
    folder: PathBuf,
    /// What open files are, with how many of each there are.
    files: BTreeMap<PathBuf, usize>,
    threads: Vec<String>,
}

impl Facts {
    pub(crate) fn now() -> Self {
        // Beyond 31 are those by which the C library speaks to its own threads.
        let signal = |name: &str| status("/proc/thread-self/status", name).split_off(8);
        Self {
            signals: ["SigCgt", "SigIgn", "SigBlk"].map(signal).to_vec(),
            variables: std::env::vars().collect(),
            folder: std::env::current_dir().unwrap(),
            files: files(),
            threads: threads(),
        }
    }

    /// Fails unless everything is, or becomes at once, what it was. The system takes a thread off its list a moment
    /// after it was joined.
    pub(crate) fn assert_again(&self, when: &str) {
        let began = Instant::now();
        while *self != Self::now() {
            assert!(began.elapsed() < PATIENCE, "{when}: {:#?} has become {:#?}", self, Self::now());
            std::thread::yield_now();
        }
    }
}

/// A line of a process's status.
pub(crate) fn status(path: &str, name: &str) -> String {
    line_of(&fs::read_to_string(path).unwrap_or_default(), name)
}

fn line_of(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Memory that is in use, in MiB.
pub(crate) fn memory_mib() -> u64 {
    let text = status("/proc/self/status", "VmRSS");
    text.trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

fn files() -> BTreeMap<PathBuf, usize> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        // The folder itself is open while it is read.
        if let Ok(target) = fs::read_link(entry.unwrap().path())
            && !target.ends_with("fd")
        {
            *files.entry(target).or_default() += 1;
        }
    }
    files
}

/// The names of this process's threads, sorted.
pub(crate) fn threads() -> Vec<String> {
    threads_of(std::process::id())
}

pub(crate) fn threads_of(process: u32) -> Vec<String> {
    let mut names: Vec<String> = tasks(process).into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

/// The name of each thread, and the signals that are blocked in it, as a number with a bit for each.
pub(crate) fn tasks(process: u32) -> Vec<(String, u64)> {
    let mut tasks = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
        // It may end between the listing and the look.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        // Of one that is just ending the system counts no threads, and tells no signals.
        if let Ok(blocked) = u64::from_str_radix(&line_of(&status, "SigBlk"), 16)
            && line_of(&status, "Threads") != "0"
        {
            tasks.push((name.trim_end().to_owned(), blocked));
        }
    }
    tasks
}

/// The number of the thread of this name. A thread that was just started names itself a moment later.
pub(crate) fn task(name: &str) -> i32 {
    let is_it = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let mut found = None;
    eventually("a thread of its name", || {
        let mut tasks = fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
        found = tasks.find(is_it);
        found.is_some()
    });
    found.unwrap().file_name().into_string().unwrap().parse().unwrap()
}

/// Waits until `holds`.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "this did not come: {what}; threads: {:?}", threads());
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
