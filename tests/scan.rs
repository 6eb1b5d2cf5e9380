//! Scans through a bucket: what they give is what a sorted vector gives.

use std::cmp::Ordering;
use std::io;
use std::time::Duration;

use crossbeam::channel::bounded;
use dormouse::bucket::{Bucket, BucketConfig, BucketSpec, DataDir, IndexError, IngestOptions};
use dormouse::event::{Seqno, VbId};
use dormouse::index::{Cursor, IndexDefinition, IndexName, KeyRange, ScanEntry, ScanError, ScanQuery};
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::support::json::compare_parts;
use crate::support::{cancelled, eventually, forever, watchdog};

type Parts = Vec<Option<Value>>;

const VBUCKETS: u16 = 8;

struct World {
    _dir: tempfile::TempDir,
    bucket: Bucket,
}

impl World {
    fn new(config: &BucketConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
        let spec = BucketSpec { vbuckets: VBUCKETS, shards: 3, ..BucketSpec::default() };
        let bucket = data.create_bucket(&"b".parse().unwrap(), spec, config).unwrap();
        bucket.ensure_index(&IndexDefinition::parse("i=a,b").unwrap(), false).unwrap();
        Self { _dir: dir, bucket }
    }

    /// With these keys, each of a document of its own.
    fn with(entries: &[(Parts, String)], config: &BucketConfig) -> Self {
        let world = Self::new(config);
        world.ingest(entries);
        world
    }

    fn ingest(&self, entries: &[(Parts, String)]) {
        let lines: Vec<String> = entries
            .iter()
            .map(|(parts, id)| {
                let mut document = json!({ "id": id });
                for (name, part) in ["a", "b"].into_iter().zip(parts) {
                    if let Some(part) = part {
                        document[name] = part.clone();
                    }
                }
                format!("{document}\n")
            })
            .collect();
        let reader = Box::new(io::Cursor::new(lines.concat().into_bytes()));
        let input = Input::Reader { name: "lines".to_owned(), reader };
        let format = ReplayFormat::Documents { id_field: "id".to_owned() };
        let options = IngestOptions { format, skip_bad: false, rebuild: false };
        self.bucket.ingest(vec![input], &options, &watchdog(), &mut |_| {}).unwrap();
    }

    fn query(&self, query: &ScanQuery) -> Result<dormouse::index::Scan, IndexError> {
        self.bucket.query(&name(), query, &forever())
    }

    fn all(&self, query: &ScanQuery) -> Vec<ScanEntry> {
        self.query(query).unwrap().map(Result::unwrap).collect()
    }

    /// The same, some entries at a time, each scan going on behind the cursor of the one before.
    fn in_pages(&self, query: &ScanQuery, page: usize) -> Vec<ScanEntry> {
        let (mut all, mut query) = (Vec::new(), query.clone());
        loop {
            let mut scan = self.query(&query).unwrap();
            let before = all.len();
            all.extend(scan.by_ref().take(page).map(Result::unwrap));
            if all.len() == before {
                return all;
            }
            // As it goes over the command line.
            query.after = Some(scan.cursor().unwrap().to_string().parse().unwrap());
        }
    }
}

fn name() -> IndexName {
    "i".parse().unwrap()
}

fn numbered(count: u32, groups: u32) -> Vec<(Parts, String)> {
    (0..count).map(|n| (vec![Some(json!(n % groups)), Some(json!(n))], format!("d{n:05}"))).collect()
}

fn compare(a: &(Parts, String), b: &(Parts, String)) -> Ordering {
    let parts = a.0.iter().zip(&b.0).map(|(a, b)| compare_parts(a.as_ref(), b.as_ref()));
    parts.fold(Ordering::Equal, Ordering::then).then_with(|| a.1.cmp(&b.1))
}

fn against(key: &[Option<Value>], bound: &[Value]) -> Ordering {
    let parts = key.iter().zip(bound).map(|(part, end)| compare_parts(part.as_ref(), Some(end)));
    parts.fold(Ordering::Equal, Ordering::then)
}

fn holds(range: &KeyRange, key: &[Option<Value>]) -> bool {
    let ends = |end: &Option<Vec<Value>>| end.clone().filter(|parts| !parts.is_empty());
    let low = ends(&range.from).is_none_or(|from| match against(key, &from) {
        Ordering::Equal => !range.from_exclusive,
        order => order.is_gt(),
    });
    let high = ends(&range.to).is_none_or(|to| match against(key, &to) {
        Ordering::Equal => !range.to_exclusive,
        order => order.is_lt(),
    });
    low && high
}

/// What a query gives, from a sorted vector.
fn naive(sorted: &[(Parts, String)], query: &ScanQuery) -> Vec<ScanEntry> {
    let is_in =
        |key: &[Option<Value>]| query.ranges.is_empty() || query.ranges.iter().any(|range| holds(range, key));
    let mut kept: Vec<&(Parts, String)> = sorted.iter().filter(|(key, _)| is_in(key)).collect();
    if query.reverse {
        kept.reverse();
    }
    let parts = query.distinct.unwrap_or(2);
    if query.distinct.is_some() {
        kept.dedup_by(|later, first| {
            let pairs = later.0.iter().zip(&first.0).take(parts);
            pairs.map(|(a, b)| compare_parts(a.as_ref(), b.as_ref())).all(Ordering::is_eq)
        });
    }
    let shown = |part: &Option<Value>| part.clone().unwrap_or_default();
    kept.into_iter()
        .map(|(key, id)| ScanEntry { key: key.iter().take(parts).map(shown).collect(), id: id.clone() })
        .collect()
}

fn small() -> impl Strategy<Value = Value> {
    let values =
        [json!(null), json!(true), json!(1), json!(2.5), json!(""), json!("a"), json!("a\u{0}"), json!([1])];
    proptest::sample::select(values.to_vec())
}

fn query() -> impl Strategy<Value = ScanQuery> {
    let bound = || proptest::option::of(proptest::collection::vec(small(), 0..3));
    let range = (bound(), bound(), any::<bool>(), any::<bool>()).prop_map(
        |(from, to, from_exclusive, to_exclusive)| KeyRange { from, to, from_exclusive, to_exclusive },
    );
    (proptest::collection::vec(range, 0..4), any::<bool>(), proptest::option::of(1_usize..3)).prop_map(
        |(ranges, reverse, distinct)| ScanQuery { ranges, reverse, distinct, ..ScanQuery::default() },
    )
}

#[test]
fn scans_give_what_a_sorted_vector_gives_whole_and_in_pages() {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(250));
    let parts = (small(), proptest::option::weighted(0.8, small()));
    let documents = proptest::collection::vec(parts, 150);
    let parts = documents.new_tree(&mut runner).unwrap().current();
    let mut entries: Vec<(Parts, String)> =
        parts.into_iter().zip(0..).map(|((a, b), n)| (vec![Some(a), b], format!("{n:03}"))).collect();
    let world = World::with(&entries, &BucketConfig::default());
    entries.sort_by(compare);
    runner
        .run(&(query(), 1_usize..60), |(query, page)| {
            let expected = naive(&entries, &query);
            prop_assert_eq!(&world.all(&query), &expected, "{:?}", &query);
            prop_assert_eq!(&world.in_pages(&query, page), &expected, "{:?} by {}", &query, page);
            prop_assert_eq!(world.query(&query).unwrap().count_entries().unwrap(), expected.len() as u64);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_cursor_goes_on_in_either_direction() {
    let world = World::with(&numbered(100, 1), &BucketConfig::default());
    let mut scan = world.query(&ScanQuery::default()).unwrap();
    assert!(scan.cursor().is_none(), "nothing was given yet");
    assert_eq!(scan.by_ref().take(40).count(), 40);
    let after = scan.cursor();
    let ids = |query: &ScanQuery| world.all(query).into_iter().map(|entry| entry.id).collect::<Vec<_>>();
    let on = ids(&ScanQuery { after: after.clone(), ..ScanQuery::default() });
    let back = ids(&ScanQuery { after, reverse: true, ..ScanQuery::default() });
    assert_eq!((on.len(), on[0].as_str()), (60, "d00040"));
    assert_eq!((back.len(), back[0].as_str()), (39, "d00038"));
}

#[test]
fn a_cursor_between_a_missing_part_and_null_loses_neither() {
    let entries = [
        (vec![Some(json!(1)), None], "x".to_owned()),
        (vec![Some(json!(1)), Some(json!(null))], "a".to_owned()),
    ];
    let world = World::with(&entries, &BucketConfig::default());
    let ids: Vec<String> =
        world.in_pages(&ScanQuery::default(), 1).into_iter().map(|entry| entry.id).collect();
    assert_eq!(ids, ["x", "a"]);
}

#[test]
fn groups_of_thousands_are_sought_past() {
    let world = World::with(&numbered(6000, 3), &BucketConfig::default());
    for reverse in [false, true] {
        let query = ScanQuery { distinct: Some(1), reverse, ..ScanQuery::default() };
        let mut groups: Vec<Value> = world.all(&query).into_iter().map(|entry| json!(entry.key)).collect();
        if reverse {
            groups.reverse();
        }
        assert_eq!(groups, [json!([0]), json!([1]), json!([2])]);
    }
}

#[test]
fn a_slip_in_a_cursor_is_told() {
    let world = World::with(&numbered(3, 1), &BucketConfig::default());
    let mut scan = world.query(&ScanQuery::default()).unwrap();
    scan.next();
    let text = scan.cursor().unwrap().to_string();
    for place in 0..text.len() {
        let mut wrong = text.clone().into_bytes();
        wrong[place] = if wrong[place] == b'0' { b'1' } else { b'0' };
        assert!(String::from_utf8(wrong).unwrap().parse::<Cursor>().is_err());
        assert!(text[..place].parse::<Cursor>().is_err());
    }
    assert!("é".parse::<Cursor>().is_err());
}

#[test]
fn a_cursor_of_another_index_is_refused() {
    let world = World::new(&BucketConfig::default());
    world.bucket.ensure_index(&IndexDefinition::parse("one=a").unwrap(), false).unwrap();
    world.ingest(&numbered(3, 3));
    let mut scan = world.bucket.query(&"one".parse().unwrap(), &ScanQuery::default(), &forever()).unwrap();
    scan.next();
    let refused = world.query(&ScanQuery { after: scan.cursor(), ..ScanQuery::default() }).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "cannot scan index `i`: its keys have 2 parts, and those of the cursor do not; give a cursor of this index"
    );
}

#[test]
fn distinct_beginnings_have_at_most_the_parts_of_the_keys() {
    let world = World::new(&BucketConfig::default());
    for parts in [0, 3] {
        let refused =
            world.query(&ScanQuery { distinct: Some(parts), ..ScanQuery::default() }).err().unwrap();
        assert!(
            refused.to_string().contains(&format!("distinct beginnings have 1 to 2 of them, not {parts}"))
        );
    }
}

/// The vbucket of a document and the place of its only change there.
fn first_change(id: &str) -> (VbId, Seqno) {
    (VbId::of_key(id.as_bytes(), VBUCKETS), Seqno(1))
}

#[test]
fn a_scan_waits_for_the_changes_that_it_is_to_cover() {
    let world = World::new(&BucketConfig::default());
    let query = ScanQuery { at_least: vec![first_change("d00000")], ..ScanQuery::default() };
    let ids = std::thread::scope(|scope| {
        let scan = scope.spawn(|| {
            let scan = world.bucket.query(&name(), &query, &watchdog()).unwrap();
            scan.map(|entry| entry.unwrap().id).collect::<Vec<_>>()
        });
        eventually("the scan has begun", || world.bucket.open_scans() == 1);
        world.ingest(&numbered(1, 1));
        scan.join().unwrap()
    });
    assert_eq!(ids, ["d00000"]);
}

#[test]
fn a_scan_that_has_nothing_to_wait_for_leaves_nothing_with_the_shards() {
    let world = World::with(&numbered(1, 1), &BucketConfig::default());
    let (wake, woken) = bounded(1);
    world.bucket.shards().iter().for_each(|shard| shard.watch(wake.clone()));
    while woken.try_recv().is_ok() {}
    let query = ScanQuery { at_least: vec![first_change("d00000")], ..ScanQuery::default() };
    assert_eq!(world.all(&query).len(), 1);
    // Another watcher would have sent to this one, to see whether it is still there.
    assert!(woken.try_recv().is_err());
}

#[test]
fn a_wait_that_ends_early_says_what_is_behind() {
    let world = World::with(&numbered(1, 1), &BucketConfig::default());
    let (vb, _) = first_change("d00000");
    let query = ScanQuery { at_least: vec![(vb, Seqno(5))], ..ScanQuery::default() };
    for until in [Until::within(Duration::from_millis(5)), cancelled()] {
        let error = world.bucket.query(&name(), &query, &until).err().unwrap();
        let behind = IndexError::Scan(ScanError::Behind {
            vb,
            wanted: Seqno(5),
            reached: Seqno(1),
            why: until.check().unwrap_err(),
        });
        assert_eq!(error.to_string(), behind.to_string());
    }
    let unknown = ScanQuery { at_least: vec![(VbId(VBUCKETS), Seqno(0))], ..ScanQuery::default() };
    let error = world.query(&unknown).err().unwrap();
    assert!(error.to_string().contains("there is no vbucket 8 to wait for"), "{error}");
}

#[test]
fn a_scan_that_is_too_old_is_ended_by_its_own_next_step() {
    let config = BucketConfig { scan_max_age: Duration::ZERO, ..BucketConfig::default() };
    let world = World::with(&numbered(3, 1), &config);
    let mut scan = world.query(&ScanQuery::default()).unwrap();
    assert!(matches!(scan.next(), Some(Err(ScanError::TooOld { .. }))));
    assert!(scan.next().is_none());
}

#[test]
fn a_scan_that_was_forgotten_is_ended_by_the_next_one() {
    let config = BucketConfig { scan_max_age: Duration::ZERO, ..BucketConfig::default() };
    let world = World::with(&numbered(3, 1), &config);
    let forgotten = world.query(&ScanQuery::default()).unwrap();
    assert_eq!(world.bucket.open_scans(), 1);
    drop(world.query(&ScanQuery::default()).unwrap());
    assert_eq!(world.bucket.open_scans(), 0);
    assert!(matches!(forgotten.count_entries(), Err(ScanError::TooOld { .. })));
}
