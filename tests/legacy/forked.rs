//! A service that forks after it has opened a data folder.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse::bucket::{
    Bucket, BucketConfig, BucketError, BucketSpec, CancelError, CloseError, DataDir, DataDirError,
    FollowOptions, IndexError, IntakeError, PauseError, ResumeError, ResumeOptions, TaskId, WaitError,
};
use dormouse::event::Generation;
use dormouse::index::{KeyRange, ScanQuery};
use dormouse::objstore::FileStore;
use dormouse::shard::batch::WriteBatch;
use dormouse::shard::{
    ApplyError, CommitError, InstId, InstanceError, InstanceStart, LockError, MergeHold, ReadError, Refused,
    RollBackError, Shard, ShardSetConfig, ShardSnapshot, StoreKind,
};
use dormouse::source::Input;
use dormouse::source::dcp::{Cluster, DcpConfig, Login, Network};
use fork::{Fork, fork, waitpid_nohang};
use signal_hook::low_level::exit;
use tempfile::TempDir;

use crate::process::{threads, threads_of};
use crate::service::{
    EVICT, Journal, STORES, by_n, config, fed, ingest, make, minutes, named, numbers, scan, write_documents,
};

/// What a child may take.
const PATIENCE: Duration = Duration::from_secs(60);
const FORKS: u32 = 40;

/// Ends a fork with what came of `work`.
pub(crate) fn end_child(work: impl FnOnce()) -> ! {
    let outcome = catch_unwind(AssertUnwindSafe(work));
    exit(i32::from(outcome.is_err()))
}

/// Waits for the end of a fork, in which nothing may have failed.
pub(crate) fn wait_for(child: i32) {
    let began = Instant::now();
    let status = loop {
        if let Some(status) = waitpid_nohang(child).unwrap() {
            break status;
        }
        assert!(began.elapsed() < PATIENCE, "the child hangs: {:?}", threads_of(child.cast_unsigned()));
        std::thread::park_timeout(Duration::from_millis(1));
    };
    assert_eq!(status, 0, "the child failed");
}

macro_rules! assert_forked {
    ($call:expr, $error:path) => {{
        let refused = $call.err().unwrap();
        assert!(matches!(refused, $error(_)), "{refused}");
        assert!(refused.to_string().contains("fork first"), "{refused}");
    }};
}

/// Every door that can refuse does.
fn try_everything(data: &DataDir, bucket: &Bucket, archive: &FileStore) {
    let (name, until, config) = (named("travel"), minutes(1), config(&Arc::default()));
    assert_forked!(data.buckets(), DataDirError::Forked);
    assert_forked!(data.bucket_meta(&name), BucketError::Forked);
    assert_forked!(data.open_bucket(&name, &config), BucketError::Forked);
    assert_forked!(data.create_bucket(&named("new"), BucketSpec::default(), &config), BucketError::Forked);
    assert_forked!(data.drop_bucket(&name), BucketError::Forked);
    assert_forked!(data.recover(&name, &config.logger), BucketError::Forked);
    assert_forked!(data.plan_resume(&name, archive, ResumeOptions::default(), &until), ResumeError::Forked);
    assert_forked!(
        data.resume(&name, archive, ResumeOptions::default(), &config, &until, &mut |_| {}),
        ResumeError::Forked
    );
    assert_forked!(data.wait_for_tasks(0, &until), WaitError::Forked);
    assert_forked!(data.cancel_task(TaskId(1), &until), CancelError::Forked);
    assert_forked!(bucket.ensure_index(&by_n(), false), IndexError::Forked);
    assert_forked!(bucket.drop_index(by_n().name(), &until), IndexError::Forked);
    assert_forked!(bucket.scan(by_n().name(), &KeyRange::default(), false, &until), IndexError::Forked);
    assert_forked!(ingest(bucket, Input::Path("nowhere".into())), IntakeError::Forked);
    assert_forked!(bucket.plan_pause(archive, EVICT, &until), PauseError::Forked);
    assert_forked!(bucket.pause(archive, EVICT, &until, &mut |_| {}), PauseError::Forked);
    assert_forked!(bucket.ensure_indexes(&[by_n()], false), IndexError::Forked);
    assert_forked!(bucket.query(by_n().name(), &ScanQuery::default(), &until), IndexError::Forked);
    assert_forked!(bucket.follow(&nowhere(), &until, &mut |_| {}), IntakeError::Forked);
    assert_forked!(bucket.close(&until), CloseError::Forked);
    bucket.shards().iter().for_each(try_everything_of);
}

/// The same for a shard, whose files are the other process's.
fn try_everything_of(shard: &Shard) {
    let (until, inst) = (minutes(1), InstId(1));
    assert_forked!(shard.commit(&until), CommitError::Forked);
    assert_forked!(shard.keep_point(&until), CommitError::Forked);
    assert_forked!(shard.pin(&until), CommitError::Forked);
    assert_forked!(shard.points(&until), ReadError::Forked);
    assert_forked!(shard.snapshot(&until), ReadError::Forked);
    assert_forked!(shard.check(&until), ReadError::Forked);
    assert_forked!(shard.lock("a fork", &until), LockError::Forked);
    assert_forked!(shard.roll_back(None, Generation(1000), &until), RollBackError::Forked);
    assert_forked!(shard.create_instance(InstId(2), InstanceStart::Zero), InstanceError::Forked);
    assert_forked!(shard.drop_instance(inst), InstanceError::Forked);
    let refused = shard.try_apply(Box::new(WriteBatch::default())).err().unwrap();
    assert!(matches!(refused, Refused::Never(ApplyError::Forked(_))), "{refused:?}");
}

fn nowhere() -> FollowOptions {
    let login = Login { user: String::new(), password: String::new(), plain_without_tls: false };
    let address = ([127, 0, 0, 1], 1).into();
    let connection = DcpConfig::new(address, "travel", 16, login);
    let cluster = Cluster { seeds: Vec::new(), network: Network::Auto, connection };
    FollowOptions { cluster, connections: 1, once: true, idle_after: None }
}

pub(crate) fn child() {
    STORES.into_iter().for_each(child_of);
}

fn child_of(store: StoreKind) {
    let (root, journal) = (TempDir::new().unwrap(), Arc::<Journal>::default());
    let folder = root.path().join("data");
    let data = DataDir::open_or_create(&folder).unwrap();
    let archive = FileStore::open(&root.path().join("archive")).unwrap();
    let bucket = make(&data, "travel", store, &config(&journal));
    let documents = root.path().join("documents");
    write_documents(&documents, 0..2000);
    ingest(&bucket, Input::Path(documents.clone())).unwrap();
    // A scan that is half-way, and holds what later changes replace.
    let mut half = bucket.scan(by_n().name(), &KeyRange::default(), false, &minutes(1)).unwrap();
    assert!(half.by_ref().take(1000).all(|entry| entry.is_ok()));
    let snapshots: Vec<ShardSnapshot> =
        bucket.shards().iter().map(|shard| shard.snapshot(&minutes(1)).unwrap()).collect();
    for _ in 0..8 {
        ingest(&bucket, Input::Path(documents.clone())).unwrap();
    }
    std::fs::write(folder.join("staging/marker"), "mine").unwrap();
    let holds: Vec<MergeHold> =
        bucket.shards().iter().map(|shard| shard.hold_merges(&minutes(1)).unwrap()).collect();
    let (before, before_files) = (threads(), files_below(&folder));

    match fork().unwrap() {
        Fork::Child => end_child(move || {
            try_everything(&data, &bucket, &archive);
            assert!(matches!(DataDir::open(&folder), Err(DataDirError::Held { .. })), "the lock is gone");
            drop((half, snapshots, bucket, data));
        }),
        Fork::Parent(child) => wait_for(child),
    }
    assert_eq!(threads(), before, "after the fork");
    assert!(matches!(DataDir::open(&folder), Err(DataDirError::Held { .. })), "the lock is gone");
    assert!(folder.join("staging/marker").exists());
    assert_eq!(files_below(&folder), before_files, "{store}: after the fork");
    drop(holds);
    assert_eq!(half.flatten().count(), 1000, "{store}: what the scan held is gone");
    let all = (Bound::Unbounded, Bound::Unbounded);
    let inst = bucket.shards()[0].instances()[0];
    let held = snapshots.into_iter().flat_map(|snapshot| snapshot.scan(inst, &all));
    assert_eq!(held.flatten().count(), 2000, "{store}: what the snapshots held is gone");
    ingest(&bucket, Input::Path(documents)).unwrap();
    for shard in bucket.shards() {
        shard.check(&minutes(1)).unwrap();
    }
    bucket.close(&minutes(1)).unwrap();
    drop(bucket);
    let bucket = data.open_bucket(&named("travel"), &config(&journal)).unwrap();
    assert_eq!(scan(&bucket), numbers(0..2000));
    bucket.close(&minutes(1)).unwrap();
}

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { BTreeSet::from([path]) }).collect()
}

pub(crate) fn under_load() {
    let (root, journal) = (TempDir::new().unwrap(), Arc::<Journal>::default());
    let data = DataDir::open_or_create(&root.path().join("data")).unwrap();
    let config = BucketConfig {
        shards: ShardSetConfig { commit_interval: Duration::from_millis(1), ..ShardSetConfig::default() },
        ..config(&journal)
    };
    let bucket = Arc::new(make(&data, "travel", StoreKind::Lsm, &config));
    let (feed, input) = fed();
    let ingesting = Arc::clone(&bucket);
    let ingest = std::thread::Builder::new().name("ingest".to_owned());
    let ingest = ingest.spawn(move || ingest_all(&ingesting, input)).unwrap();
    for n in 0..FORKS {
        let line = |n: u32| format!("{{\"id\":\"d{n}\",\"n\":{n}}}\n");
        feed.send((n * 100..(n + 1) * 100).map(line).collect::<String>().into_bytes()).unwrap();
        match fork().unwrap() {
            Fork::Child => end_child(|| {
                let refused = bucket.scan(by_n().name(), &KeyRange::default(), false, &minutes(1));
                assert_forked!(refused, IndexError::Forked);
                assert_forked!(data.buckets(), DataDirError::Forked);
            }),
            Fork::Parent(child) => wait_for(child),
        }
    }
    drop(feed);
    ingest.join().unwrap();
    assert_eq!(scan(&bucket), numbers(0..FORKS * 100));
    Arc::into_inner(bucket).unwrap().close(&minutes(1)).unwrap();
}

fn ingest_all(bucket: &Bucket, input: Input) {
    ingest(bucket, input).unwrap();
}
