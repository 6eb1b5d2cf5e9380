//! A pause and a resume take no more memory than was set, however large the bucket is.
//!
//! Each is made by a process of its own, which is this binary once more with nothing but the test that is the carrier.
//! What counts is what the system says that its memory was at most, over what it was before the call: the bucket was
//! open already where it is put to sleep. Where it is woken up its shards are opened too, once everything was carried;
//! what that takes is measured in a process that does nothing else, and may be taken besides.
//!
//! The buckets have files of [`MIB`] mebibytes in three shards, with `DORMOUSE_LONG` of [`LONG_MIB`].

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Stdio};

use dormouse::bucket::{BucketConfig, DataDir, PauseOptions, ResumeOptions};
use dormouse::objstore::{ArchiveOptions, ArchiveUrl, ObjectStore, TRANSFER_BYTES_MAX};
use dormouse::shard::StoreKind;
use serde_json::{Value, json};

use crate::support::buckets::{World, close, ingest, long_lines, named, once_free, scratch};
use crate::support::shards::for_each_store;
use crate::support::stores::gateway::{self, BUCKET, Gateway};
use crate::support::{forever, is_long};

for_each_store! {
    a_pause_and_a_resume_take_no_more_memory_than_was_set,
}

/// What the carrier is to do, for its process.
const CARRIER: &str = "DORMOUSE_TEST_CARRIER";
const MIB: u64 = 96;
const LONG_MIB: u64 = 768;
/// Bytes of a document of [`long_lines`] in an index.
const DOCUMENT_BYTES: u64 = 4000;
/// What is set: less than what would be carried at the same time without it.
const LIMIT_BYTES: u64 = 2 * TRANSFER_BYTES_MAX;
/// What a call may take besides: its lists and manifest, stacks of threads, and what the allocator keeps of them.
const MARGIN_MIB: u64 = 12;

/// Mebibytes of memory that this process has, and had at most since that was forgotten.
fn memory_mib() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let told = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    };
    (told("VmRSS:"), told("VmHWM:"))
}

/// How many mebibytes more than before the process has at most while `work` is done.
fn most_mib<T>(work: impl FnOnce() -> T) -> (u64, T) {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, _) = memory_mib();
    let done = work();
    (memory_mib().1.saturating_sub(before), done)
}

fn archive(order: &Value, folder: &Path) -> Box<dyn ObjectStore> {
    let options = ArchiveOptions {
        parallel: NonZeroUsize::new(8),
        memory_bytes_max: Some(LIMIT_BYTES),
        ..ArchiveOptions::default()
    };
    let Value::Array(server) = &order["server"] else {
        return ArchiveUrl::Folder(folder.join("archive")).open(&options).unwrap();
    };
    let s3 = gateway::config(server[0].as_str().unwrap(), server[1].as_str().unwrap());
    let url = ArchiveUrl::S3 { bucket: BUCKET.to_owned(), prefix: s3.prefix.clone() };
    url.open(&ArchiveOptions { s3, ..options }).unwrap()
}

/// Carries the order out, and tells in the file `told` what it took.
fn carry(order: &Value) {
    let folder = Path::new(order["folder"].as_str().unwrap());
    let (config, until) = (BucketConfig::default(), forever());
    let data = once_free(|| DataDir::open_or_create(&folder.join("data"))).unwrap();
    let store = archive(order, folder);
    let open = || once_free(|| data.open_bucket(&named("b"), &config)).unwrap();
    let most = match order["verb"].as_str().unwrap() {
        "pause" => {
            let bucket = open();
            let options = PauseOptions { evict: false, compress: order["compress"] == true };
            let (most, paused) = most_mib(|| bucket.pause(store.as_ref(), options, &until, &mut |_| {}));
            assert!(paused.unwrap().uploaded_bytes > 0);
            close(bucket);
            most
        }
        "resume" => {
            let options = ResumeOptions::default();
            let resume = || data.resume(&named("b"), store.as_ref(), options, &config, &until, &mut |_| {});
            let (most, resumed) = most_mib(resume);
            assert!(resumed.unwrap().downloaded_bytes > 0);
            most
        }
        _ => {
            let (most, bucket) = most_mib(open);
            close(bucket);
            most
        }
    };
    fs::write(folder.join("told"), most.to_string()).unwrap();
}

#[test]
fn the_carrier_does_what_it_is_told() {
    if let Ok(order) = std::env::var(CARRIER) {
        carry(&serde_json::from_str(&order).unwrap());
    }
}

/// What the carrier took, in mebibytes.
fn carried(order: &Value) -> u64 {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["pause_memory::the_carrier_does_what_it_is_told", "--exact"])
        .env(CARRIER, order.to_string())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{order}: {status}");
    let told = Path::new(order["folder"].as_str().unwrap()).join("told");
    fs::read_to_string(told).unwrap().parse().unwrap()
}

fn a_pause_and_a_resume_take_no_more_memory_than_was_set(kind: StoreKind) {
    let mut world = World::of(kind);
    world.spec.shards = 3;
    let mib = if is_long() { LONG_MIB } else { MIB };
    let documents = u32::try_from(mib * 1024 * 1024 / DOCUMENT_BYTES).unwrap();
    let bucket = world.bucket("b");
    for first in (0..documents).step_by(4096) {
        ingest(&bucket, long_lines(first..documents.min(first + 4096))).unwrap();
    }
    close(bucket);
    let servers = Gateway::get().filter(|_| kind == StoreKind::Lsm || is_long());
    for compress in [false, true] {
        // A prefix for each: what lies in an archive is not uploaded again.
        let server =
            servers.map(|gateway| json!([gateway.endpoint(), gateway.config().prefix.unwrap().as_str()]));
        for archive in [Some(Value::Null), server].into_iter().flatten() {
            assert_is_bounded(&world, &archive, compress);
        }
    }
}

/// Puts the bucket to sleep and wakes it up elsewhere.
fn assert_is_bounded(world: &World, server: &Value, compress: bool) {
    let dir = scratch();
    world.copy_to(dir.path());
    let limit_mib = LIMIT_BYTES / 1024 / 1024;
    let order =
        |verb: &str| json!({ "verb": verb, "compress": compress, "server": server, "folder": dir.path() });
    let pausing_mib = carried(&order("pause"));
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    let (resuming_mib, opened_mib) = (carried(&order("resume")), carried(&order("open")));
    let what = format!("{}, server {server}, compress {compress}", world.spec.store);
    println!("{what}: {pausing_mib} MiB of memory to pause, {resuming_mib} to resume, {opened_mib} to open");
    assert!(pausing_mib <= limit_mib + MARGIN_MIB, "{what}: a pause took {pausing_mib} MiB");
    let may_take_mib = limit_mib + opened_mib + MARGIN_MIB;
    assert!(resuming_mib <= may_take_mib, "{what}: a resume took {resuming_mib} MiB of {may_take_mib}");
}
