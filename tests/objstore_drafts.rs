//! The contract of a store that names objects after it has written them, over a folder, alone and in layers.

use std::io::{self, Write};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse::objstore::{
    CallInfo, Count, Counts, FileStore, Floor, Layer, ObjectStore, Policy, Rate, Retry, RetryConfig,
    StoreCause, StoreError,
};
use dormouse::thread::{Cancel, Stopped, Until};
use tempfile::TempDir;

use crate::support::stores::memory::MemoryStore;
use crate::support::stores::{content, get, names, put};
use crate::support::{FailingStore, Fails, cancelled, forever, key, tree};

fn store() -> (TempDir, FileStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    (folder, store)
}

#[test]
fn a_draft_becomes_the_object_that_its_writer_names() {
    let (_folder, store) = store();
    put(&store, "a/b/x", b"before");
    for bytes in [&content(300_000)[..], b""] {
        let mut write = |to: &mut dyn Write| {
            bytes.chunks(1000).try_for_each(|piece| to.write_all(piece))?;
            Ok(Some(key("a/b/y")))
        };
        let named = store.in_drafts().unwrap().put_draft(&key("a/b"), &mut write, &forever()).unwrap();
        assert_eq!(named, Some(key("a/b/y")));
        assert!(get(&store, "a/b/y").unwrap() == bytes);
        assert_eq!(names(&store, None), ["a/b/x", "a/b/y"]);
    }
}

#[test]
fn nothing_is_seen_of_a_draft_before_it_is_named() {
    let (_folder, store) = store();
    put(&store, "a/x", b"before");
    let mut write = |to: &mut dyn Write| {
        to.write_all(b"after")?;
        assert_eq!(
            (names(&store, None), get(&store, "a/x").unwrap()),
            (vec!["a/x".to_owned()], b"before".to_vec())
        );
        Ok(Some(key("a/x")))
    };
    store.in_drafts().unwrap().put_draft(&key("a"), &mut write, &forever()).unwrap();
    assert_eq!(get(&store, "a/x").unwrap(), b"after");
}

#[test]
fn a_draft_without_a_name_and_one_that_fails_leave_nothing() {
    let (folder, store) = store();
    let drafts = store.in_drafts().unwrap();
    let mut unnamed = |to: &mut dyn Write| {
        to.write_all(b"content")?;
        Ok(None)
    };
    assert_eq!(drafts.put_draft(&key("a"), &mut unnamed, &forever()).unwrap(), None);
    let mut broken = |to: &mut dyn Write| {
        to.write_all(b"content")?;
        Err(StoreCause::BodyChanged)
    };
    let error = drafts.put_draft(&key("a"), &mut broken, &forever()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::BodyChanged), "{error}");
    assert!(tree(folder.path()).is_empty());
}

#[test]
fn a_draft_that_is_named_outside_its_folder_is_refused() {
    let (folder, store) = store();
    for name in ["b/x", "a", "a/b/x", "x"] {
        let mut write = |_: &mut dyn Write| Ok(Some(key(name)));
        let error = store.in_drafts().unwrap().put_draft(&key("a"), &mut write, &forever()).unwrap_err();
        assert!(error.to_string().contains("is not in the folder a"), "{error}");
    }
    assert!(tree(folder.path()).is_empty());
}

#[test]
fn a_draft_whose_limit_has_ended_does_not_appear() {
    let (folder, store) = store();
    let drafts = store.in_drafts().unwrap();
    let mut write = |_: &mut dyn Write| unreachable!("its limit has ended");
    let error = drafts.put_draft(&key("a"), &mut write, &cancelled()).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::Cancelled)), "{error}");
    let cancel = Cancel::new();
    let until = Until::new(None, cancel.clone());
    let mut late = |_: &mut dyn Write| {
        cancel.cancel();
        Ok(Some(key("a/x")))
    };
    let error = drafts.put_draft(&key("a"), &mut late, &until).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::Cancelled)), "{error}");
    assert!(tree(folder.path()).is_empty());
}

/// The first try of each call is carried out, and ends in an error that may pass all the same.
#[derive(Default)]
struct Forgetful(AtomicUsize);

impl Policy for Forgetful {
    fn call<T>(
        &self,
        call: CallInfo<'_>,
        until: &Until,
        go: &mut dyn FnMut(&Until) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = go(until)?;
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            let cause = io::Error::from(io::ErrorKind::TimedOut);
            return Err(StoreError::new(call.operation, None, "file:", cause));
        }
        Ok(done)
    }
}

fn rate(bytes_per_second: u64) -> Rate {
    Rate::new(NonZeroU64::new(bytes_per_second).unwrap())
}

#[test]
fn a_draft_passes_all_layers_which_count_hold_back_and_try_again() {
    let ((_folder, store), counts) = (store(), Arc::new(Counts::default()));
    let counted = Layer::new(Box::new(store), Count::new(Arc::clone(&counts)));
    let floor = Floor { bytes_per_second: 1_000_000_000, grace: Duration::from_secs(60), call_limit: None };
    let slow = Layer::new(Box::new(Layer::new(Box::new(counted), floor)), rate(100_000));
    let config = RetryConfig { first_wait: Duration::ZERO, ..RetryConfig::default() };
    let store = Layer::new(Box::new(Layer::new(Box::new(slow), Forgetful::default())), Retry::new(config));
    let (began, mut calls) = (Instant::now(), 0);
    let mut write = |to: &mut dyn Write| {
        calls += 1;
        (0..5).try_for_each(|_| to.write_all(&content(1000)))?;
        Ok(Some(key("a/x")))
    };
    let drafts = store.in_drafts().unwrap();
    assert_eq!(drafts.put_draft(&key("a"), &mut write, &forever()).unwrap(), Some(key("a/x")));
    assert_eq!((calls, get(&store, "a/x").unwrap().len()), (2, 5000));
    // The last of the ten pieces waits until the nine before it are paid for.
    assert!(began.elapsed() >= Duration::from_millis(90), "{:?}", began.elapsed());
    assert_eq!(counts.durable_bytes(), 10_000);
    let mut unnamed = |to: &mut dyn Write| {
        to.write_all(b"content")?;
        Ok(None)
    };
    assert_eq!(drafts.put_draft(&key("a"), &mut unnamed, &forever()).unwrap(), None);
    assert_eq!(counts.durable_bytes(), 10_000, "what has no name is not there");
}

#[test]
fn a_draft_has_no_least_rate_as_nobody_knows_its_length() {
    let (_folder, store) = store();
    let floor = Floor { bytes_per_second: 1_000_000_000, grace: Duration::ZERO, call_limit: None };
    let store = Layer::new(Box::new(store), floor);
    let mut write = |to: &mut dyn Write| {
        to.write_all(b"content")?;
        Ok(Some(key("a/x")))
    };
    let put = store.in_drafts().unwrap().put_draft(&key("a"), &mut write, &forever());
    assert_eq!(put.unwrap(), Some(key("a/x")));
}

#[test]
fn a_store_that_takes_no_drafts_takes_none_in_a_layer() {
    assert!(Layer::new(Box::new(MemoryStore::default()), rate(1)).in_drafts().is_none());
    assert!(FailingStore::new(&MemoryStore::default(), 0, Fails::Before).in_drafts().is_none());
}
