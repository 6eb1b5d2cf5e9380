//! A collection that is not the default one is followed while nodes hear of it one after the other.

use std::time::Duration;

use dormouse::bucket::{FollowCause, FollowOptions, IntakeError};
use dormouse::event::StreamStatus;
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{CollectionId, Manifest};
use tempfile::TempDir;

use crate::support::consumer::{Consumer, follow};
use crate::support::eventually;
use crate::support::producer::{FILTERED, Producer, What};

const VBUCKETS: u16 = 4;

/// Two nodes, of which the second is behind where that is wanted, and a bucket for the collection.
fn world(folder: &TempDir, is_behind: bool) -> (Producer, Consumer, FollowOptions) {
    let producer = Producer::start_nodes(VBUCKETS, 2, None);
    if is_behind {
        producer.state.lock().behind.insert(1);
    }
    (0..VBUCKETS).for_each(|vb| put(&producer, vb, "first"));
    let consumer = Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS);
    let mut options = follow(&producer, false);
    options.cluster.connection.collection = CollectionId(FILTERED);
    (producer, consumer, options)
}

fn put(producer: &Producer, vb: u16, id: &str) {
    let value = format!("{{\"n\":{vb}}}").into_bytes();
    producer.change_in(FILTERED, vb, &format!("{id}{vb}"), What::Put { value, datatype: 1 });
}

/// The vbuckets whose documents are indexed.
fn indexed(consumer: &Consumer) -> Vec<i64> {
    consumer.indexed().into_iter().map(|(n, _)| n).collect()
}

#[test]
fn a_collection_that_a_node_has_not_heard_of_is_asked_for_there_until_it_has() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, options) = world(&folder, true);
    consumer.begin(options);
    let has_some = || consumer.reached().iter().map(|seqno| *seqno > 0).collect::<Vec<_>>();
    eventually("what the other node has is there", || has_some() == [true, false, true, false]);
    let asked = || producer.state.lock().requests.iter().filter(|(vb, _)| vb.0 == 1).count();
    eventually("the node is asked again and again", || asked() > 3);
    producer.state.lock().behind.clear();
    eventually("all of it is indexed", || indexed(&consumer) == [0, 1, 2, 3]);
    consumer.stop(producer);
}

#[test]
fn a_vbucket_that_moves_to_a_node_with_an_older_manifest_goes_on_once_that_has_heard() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, options) = world(&folder, false);
    consumer.begin(options);
    eventually("all of it is indexed", || indexed(&consumer) == [0, 1, 2, 3]);
    producer.state.lock().behind.insert(1);
    producer.move_vb(0, Some(1));
    put(&producer, 0, "second");
    eventually("the node refuses", || producer.state.lock().manifests_ahead > 3);
    assert_eq!(indexed(&consumer), [0, 1, 2, 3]);
    producer.state.lock().behind.clear();
    eventually("it goes on", || indexed(&consumer) == [0, 0, 1, 2, 3]);
    consumer.stop(producer);
}

#[test]
fn a_node_that_stays_behind_ends_following_with_the_reason() {
    for is_behind_at_first in [true, false] {
        let folder = TempDir::new().unwrap();
        let (producer, mut consumer, mut options) = world(&folder, is_behind_at_first);
        options.cluster.connection.refusal_timeout = Duration::from_millis(300);
        consumer.begin(options);
        if !is_behind_at_first {
            eventually("all of it is indexed", || indexed(&consumer) == [0, 1, 2, 3]);
            producer.state.lock().behind.insert(1);
            producer.move_vb(0, Some(1));
        }
        let ended = consumer.join().unwrap_err();
        assert!(
            matches!(ended, IntakeError::Cluster { cause: FollowCause::ManifestBehind { .. }, .. }),
            "{ended}"
        );
        assert!(ended.to_string().contains("has not heard of the bucket's newest collections"), "{ended}");
        consumer.close();
        producer.check();
    }
}

#[test]
fn a_collection_that_no_node_knows_ends_following_once_all_have_told() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, options) = world(&folder, true);
    producer.state.lock().behind.insert(0);
    consumer.begin(options);
    let ended = consumer.join().unwrap_err();
    let is_unknown = matches!(
        ended,
        IntakeError::Cluster {
            cause: FollowCause::Refused { status: StreamStatus::UnknownCollection, .. },
            ..
        }
    );
    assert!(is_unknown, "{ended}");
    consumer.close();
    producer.check();
}

#[test]
fn a_node_that_tells_no_manifest_is_followed_without_it() {
    let folder = TempDir::new().unwrap();
    let (producer, mut consumer, options) = world(&folder, false);
    producer.answer(0xba, 0x24, b"no rights");
    consumer.begin(options);
    eventually("all of it is indexed", || indexed(&consumer) == [0, 1, 2, 3]);
    consumer.stop(producer);
}

#[test]
fn a_manifest_names_its_number_and_the_collections_of_all_scopes() {
    let text = br#"{"uid":"1f","scopes":[{"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"}]},
        {"name":"app","uid":"8","collections":[{"name":"orders","uid":"a","maxTTL":60}]},{"name":"empty","uid":"9"}]}"#;
    let read = |id: u32| Manifest::decode(text, CollectionId(id));
    assert_eq!(read(10), Some(Manifest { uid: 31, has_collection: true }));
    assert_eq!(read(8), Some(Manifest { uid: 31, has_collection: false }));
    for wrong in [&b""[..], b"[]", br#"{"uid":"x","scopes":[]}"#, br#"{"uid":1,"scopes":[]}"#] {
        assert_eq!(Manifest::decode(wrong, CollectionId(0)), None);
    }
}
