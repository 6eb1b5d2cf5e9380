//! What indexes cost: the evaluation of documents, the encoding of keys, scans.
//!
//! `parse/…` makes `serde_json::Value`s of the same documents that `evaluate/…` reads: the rates of both are what the
//! evaluation is judged by. Documents are hotels of about 200 B, 2 KiB and 20 KiB, and the airports.

#![expect(clippy::unwrap_used, reason = "in a benchmark's helpers a panic is the failure")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dormouse::bucket::{BucketConfig, BucketSpec, DataDir, IngestOptions};
use dormouse::index::collate::encode_value;
use dormouse::index::{Extract, IndexDefinition, KeyList, KeyPlan, KeyRange, ScanQuery};
use dormouse::source::{Input, ReplayFormat};
use dormouse::thread::Until;
use serde_json::{Value, json};

const AIRPORTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/airports.jsonl");

/// A hotel of about `bytes`: members of all kinds, and reviews that fill it up.
fn hotel(number: usize, bytes: usize) -> String {
    let mut text = format!(
        "{{\"id\":\"hotel::{number}\",\"name\":\"Hotel Number {number} at the \\\"Bay\\\"\",\"city\":\"Springfield\",\
         \"country\":\"France\",\"stars\":{},\"price\":{}.25,\"tags\":[\"pool\",\"spa\",\"wifi\"],\
         \"geo\":{{\"lat\":{}.0816898,\"lon\":145.391998}}",
        number % 5,
        number % 300,
        number % 80,
    );
    if bytes > 1000 {
        text.push_str(
            ",\"phone\":null,\"description\":\"A quiet house near the old harbour, with a garden, a library of \
             two thousand books and a view over the bay that nobody forgets.\",\"reviews\":[",
        );
        let mut count = 0;
        while text.len() < bytes - 200 {
            let separator = if count == 0 { "" } else { "," };
            write!(
                text,
                "{separator}{{\"author\":\"Guest {count}\",\"date\":\"2024-0{}-11 10:00:00\",\"ratings\":\
                 {{\"Cleanliness\":{},\"Location\":4,\"Overall\":4.5,\"Value\":3}},\"content\":\"The room was clean \
                 and the staff were kind; we would come back in spring, when the garden is in bloom.\"}}",
                count % 9 + 1,
                count % 5,
            )
            .unwrap();
            count += 1;
        }
        text.push(']');
    }
    text.push('}');
    text
}

fn definitions(count: usize) -> Vec<IndexDefinition> {
    let all = [
        "country,city",
        "geo.lat,geo.lon",
        "name",
        "tags[],price",
        "id",
        "city,stars",
        "price,name",
        "phone,country",
        "description",
        "reviews[].author",
        "reviews[].ratings.Overall,stars",
        "reviews[0].date",
        "reviews[].ratings.Value,city",
        "geo.lon,price",
        "tags[],city",
        "stars,reviews[0].ratings.Location",
    ];
    let parse = |(number, keys)| IndexDefinition::parse(&format!("i{number}={keys}")).unwrap();
    all.iter().take(count).enumerate().map(parse).collect()
}

/// Reads each document for all indexes, as a worker does.
fn evaluate(c: &mut Criterion) {
    let hotels = |bytes: usize| (0..64).map(|number| hotel(number, bytes)).collect::<Vec<_>>();
    let airports = std::fs::read_to_string(AIRPORTS).unwrap().lines().map(str::to_owned).collect();
    let sets =
        [("200B", hotels(200)), ("2KiB", hotels(2048)), ("20KiB", hotels(20_480)), ("airports", airports)];
    for (size, documents) in sets {
        let bytes: usize = documents.iter().map(String::len).sum();
        let mut group = c.benchmark_group("parse");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(size, |b| {
            b.iter(|| {
                for text in &documents {
                    drop(black_box(serde_json::from_slice::<Value>(text.as_bytes()).unwrap()));
                }
            });
        });
        group.finish();
        let mut group = c.benchmark_group("evaluate");
        group.throughput(Throughput::Bytes(bytes as u64));
        for count in [1, 4, 16] {
            let definitions = definitions(count);
            let plan = KeyPlan::new(&definitions);
            let (mut extract, mut keys) = (Extract::new(), KeyList::new());
            group.bench_function(format!("{count} indexes/{size}"), |b| {
                b.iter(|| {
                    let mut found = 0;
                    for text in &documents {
                        plan.read(text.as_bytes(), &mut extract).unwrap();
                        for place in 0..count {
                            keys.clear();
                            plan.keys(place, "hotel", &extract, &mut keys);
                            found += keys.len();
                        }
                    }
                    found
                });
            });
        }
        group.finish();
    }
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    let values = [
        ("integer", json!(123_456)),
        ("double", json!(145.391_998_291)),
        ("string", json!("Pacific/Port_Moresby")),
        ("array", json!(["pool", "spa", 3, null])),
        ("object", json!({"lat": -6.08, "lon": 145.39, "name": "Goroka"})),
    ];
    for (kind, value) in values {
        let mut bytes = Vec::new();
        group.bench_function(kind, |b| {
            b.iter(|| {
                bytes.clear();
                encode_value(black_box(&value), &mut bytes).unwrap();
                bytes.len()
            });
        });
    }
    group.finish();
}

fn scan(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(&dir.path().join("data")).unwrap();
    let config = BucketConfig::default();
    let bucket = data.create_bucket(&"travel".parse().unwrap(), BucketSpec::default(), &config).unwrap();
    let index = IndexDefinition::parse("by_country=country,city").unwrap();
    bucket.ensure_index(&index, false).unwrap();
    let format = ReplayFormat::Documents { id_field: "id".to_owned() };
    let options = IngestOptions { format, skip_bad: false, rebuild: false };
    let inputs = vec![Input::Path(Path::new(AIRPORTS).to_owned())];
    bucket.ingest(inputs, &options, &Until::default(), &mut |_| {}).unwrap();
    let france = KeyRange {
        from: Some(vec![json!("France")]),
        to: Some(vec![json!("France")]),
        ..KeyRange::default()
    };
    let queries = [
        ("all", ScanQuery::default()),
        ("all in reverse", ScanQuery { reverse: true, ..ScanQuery::default() }),
        ("one country", france.into()),
        ("distinct countries", ScanQuery { distinct: Some(1), ..ScanQuery::default() }),
    ];
    let mut group = c.benchmark_group("scan");
    for (name, query) in queries {
        let scan = || bucket.query(index.name(), &query, &Until::default()).unwrap();
        group.throughput(Throughput::Elements(scan().count_entries().unwrap()));
        group.bench_function(name, |b| b.iter(|| scan().map(|entry| entry.unwrap().id.len()).sum::<usize>()));
    }
    group.finish();
    bucket.close(&Until::default()).unwrap();
}

criterion_group!(benches, evaluate, encode, scan);
criterion_main!(benches);
