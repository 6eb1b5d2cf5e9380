//! A cluster of several nodes: vbuckets are followed where they are, and wherever they go.

use dormouse::bucket::{BucketSpec, FollowCause, FollowOptions, IntakeError};
use dormouse::event::VbId;
use dormouse::pause::Membership;
use dormouse::shard::StoreKind;
use dormouse::source::dcp::{ClusterMap, ClusterUrl, ClusterUrlError, MapError, Network, NodeAddress};
use tempfile::TempDir;

use crate::support::consumer::{Consumer, config, expected, follow, write};
use crate::support::path::Dice;
use crate::support::producer::Producer;
use crate::support::{eventually, watchdog};

const VBUCKETS: u16 = 12;

fn consumer(folder: &TempDir) -> Consumer {
    Consumer::open(folder.path(), StoreKind::Lsm, VBUCKETS)
}

/// Ends what never ends by itself, and checks what the index holds.
fn finish(consumer: Consumer, producer: Producer) {
    consumer.catch_up(&producer);
    assert_eq!(consumer.indexed(), expected(&producer));
    consumer.stop(producer);
}

#[test]
fn vbuckets_are_spread_over_several_connections_to_each_of_several_nodes() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 3, None), Dice::new(1));
    write(&producer, &mut dice, 2000);
    let consumer = consumer(&folder);
    let options = FollowOptions { connections: 2, ..follow(&producer, true) };
    consumer.bucket.follow(&options, &watchdog(), &mut |_| {}).unwrap();
    assert_eq!(consumer.indexed(), expected(&producer));
    let nodes: Vec<usize> = {
        let state = producer.state.lock();
        state.connections.iter().filter(|seen| !seen.name.is_empty()).map(|seen| seen.node).collect()
    };
    for node in 0..3 {
        assert_eq!(nodes.iter().filter(|other| **other == node).count(), 2, "node {node}");
    }
    consumer.close();
    producer.check();
}

#[test]
fn connections_to_a_node_share_its_vbuckets_whatever_numbers_these_have() {
    let folder = TempDir::new().unwrap();
    // One node has the vbuckets with even numbers, and the other one those with odd ones.
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 2, None), Dice::new(8));
    write(&producer, &mut dice, 500);
    let consumer = consumer(&folder);
    let options = FollowOptions { connections: 2, ..follow(&producer, true) };
    consumer.bucket.follow(&options, &watchdog(), &mut |_| {}).unwrap();
    let sent: Vec<usize> = {
        let state = producer.state.lock();
        state.connections.iter().filter(|seen| seen.sent > 0).map(|seen| seen.node).collect()
    };
    for node in 0..2 {
        assert_eq!(sent.iter().filter(|other| **other == node).count(), 2, "node {node}: {sent:?}");
    }
    consumer.close();
    producer.check();
}

#[test]
fn vbuckets_that_move_are_followed_where_they_go() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 3, None), Dice::new(2));
    let mut consumer = consumer(&folder);
    consumer.begin(follow(&producer, false));
    for _ in 0..8 {
        write(&producer, &mut dice, 200);
        for _ in 0..3 {
            let (vb, node) = (dice.choose(VBUCKETS), usize::from(dice.choose(3)));
            producer.move_vb(vb, Some(node));
        }
        write(&producer, &mut dice, 200);
        consumer.catch_up(&producer);
    }
    finish(consumer, producer);
}

#[test]
fn a_vbucket_that_moves_again_and_again_is_asked_for_at_its_new_node_at_once() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 2, None), Dice::new(8));
    let mut consumer = consumer(&folder);
    consumer.begin(follow(&producer, false));
    // Waits that grow with each move would take longer than all of it may.
    let all = watchdog();
    for number in 0..16 {
        write(&producer, &mut dice, 50);
        consumer.catch_up(&producer);
        producer.move_vb(0, Some((number + 1) % 2));
    }
    assert!(all.check().is_ok(), "it took too long");
    finish(consumer, producer);
}

#[test]
fn vbuckets_of_a_node_that_is_lost_go_on_at_another_node() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 3, None), Dice::new(3));
    write(&producer, &mut dice, 1000);
    let mut consumer = consumer(&folder);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    // The node that following began with.
    producer.set_down(0, true);
    write(&producer, &mut dice, 500);
    for vb in (0..VBUCKETS).step_by(3) {
        producer.move_vb(vb, Some(1));
    }
    consumer.catch_up(&producer);
    producer.set_down(0, false);
    for vb in (0..VBUCKETS).step_by(3) {
        producer.move_vb(vb, Some(0));
    }
    write(&producer, &mut dice, 500);
    finish(consumer, producer);
}

#[test]
fn a_vbucket_without_a_node_is_waited_for_and_the_others_go_on() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 2, None), Dice::new(4));
    write(&producer, &mut dice, 500);
    producer.move_vb(5, None);
    let mut consumer = consumer(&folder);
    consumer.begin(follow(&producer, false));
    let others = |mut of_all: Vec<u64>| {
        of_all[5] = 0;
        of_all
    };
    eventually("the others are there", || consumer.reached() == others(producer.highs()));
    producer.move_vb(5, Some(1));
    finish(consumer, producer);
}

#[test]
fn members_follow_a_part_each_and_together_all() {
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 2, None), Dice::new(5));
    write(&producer, &mut dice, 2000);
    let mut all = std::collections::BTreeSet::new();
    for member in 1..=5 {
        let folder = TempDir::new().unwrap();
        let membership = Membership { member, of: 5 };
        let spec = BucketSpec { vbuckets: VBUCKETS, membership, ..Consumer::spec() };
        let consumer = Consumer::open_with(folder.path(), spec, &config());
        consumer.once(&producer);
        for entry in consumer.indexed() {
            assert!(all.insert(entry), "two members have the same");
        }
        consumer.close();
    }
    assert_eq!(all, expected(&producer));
    producer.check();
}

#[test]
fn a_bucket_with_another_number_of_vbuckets_is_refused() {
    let folder = TempDir::new().unwrap();
    let producer = Producer::start(7);
    let consumer = consumer(&folder);
    let refused = consumer.bucket.follow(&follow(&producer, true), &watchdog(), &mut |_| {});
    assert!(
        matches!(
            refused,
            Err(IntakeError::Cluster { cause: FollowCause::Vbuckets { here: VBUCKETS, there: 7 }, .. })
        ),
        "{refused:?}"
    );
    consumer.close();
    producer.check();
}

fn address(host: &str, port: u16) -> NodeAddress {
    NodeAddress { host: host.to_owned(), port }
}

#[test]
fn a_url_names_the_seeds_the_bucket_and_the_user_and_no_password() {
    let url: ClusterUrl = "couchbase://me@one,[::1]:7,two:99/travel%20log".parse().unwrap();
    assert_eq!(url.seeds, [address("one", 11210), address("::1", 7), address("two", 99)]);
    assert_eq!((url.is_tls, url.user.as_deref(), url.bucket.as_str()), (false, Some("me"), "travel log"));
    assert_eq!(url.to_string(), "couchbase://one:11210,[::1]:7,two:99/travel log");
    let url: ClusterUrl = "couchbases://one/b".parse().unwrap();
    assert_eq!((url.is_tls, url.user, url.seeds), (true, None, vec![address("one", 11207)]));
    let refused = "couchbase://me:hunter2@one/b".parse::<ClusterUrl>().unwrap_err();
    assert_eq!(refused, ClusterUrlError::Password);
    assert!(!refused.to_string().contains("hunter2"));
    for (text, error) in [
        ("http://one/b", ClusterUrlError::Scheme),
        ("couchbase://one", ClusterUrlError::Bucket),
        ("couchbase://one/", ClusterUrlError::Bucket),
        ("couchbase://one/b/c", ClusterUrlError::Bucket),
        ("couchbase:///b", ClusterUrlError::Node(String::new())),
        ("couchbase://one:0/b", ClusterUrlError::Node("one:0".to_owned())),
        ("couchbase://one:port/b", ClusterUrlError::Node("one:port".to_owned())),
        ("couchbase://[::1/b", ClusterUrlError::Node("[::1".to_owned())),
    ] {
        assert_eq!(text.parse::<ClusterUrl>(), Err(error), "{text}");
    }
}

const MAP: &str = r#"{
    "rev": 7, "revEpoch": 2, "name": "travel",
    "nodesExt": [
        {"services": {"kv": 11210, "kvSSL": 11207, "mgmt": 8091}, "thisNode": true},
        {"services": {"kv": 1, "kvSSL": 2}, "hostname": "two.example"},
        {"services": {"n1ql": 8093}, "hostname": "three.example"}
    ],
    "vBucketServerMap": {
        "hashAlgorithm": "CRC", "numReplicas": 1,
        "serverList": ["$HOST:11210", "two.example:11210"],
        "vBucketMap": [[0, 1], [1, 0], [-1, 0], [5, 0]]
    }
}"#;

#[test]
fn a_map_tells_the_node_of_each_vbucket() {
    let asked = address("one.example", 11210);
    let map = ClusterMap::parse(MAP, &asked, false).unwrap();
    assert_eq!(map.vbuckets(), 4);
    assert_eq!(map.nodes(), [address("one.example", 11210), address("two.example", 1)]);
    let of = |map: &ClusterMap, vb| map.node_of(VbId(vb)).cloned();
    assert_eq!(of(&map, 0), Some(asked.clone()));
    assert_eq!([of(&map, 2), of(&map, 3), of(&map, 4)], [None, None, None]);
    let tls = ClusterMap::parse(MAP, &asked, true).unwrap();
    assert_eq!(of(&tls, 1), Some(address("two.example", 2)));
    let newer = |rev, epoch| {
        let text = MAP.replace("\"rev\": 7", rev).replace("\"revEpoch\": 2", epoch);
        ClusterMap::parse(&text, &asked, false).unwrap().is_newer_than(&map)
    };
    assert!(newer("\"rev\": 8", "\"revEpoch\": 2") && newer("\"rev\": 1", "\"revEpoch\": 3"));
    assert!(!newer("\"rev\": 7", "\"revEpoch\": 2") && !newer("\"rev\": 9", "\"revEpoch\": 1"));
}

#[test]
fn what_is_no_map_is_refused() {
    let parse = |text: &str, is_tls| ClusterMap::parse(text, &address("one", 1), is_tls);
    assert!(matches!(parse("no", false), Err(MapError::Json(_))));
    assert!(matches!(parse("{\"rev\":1}", false), Err(MapError::NoVbuckets)));
    let empty = r#"{"vBucketServerMap":{"serverList":[],"vBucketMap":[]}}"#;
    assert!(matches!(parse(empty, false), Err(MapError::NoVbuckets)));
    let plain = MAP.replace("\"kvSSL\": 2", "\"other\": 2");
    assert!(matches!(parse(&plain, true), Err(MapError::Address { is_tls: true, .. })));
    let many = format!(
        r#"{{"vBucketServerMap":{{"serverList":["a:1"],"vBucketMap":[{}[0]]}}}}"#,
        "[0],".repeat(1 << 15)
    );
    assert!(matches!(parse(&many, false), Err(MapError::TooMany(_))));
}

/// Two nodes behind a translation of addresses: one port of it for each of them.
const HIDDEN: &str = r#"{
    "rev": 1,
    "nodesExt": [
        {"services": {"kv": 11210, "kvSSL": 11207}, "hostname": "10.0.0.1",
         "alternateAddresses": {"external": {"hostname": "out.example", "ports": {"kv": 31001}}}},
        {"services": {"kv": 11210, "kvSSL": 11207}, "hostname": "10.0.0.2",
         "alternateAddresses": {"external": {"hostname": "out.example", "ports": {"kv": 31002}},
                                "other": {"hostname": "two.other.example"}}}
    ],
    "vBucketServerMap": {"serverList": ["10.0.0.1:11210", "10.0.0.2:11210"], "vBucketMap": [[0], [1]]}
}"#;

fn in_network(
    network: &str,
    seed: (&str, u16),
    json: &str,
    is_tls: bool,
) -> Result<Vec<NodeAddress>, MapError> {
    let (network, asked): (Network, _) = (network.parse().unwrap(), address(seed.0, seed.1));
    let seeds = [address("elsewhere.example", 1), asked.clone()];
    ClusterMap::parse_in(&network, &seeds, json, &asked, is_tls).map(|map| map.nodes().to_vec())
}

#[test]
fn alternate_addresses_are_those_of_the_network_that_a_seed_is_in() {
    let own = [address("10.0.0.1", 11210), address("10.0.0.2", 11210)];
    let outside = [address("out.example", 31001), address("out.example", 31002)];
    for (seed, nodes) in [
        (("10.0.0.2", 11210), &own),
        (("OUT.example", 31002), &outside),
        (("out.example", 11210), &outside),
        (("10.0.0.1", 7), &own),
        (("neither.example", 11210), &own),
    ] {
        assert_eq!(&in_network("auto", seed, HIDDEN, false).unwrap(), nodes, "{seed:?}");
    }
    // A node that calls itself what it was asked by is told from its other address by the port.
    let nameless = HIDDEN.replace(r#", "hostname": "10.0.0.1""#, "");
    assert_eq!(in_network("auto", ("out.example", 31001), &nameless, false).unwrap(), outside);
    assert_eq!(in_network("default", ("out.example", 31001), HIDDEN, false).unwrap(), own);
    assert_eq!(in_network("external", ("10.0.0.1", 11210), HIDDEN, false).unwrap(), outside);
}

#[test]
fn a_network_that_a_node_is_not_in_is_refused() {
    let seed = ("10.0.0.1", 11210);
    let refused = in_network("other", seed, HIDDEN, false).unwrap_err();
    assert!(matches!(&refused, MapError::Network { network, .. } if network == "other"), "{refused}");
    // It offers no TLS there.
    assert!(matches!(
        in_network("external", seed, HIDDEN, true),
        Err(MapError::Address { is_tls: true, .. })
    ));
    let without_ports =
        HIDDEN.replace(r#", "ports": {"kv": 31001}"#, "").replace(r#", "ports": {"kv": 31002}"#, "");
    let nodes = in_network("external", seed, &without_ports, true).unwrap();
    assert_eq!(nodes, [address("out.example", 11207), address("out.example", 11207)]);
}

#[test]
fn a_cluster_behind_a_translation_of_addresses_is_followed_from_outside() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 2, None), Dice::new(6));
    producer.behave(|behaviour| behaviour.is_hidden = true);
    write(&producer, &mut dice, 500);
    let mut consumer = consumer(&folder);
    consumer.begin(follow(&producer, false));
    consumer.catch_up(&producer);
    // The node that following began with is gone, and the other one tells the rest.
    producer.set_down(0, true);
    (0..VBUCKETS).for_each(|vb| producer.move_vb(vb, Some(1)));
    write(&producer, &mut dice, 500);
    finish(consumer, producer);
}

#[test]
fn a_node_that_sends_nothing_holds_up_no_other() {
    let folder = TempDir::new().unwrap();
    let (producer, mut dice) = (Producer::start_nodes(VBUCKETS, 3, None), Dice::new(7));
    let mut consumer = consumer(&folder);
    consumer.begin(follow(&producer, false));
    producer.behave(|behaviour| behaviour.stalled_nodes = [1].into());
    for _ in 0..5 {
        write(&producer, &mut dice, 400);
        let of_others = |all: Vec<u64>| all.into_iter().enumerate().filter(|(vb, _)| vb % 3 != 1).collect();
        eventually("the others go on", || {
            let (there, here): (Vec<_>, Vec<_>) =
                (of_others(producer.highs()), of_others(consumer.reached()));
            there == here
        });
    }
    producer.behave(|behaviour| behaviour.stalled_nodes.clear());
    finish(consumer, producer);
}
