//! The real program in a folder of its own.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::json::{compare_all, compare_parts};

/// The documents that tests index.
pub(crate) const AIRPORTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/airports.jsonl");
/// Indexes over them, and the members that each is made of.
pub(crate) const INDEXES: [(&str, &[&str]); 3] =
    [("by_country", &["country", "city"]), ("by_tz", &["tz"]), ("by_alt", &["altitude"])];
/// What every call about the bucket begins with, after the verb.
pub(crate) const BUCKET: [&str; 4] = ["--data-dir", "d", "--bucket", "travel"];
/// The options that ask for [`INDEXES`].
pub(crate) const INDEX_OPTIONS: [&str; 6] =
    ["--index", "by_country=country,city", "--index", "by_tz=tz", "--index", "by_alt=altitude"];

/// Longer than anything takes that does not hang.
const WATCHDOG: Duration = Duration::from_secs(120);

/// Waits until `cond` holds.
pub(crate) fn wait_until(what: &str, mut cond: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !cond() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        // Another process is waited for that sends no signal: without a pause the wait would take its processor.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A folder in which the program is called; paths in its words are relative to it.
pub(crate) struct World(TempDir);

impl World {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A world whose bucket holds the airports under all [`INDEXES`].
    pub(crate) fn with_airports() -> Self {
        let world = Self::new();
        world.ingest(&INDEX_OPTIONS, AIRPORTS);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file of lines.
    pub(crate) fn write(&self, name: &str, lines: impl AsRef<[u8]>) {
        fs::write(self.path(name), lines).unwrap();
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Done {
        self.command(words).output().unwrap().into()
    }

    /// Starts the program with pipes to and from it.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs what must succeed and gives its standard output.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert_eq!(done.status, Some(0), "{words:?}: {}", done.stderr);
        done.stdout
    }

    /// Runs what must succeed and gives its result, the last line of standard output.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let stdout = self.ok(&[words, &["--format", "json"]].concat());
        serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
    }

    /// Runs what must fail: with this status, nothing on standard output, and one line that holds all `words` on
    /// standard error.
    pub(crate) fn refused(&self, status: i32, call: &[&str], words: &[&str]) -> String {
        let Done { status: ended, stdout, stderr } = self.run(call);
        assert_eq!((ended, stdout.as_str()), (Some(status), ""), "{call:?}: {stderr}");
        assert_is_one_error(&stderr, words);
        stderr
    }

    pub(crate) fn ingest(&self, options: &[&str], source: &str) -> Value {
        self.json(&[&["ingest"], &BUCKET[..], options, &[source]].concat())
    }

    /// What a scan of the bucket prints, entry by entry.
    pub(crate) fn scan(&self, index: &str, options: &[&str]) -> Vec<Value> {
        self.scan_in("d", index, options)
    }

    pub(crate) fn scan_in(&self, data_dir: &str, index: &str, options: &[&str]) -> Vec<Value> {
        let words =
            ["scan", "--data-dir", data_dir, "--bucket", "travel", "--index", index, "--format", "json"];
        let stdout = self.ok(&[&words[..], options].concat());
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn count(&self, index: &str) -> usize {
        let words = [&["scan"], &BUCKET[..], &["--index", index, "--count"]].concat();
        self.ok(&words).trim_end().parse().unwrap()
    }

    /// All entries of all [`INDEXES`].
    pub(crate) fn all_scans(&self, data_dir: &str) -> Vec<Vec<Value>> {
        INDEXES.iter().map(|(index, _)| self.scan_in(data_dir, index, &[])).collect()
    }

    /// The files of the data folder, but the one that says who held it last.
    pub(crate) fn data_files(&self) -> BTreeMap<String, Vec<u8>> {
        // The storage engine removes files of its own that were replaced when it is opened, which is no change.
        self.ok(&["status", "--data-dir", "d"]);
        let mut files = super::tree(&self.path("d"));
        files.remove("dormouse.lock");
        files
    }

    /// Waits until a shard of the bucket has made something durable.
    pub(crate) fn wait_until_durable(&self) {
        wait_until("a recovery point", || {
            let shards = fs::read_dir(self.path("d/buckets/travel")).into_iter().flatten().flatten();
            shards
                .map(|shard| shard.path().join("lsm/tables"))
                .any(|tables| fs::read_dir(tables).is_ok_and(|mut tables| tables.next().is_some()))
        });
    }
}

/// Asserts that `stderr` is one error line that holds all `words`.
pub(crate) fn assert_is_one_error(stderr: &str, words: &[&str]) {
    assert!(stderr.starts_with("dormouse: ") && stderr.lines().count() == 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is missing in: {stderr}");
    }
}

/// Gives the program's standard input a text and leaves it open.
pub(crate) fn feed(child: &mut Child, text: &str) {
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    stdin.flush().unwrap();
}

/// The documents of a file.
pub(crate) fn documents(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A file of these values, one a line.
pub(crate) fn lines(values: &[Value]) -> String {
    values.iter().fold(String::new(), |text, value| text + &value.to_string() + "\n")
}

/// The entries that documents have in an index over these members, sorted without the code under test.
pub(crate) fn expected(documents: &[Value], members: &[&str]) -> Vec<Value> {
    let mut entries: Vec<(Vec<Option<Value>>, &str)> = documents
        .iter()
        .map(|document| {
            let key = members.iter().map(|member| document.get(member).cloned()).collect();
            (key, document["id"].as_str().unwrap())
        })
        .filter(|(key, _): &(Vec<Option<Value>>, _)| key[0].is_some())
        .collect();
    entries.sort_by(|(a, id_a), (b, id_b)| {
        let parts = a.iter().zip(b).map(|(a, b)| compare_parts(a.as_ref(), b.as_ref()));
        parts.fold(Ordering::Equal, Ordering::then).then(id_a.cmp(id_b))
    });
    entries.into_iter().map(|(key, id)| json!({ "key": key, "id": id })).collect()
}

/// What scans of all [`INDEXES`] give for these documents.
pub(crate) fn all_expected(documents: &[Value]) -> Vec<Vec<Value>> {
    INDEXES.iter().map(|(_, members)| expected(documents, members)).collect()
}

/// The entries whose first parts lie where `keep` says: it is given how they compare to `bound`.
pub(crate) fn kept(entries: &[Value], bound: &Value, keep: fn(Ordering) -> bool) -> Vec<Value> {
    let bound = bound.as_array().unwrap();
    let compared = |entry: &Value| {
        let key = entry["key"].as_array().unwrap();
        compare_all(&key[..bound.len()], bound)
    };
    entries.iter().filter(|entry| keep(compared(entry))).cloned().collect()
}

/// The names of a process's threads as they are now.
pub(crate) fn thread_names(process: u32) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    // A thread may end between the listing and the look at its name.
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}
