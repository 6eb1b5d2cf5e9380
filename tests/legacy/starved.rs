//! A process that may start only so many threads.

use std::process::Command;
use std::sync::Arc;

use dormouse::bucket::{BucketConfig, DataDir};
use dormouse::shard::StoreKind;
use dormouse::source::Input;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::process::{Facts, status};
use crate::service::{Journal, config, ingest, make, minutes, named, numbers, scan, write_documents};

/// Of address space, for the stack of each thread: so much more than anything else takes that the limit of the process
/// is met by threads alone.
const STACK_BYTES: u64 = 512 * 1024 * 1024;
/// For everything else.
const SPARE_BYTES: u64 = STACK_BYTES / 2;
/// More threads than an ingest has.
const THREADS_MAX: u64 = 20;

pub(crate) fn prepare(command: &mut Command) {
    // One heap for all threads: others reserve address space.
    command.env("RUST_MIN_STACK", STACK_BYTES.to_string()).env("MALLOC_ARENA_MAX", "1");
}

/// Runs `work` with room for so many threads more.
fn with_threads<T>(threads: u64, work: impl FnOnce() -> T) -> T {
    let size = status("/proc/self/status", "VmSize");
    let size_bytes = size.trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024;
    let before = getrlimit(Resource::As);
    let limit = size_bytes + threads * STACK_BYTES + SPARE_BYTES;
    setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: before.maximum }).unwrap();
    let done = work();
    setrlimit(Resource::As, before).unwrap();
    done
}

/// Opens the bucket, ingests, and closes it.
fn try_ingest(data: &DataDir, config: &BucketConfig, input: Input) -> anyhow::Result<()> {
    let bucket = data.open_bucket(&named("travel"), config)?;
    let ingested = ingest(&bucket, input);
    bucket.close(&minutes(1))?;
    ingested?;
    Ok(())
}

pub(crate) fn of_threads() {
    let (root, journal) = (TempDir::new().unwrap(), Arc::<Journal>::default());
    let (documents, config) = (root.path().join("documents"), config(&journal));
    write_documents(&documents, 0..100);
    let data = DataDir::open_or_create(&root.path().join("data")).unwrap();
    make(&data, "travel", StoreKind::Lsm, &config).close(&minutes(1)).unwrap();
    let facts = Facts::now();
    let mut failed = 0;
    for threads in 0..THREADS_MAX {
        match with_threads(threads, || try_ingest(&data, &config, Input::Path(documents.clone()))) {
            Ok(()) => break,
            Err(error) => {
                assert!(format!("{error:#}").contains("thread"), "with room for {threads}: {error:#}");
                failed += 1;
            }
        }
        facts.assert_again(&format!("with room for {threads} threads"));
    }
    // Two of the bucket, two for each of two workers, two of the data path, and the source.
    assert_eq!(failed, 9, "starts that failed");
    facts.assert_again("after it succeeded");
    assert_eq!(scan(&data.open_bucket(&named("travel"), &config).unwrap()), numbers(0..100));
}
