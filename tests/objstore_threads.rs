//! Which threads a process has that keeps objects on a server: counted in a process of its own, which does nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse::objstore::{
    CallInfo, FileFetch, FileUpload, Layer, ObjectStore, Policy, S3Config, S3Store, StoreError, fetch_files,
    upload_files,
};
use dormouse::thread::Until;
use parking_lot::Mutex;

use crate::support::stores::gateway::{Gateway, config};
use crate::support::stores::{chunks_of, content};
use crate::support::{eventually, forever, key, watchdog};

/// The server and the folder in it, for the process that is counted.
const COUNTED: &str = "DORMOUSE_TEST_COUNTED";

/// The names of this process's threads, each with how many have it.
fn threads() -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for task in tasks() {
        // A thread may end between the listing and the look at its name.
        if let Ok(name) = fs::read_to_string(task.join("comm")) {
            *names.entry(name.trim_end().to_owned()).or_insert(0) += 1;
        }
    }
    names
}

fn tasks() -> Vec<PathBuf> {
    fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()).collect()
}

/// Notes which threads there are at each call.
struct Looks(Mutex<BTreeSet<String>>);

impl Policy for &'static Looks {
    fn call<T>(
        &self,
        _: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = go(until);
        self.0.lock().extend(threads().into_keys());
        result
    }
}

/// Files of several parts, and small ones, up and down.
fn carry(store: &dyn ObjectStore, folder: &Path) {
    let sizes = [0, 1000, 20_000_000, 17_000_000];
    let files: Vec<_> = sizes.iter().map(|size| (key(&format!("f{size}")), content(*size))).collect();
    let paths: Vec<_> = files.iter().map(|(key, _)| folder.join(key.as_str())).collect();
    let chunks: Vec<_> = files.iter().map(|(_, bytes)| chunks_of(bytes)).collect();
    let mut uploads = Vec::new();
    let mut wanted = Vec::new();
    for (((key, bytes), path), chunks) in files.iter().zip(&paths).zip(&chunks) {
        fs::write(path, bytes).unwrap();
        let length_bytes = bytes.len() as u64;
        uploads.push(FileUpload { key, path, length_bytes, chunks });
        wanted.push(FileFetch { key, length_bytes, path: None });
    }
    upload_files(store, &uploads, &watchdog(), &mut |_| {}).unwrap();
    fetch_files(store, &wanted, &watchdog(), &mut |_, came| {
        came.unwrap();
        Ok(())
    })
    .unwrap();
    store.delete(&files.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), &forever()).unwrap();
}

/// Runs the test `name` in a process of its own, on a server that is named as `localhost`.
fn in_a_process_of_its_own(name: &str) {
    let Some(gateway) = Gateway::get() else { return };
    let endpoint = gateway.endpoint().replace("127.0.0.1", "localhost");
    let prefix = gateway.config().prefix.unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("objstore_threads::{name}"), "--exact", "--nocapture"])
        .env(COUNTED, format!("{endpoint} {prefix}"))
        .output()
        .unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// What its store is opened with, in the process that is counted.
fn counted() -> Option<S3Config> {
    let counted = std::env::var(COUNTED).ok()?;
    let (endpoint, prefix) = counted.split_once(' ').unwrap();
    Some(config(endpoint, prefix))
}

#[test]
fn the_process_has_our_threads_alone_before_during_and_after_calls() {
    in_a_process_of_its_own("the_process_whose_threads_are_counted");
}

#[test]
fn the_process_whose_threads_are_counted() {
    static DURING: Looks = Looks(Mutex::new(BTreeSet::new()));
    let Some(config) = counted() else { return };
    let folder = tempfile::tempdir().unwrap();
    let before = threads();
    let parallel = config.parallel;
    let store = Layer::new(Box::new(S3Store::open(config).unwrap()), &DURING);
    carry(&store, folder.path());
    let mut expected = before.clone();
    expected.extend(["dm-s3-names", "dm-s3-watch"].map(|name| (name.to_owned(), 1)));
    // A thread that was joined may be listed for a moment.
    eventually("between calls there are two threads of the store", || threads() == expected);
    expected.extend((0..parallel).map(|number| (format!("dm-store-{number}"), 1)));
    assert_eq!(*DURING.0.lock(), expected.into_keys().collect::<BTreeSet<_>>(), "during calls");
    drop(store);
    eventually("afterwards there is none", || threads() == before);
}

#[test]
fn a_name_is_resolved_once_for_many_requests() {
    in_a_process_of_its_own("the_process_whose_questions_are_counted");
}

/// How often the thread that resolves names has waited, once it waits.
fn waits_of_the_resolver() -> u64 {
    let is_it = |task: &&PathBuf| fs::read_to_string(task.join("comm")).unwrap() == "dm-s3-names\n";
    let tasks = tasks();
    let task = tasks.iter().find(is_it).unwrap();
    let status = || fs::read_to_string(task.join("status")).unwrap();
    let field = |status: &str, name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    eventually("it waits", || field(&status(), "State:").starts_with('S'));
    field(&status(), "voluntary_ctxt_switches:").parse().unwrap()
}

#[test]
fn the_process_whose_questions_are_counted() {
    let Some(config) = counted() else { return };
    let store = S3Store::open(config).unwrap();
    let look = || assert_eq!(store.head(&key("x"), &watchdog()).unwrap(), None);
    look();
    let before = waits_of_the_resolver();
    (0..100).for_each(|_| look());
    let after = waits_of_the_resolver();
    // The wait that had just begun may be counted late.
    assert!(after - before <= 1, "it was woken {} times for 100 requests", after - before);
}
