//! Indexes from the line of a file to the line of a scan, against a naive evaluation and a sorted vector.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use dormouse::bucket::{Bucket, BucketConfig, BucketSpec, DataDir, IngestOptions};
use dormouse::index::{IndexDefinition, KeyRange, ScanQuery};
use dormouse::source::{Input, ReplayFormat};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::support::cli::AIRPORTS;
use crate::support::json::{compare, compare_all};
use crate::support::naive::{Index, Parts, Step, Test, compare_keys, document, index};
use crate::support::{forever, watchdog};

/// Documents that there may be; a change is to one of them.
const DOCUMENTS: u16 = 150;

/// What happens to a document: another text, or its end.
type Change = (u16, Option<String>);

fn ingest(bucket: &Bucket, changes: &[Change]) {
    let lines = changes.iter().map(|(id, text)| match text {
        Some(text) => format!("{{\"op\":\"upsert\",\"id\":\"d{id}\",\"doc\":{text}}}\n"),
        None if id % 2 == 0 => format!("{{\"op\":\"delete\",\"id\":\"d{id}\"}}\n"),
        None => format!("{{\"op\":\"expire\",\"id\":\"d{id}\"}}\n"),
    });
    let reader = Box::new(io::Cursor::new(lines.collect::<String>().into_bytes()));
    let input = Input::Reader { name: "changes".to_owned(), reader };
    let options = IngestOptions { format: ReplayFormat::Changes, skip_bad: false, rebuild: false };
    let report = bucket.ingest(vec![input], &options, &watchdog(), &mut |_| {}).unwrap();
    assert_eq!((report.quarantined, report.oversize_keys), (0, 0));
}

/// All entries in key order, then by id.
fn sorted(index: &Index, documents: &BTreeMap<String, Value>) -> Vec<(Parts, String)> {
    let mut entries: Vec<(Parts, String)> = documents
        .iter()
        .flat_map(|(id, document)| index.keys(document).into_iter().map(|key| (key, id.clone())))
        .collect();
    entries.sort_by(|a, b| compare_keys(&a.0, &b.0).then_with(|| a.1.cmp(&b.1)));
    entries
}

fn assert_scans_as(bucket: &Bucket, definition: &IndexDefinition, expected: &[(Parts, String)]) {
    for reverse in [false, true] {
        let query = ScanQuery { reverse, ..ScanQuery::default() };
        let scan = bucket.query(definition.name(), &query, &forever()).unwrap();
        let mut found: Vec<_> = scan.map(Result::unwrap).collect();
        if reverse {
            found.reverse();
        }
        assert_eq!(found.len(), expected.len(), "{definition}");
        for (found, (key, id)) in found.iter().zip(expected) {
            let shown: Vec<Value> = key.iter().map(|part| part.clone().unwrap_or_default()).collect();
            assert!(compare_all(&found.key, &shown).is_eq(), "{definition}: {found:?}, expected {key:?}");
            assert_eq!(&found.id, id, "{definition}: {key:?}");
        }
    }
}

/// A new bucket with these indexes.
fn create(folder: &Path, indexes: &[Index]) -> (Bucket, Vec<IndexDefinition>) {
    let data = DataDir::open_or_create(&folder.join("data")).unwrap();
    let spec = BucketSpec { vbuckets: 8, shards: 3, ..BucketSpec::default() };
    let bucket = data.create_bucket(&"b".parse().unwrap(), spec, &BucketConfig::default()).unwrap();
    let definitions: Vec<IndexDefinition> =
        indexes.iter().zip(0..).map(|(index, n)| index.definition(&format!("i{n}"))).collect();
    bucket.ensure_indexes(&definitions, false).unwrap();
    (bucket, definitions)
}

fn replay(indexes: &[Index], batches: &[Vec<Change>]) {
    let dir = tempfile::tempdir().unwrap();
    let (bucket, definitions) = create(dir.path(), indexes);
    let mut documents = BTreeMap::new();
    for batch in batches {
        ingest(&bucket, batch);
        for (id, text) in batch {
            match text {
                Some(text) => documents.insert(format!("d{id}"), serde_json::from_str(text).unwrap()),
                None => documents.remove(&format!("d{id}")),
            };
        }
        for (index, definition) in indexes.iter().zip(&definitions) {
            assert_scans_as(&bucket, definition, &sorted(index, &documents));
        }
    }
    bucket.close(&watchdog()).unwrap();
}

#[test]
fn documents_that_come_change_and_go_leave_the_entries_of_a_naive_evaluation() {
    let config = ProptestConfig { cases: 8, max_shrink_iters: 64, ..ProptestConfig::default() };
    let change = (0..DOCUMENTS, proptest::option::weighted(0.85, document()));
    let batches = proptest::collection::vec(proptest::collection::vec(change, 200), 2);
    TestRunner::new(config)
        .run(&(proptest::collection::vec(index(), 4..9), batches), |(indexes, batches)| {
            replay(&indexes, &batches);
            Ok(())
        })
        .unwrap();
}

/// Ingests a file of documents into several indexes and compares them with a naive evaluation.
fn assert_stands_in_order(file: &str, text: &str, indexes: &[Index]) {
    let dir = tempfile::tempdir().unwrap();
    let (bucket, definitions) = create(dir.path(), indexes);
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    bucket.ingest(vec![Input::Path(file.into())], &options, &watchdog(), &mut |_| {}).unwrap();
    let documents: BTreeMap<String, Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|document| (document["id"].as_str().unwrap().to_owned(), document))
        .collect();
    for (index, definition) in indexes.iter().zip(&definitions) {
        let expected = sorted(index, &documents);
        assert!(expected.len() > 1000, "{definition}");
        assert_scans_as(&bucket, definition, &expected);
        let first = expected[expected.len() / 2].0[0].clone().unwrap();
        let end = Some(vec![first.clone()]);
        let range = KeyRange { from: end.clone(), to: end, ..KeyRange::default() };
        let found = bucket.scan(definition.name(), &range, false, &forever()).unwrap();
        let is_in = |key: &Parts| key[0].as_ref().is_some_and(|part| compare(part, &first).is_eq());
        let count = expected.iter().filter(|(key, _)| is_in(key)).count();
        assert_eq!(found.count_entries().unwrap(), count as u64, "{definition}");
    }
    bucket.close(&watchdog()).unwrap();
}

#[test]
fn the_airports_stand_in_the_order_of_a_sorted_vector() {
    let filter = Test::And(vec![
        Test::Compare(vec![Step::Member("altitude")], ">", json!(100)),
        Test::Not(Box::new(Test::Like(vec![Step::Member("name")], "A"))),
    ]);
    let indexes = [
        Index::over(&["country", "altitude", "name"]).with_filter(filter),
        Index::over(&["iata"]),
        Index::over(&["latitude", "longitude"]),
        Index::over(&["timezone", "missing", "name"]),
    ];
    assert_stands_in_order(AIRPORTS, &std::fs::read_to_string(AIRPORTS).unwrap(), &indexes);
}

/// `DORMOUSE_CITIES` names the file of the cities of GeoNames, which is not in this repository.
#[test]
fn the_cities_or_without_their_file_the_airports_once_more_stand_in_the_order_of_a_sorted_vector() {
    let cities = std::env::var("DORMOUSE_CITIES").ok();
    let file = cities.as_deref().unwrap_or(AIRPORTS);
    let mut text = String::new();
    let opened = std::fs::File::open(file).unwrap();
    if std::path::Path::new(file).extension().is_some_and(|ending| ending == "gz") {
        io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(opened), &mut text).unwrap();
    } else {
        io::Read::read_to_string(&mut { opened }, &mut text).unwrap();
    }
    let filter = Test::Or(vec![
        Test::In(
            vec![Step::Member("country")],
            vec![json!("DE"), json!("FR"), json!("Germany"), json!("France")],
        ),
        Test::Compare(vec![Step::Member("name")], ">=", json!("M")),
    ]);
    let (north, east) = if cities.is_some() { ("lat", "lng") } else { ("latitude", "longitude") };
    let indexes = [
        Index::over(&["name"]),
        Index::over(&["country", "admin1", "name"]),
        Index::over(&[north, east]),
        Index::over(&["country", "name"]).with_filter(filter),
    ];
    assert_stands_in_order(file, &text, &indexes);
}
