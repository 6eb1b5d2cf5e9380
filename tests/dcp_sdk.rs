//! The official SDK as the writer: Couchbase's own client for Python writes into the test producer, and the seqnos
//! that it is told are those that are delivered here, with the same keys and documents.
//!
//! Where it is not installed this says so in one line and is over, or fails where `.ci/run` has to have installed it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse::event::{Datatype, VbId, VbUuid};
use dormouse::source::dcp::{CollectionId, DcpConfig};
use serde_json::Value;

use crate::support::followed::{Told, open};
use crate::support::producer::{BUCKET_NAME, COLLECTION, PASSWORD, Producer, USER};
use crate::support::skip_without;

const VBUCKETS: u16 = 64;

/// The interpreter that `.ci/run` has installed the client for, or the usual one.
fn python() -> PathBuf {
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("servers").join("bin/python3");
    if beside.is_file() { beside } else { PathBuf::from("python3") }
}

/// What a client was told of each of its writes; nothing where it is not installed.
fn write(port: u16) -> Option<Vec<Value>> {
    let (scope, collection) = COLLECTION.0.split_once('.').unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/writer.py");
    let output = Command::new(python())
        .arg(script)
        .arg(port.to_string())
        .args([USER, PASSWORD, BUCKET_NAME, scope, collection])
        .output();
    let output = match output {
        Err(_) => None,
        Ok(output) => (output.status.code() != Some(3)).then_some(output),
    };
    let Some(output) = output else {
        skip_without("couchbase for Python");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Everything that a collection's streams deliver, without what belongs to the streams themselves.
fn delivered(config: &DcpConfig, number: u16, highs: &[u64]) -> BTreeMap<(u16, u64), String> {
    let followed = open(config, number);
    let with_some: Vec<(u16, u64)> = (0..).zip(highs.iter().copied()).filter(|(_, high)| *high > 0).collect();
    for (vb, high) in &with_some {
        followed.follow_to(*vb, *high);
    }
    let is_change = |told: &Told| told.2.starts_with('-') || told.2.contains('=');
    let events = followed.until_ends(with_some.len());
    followed.close();
    events.into_iter().filter(is_change).map(|(vb, seqno, what)| ((vb, seqno), what)).collect()
}

/// What a stream delivers of some writes: it has each document once, as it was written last.
fn expected(writes: &[&Value]) -> BTreeMap<(u16, u64), String> {
    let mut last = BTreeMap::new();
    for write in writes {
        last.insert(write["id"].as_str().unwrap(), *write);
    }
    let told = |(id, write): (&str, &Value)| {
        let vb = u16::try_from(write["vb"].as_u64().unwrap()).unwrap();
        let what = match write["body"].as_str() {
            None => format!("-{id}"),
            Some(body) => format!("{id}={body} {}", Datatype::JSON.0),
        };
        ((vb, write["seqno"].as_u64().unwrap()), what)
    };
    last.into_iter().map(told).collect()
}

#[test]
fn seqnos_that_the_official_client_is_told_are_those_that_are_delivered() {
    let mut producer = Producer::start(VBUCKETS);
    let port = producer.serve_clients();
    let Some(writes) = write(port) else { return };
    assert!(writes.len() > 400);
    for write in &writes {
        let vb = u16::try_from(write["vb"].as_u64().unwrap()).unwrap();
        assert_eq!(write["vbuuid"].as_u64().map(VbUuid), Some(producer.branch(vb)));
        // The client puts keys into vbuckets by itself.
        assert_eq!(VbId::of_key(write["id"].as_str().unwrap().as_bytes(), VBUCKETS), VbId(vb));
    }
    for (number, name, id) in [(73, "", 0), (74, "airport", COLLECTION.1)] {
        let config = DcpConfig { collection: CollectionId(id), ..producer.config() };
        let of_collection: Vec<&Value> = writes.iter().filter(|write| write["collection"] == name).collect();
        let delivered = delivered(&config, number, &producer.highs());
        assert_eq!(delivered, expected(&of_collection));
    }
    producer.check();
}
