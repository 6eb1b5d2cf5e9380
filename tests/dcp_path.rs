//! From a producer over TCP into the shards: the index is what the bucket holds, whatever happens on the way.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossbeam::channel::{Sender, bounded};
use dormouse::event::{ByteBudget, EventBatch, Generation, VbId};
use dormouse::index::{Document, IndexDefinition, KeyList};
use dormouse::projector::{Endpoint, Engine, Feed, KvData, KvDataConfig, ShardEndpoint};
use dormouse::shard::{InstId, ShardId, ShardSet, StoreKind, lock_all};
use dormouse::source::dcp::{Connection, DcpConfig, DcpEnd, DcpOutput, StreamRequest};
use dormouse::timestamp::{Position, TsVbuuid};
use parking_lot::Mutex;
use serde_json::{Value, json};
use slog::{Discard, Logger, o};
use tempfile::TempDir;

use crate::support::path::Dice;
use crate::support::producer::{Producer, What};
use crate::support::shards::{VBUCKETS, close, create, entries, manual};
use crate::support::{eventually, watchdog};

const SHARDS: u16 = 2;

/// One life of a path from a connection to the shards.
struct Path {
    feed: Feed,
    kvdata: KvData,
    connection: Connection,
    /// Held while the path is not to end with its connection.
    upstream: Option<Sender<EventBatch>>,
    budget: ByteBudget,
}

fn primary(inst: u32) -> Engine {
    let evaluator = Arc::new(IndexDefinition::primary("all".parse().unwrap()));
    Engine { inst: InstId(inst), evaluator }
}

/// Where each vbucket is followed from: where its instance stands.
fn positions(set: &ShardSet) -> TsVbuuid {
    let mut positions = TsVbuuid::default();
    for shard in set.shards() {
        positions.union(&shard.positions(InstId(1)).unwrap());
    }
    (0..VBUCKETS).map(|vb| (VbId(vb), positions.get(VbId(vb)).unwrap_or(Position::ZERO))).collect()
}

impl Path {
    fn start(set: &ShardSet, config: &DcpConfig, node: u16, generation: u64) -> Self {
        let logger = Logger::root(Discard, o!());
        let (feed, generation) = (Feed::new(&logger), Generation(generation));
        let requested = positions(set);
        let link = feed.begin_generation(generation, &requested).unwrap();
        for shard in set.shards() {
            let vbs = (0..VBUCKETS).map(VbId).filter(|vb| ShardId::of_vb(*vb, SHARDS) == shard.id());
            shard.install_generation(vbs, generation, &watchdog()).unwrap();
        }
        let endpoint: Arc<dyn Endpoint> = Arc::new(ShardEndpoint::new(set.shards()));
        let shape = KvDataConfig {
            number: node,
            workers: 2,
            vbuckets: VBUCKETS,
            shards: SHARDS,
            worker_queue_batches: 2,
        };
        let (upstream, batches) = bounded(2);
        let kvdata = KvData::start(&shape, &endpoint, batches, &link, &logger).unwrap();
        kvdata.update_ts(requested.clone(), &watchdog()).unwrap();
        kvdata.add_engines(vec![primary(1), primary(2)], &watchdog()).unwrap();
        let budget = ByteBudget::new(1 << 20);
        let output = DcpOutput { generation, batches: upstream.clone(), budget: budget.clone() };
        let connection = Connection::open(config, node, output, &logger, &watchdog()).unwrap();
        for (vb, from) in requested.iter() {
            // It may be cut while it is asked; its streams then come with the next life.
            let _ = connection.request_stream(&StreamRequest::follow(vb, from));
        }
        Self { feed, kvdata, connection, upstream: Some(upstream), budget }
    }

    fn close(self) -> Option<DcpEnd> {
        let end = self.connection.close(&watchdog()).unwrap();
        self.kvdata.close(&watchdog()).unwrap();
        drop(self.feed);
        end
    }
}

fn indexed(set: &ShardSet, inst: u32) -> BTreeSet<String> {
    set.shards().iter().flat_map(|shard| entries(shard, inst)).collect()
}

/// The documents as entries of a primary index show them: the key, which is made of the id, and the id.
fn expected(producer: &Producer) -> BTreeSet<String> {
    let mut keys = KeyList::default();
    let primary = IndexDefinition::primary("all".parse().unwrap());
    let entry = |id: String| {
        keys.clear();
        primary.keys(&id, &Value::Null, &mut keys);
        let mut entry = keys.iter().next().unwrap().to_vec();
        entry.extend_from_slice(id.as_bytes());
        String::from_utf8(entry).unwrap()
    };
    producer.documents().into_iter().map(entry).collect()
}

fn has_reached(set: &ShardSet, producer: &Producer) -> bool {
    positions(set).iter().all(|(vb, position)| position.seqno.0 == producer.high(vb.0))
}

fn finish(path: Path, set: ShardSet, producer: Producer) {
    path.close();
    close(set);
    producer.check();
}

fn write(producer: &Producer, dice: &mut Dice, changes: u64) {
    for _ in 0..changes {
        let vb = dice.choose(VBUCKETS);
        let id = format!("d{vb}-{:03}", dice.below(60));
        match dice.below(10) {
            0..7 => producer.put(vb, &id, "{\"a\":1}"),
            7 => producer.change(vb, &id, What::Expire),
            8 => producer.delete(vb, &id),
            _ => producer.change_in(8, vb, &id, What::Delete),
        };
    }
}

#[test]
fn an_evaluator_of_a_host_is_given_the_extended_attributes() {
    let folder = TempDir::new().unwrap();
    let producer = Producer::start(VBUCKETS);
    let set = create(StoreKind::Memdb, folder.path(), SHARDS, &manual());
    let path = Path::start(&set, &producer.config(), 64, 1);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let evaluator = {
        let seen = Arc::clone(&seen);
        move |id: &str, document: &Document<'_>, _: &mut KeyList| {
            let rank = document.xattrs().get("rank").map(|rank| String::from_utf8(rank.to_vec()).unwrap());
            seen.lock().push((id.to_owned(), rank, document.value()?.clone()));
            Ok(())
        }
    };
    path.kvdata
        .add_engines(vec![Engine { inst: InstId(2), evaluator: Arc::new(evaluator) }], &watchdog())
        .unwrap();
    let with = [&[0, 0, 0, 11, 0, 0, 0, 7][..], b"rank\x007\0", br#"{"a":1}"#].concat();
    for (id, compresses) in [("plain", false), ("compressed", true)] {
        producer.behave(|behaviour| behaviour.compresses = compresses);
        producer.put(0, &format!("{id} without"), r#"{"a":1}"#);
        producer.change(0, id, What::Put { value: with.clone(), datatype: 5 });
        eventually("it is applied", || has_reached(&set, &producer));
    }
    let of = |id: &str, rank: Option<&str>| (id.to_owned(), rank.map(str::to_owned), json!({ "a": 1 }));
    let told = [
        ("plain without", None),
        ("plain", Some("7")),
        ("compressed without", None),
        ("compressed", Some("7")),
    ];
    assert_eq!(*seen.lock(), told.map(|(id, rank)| of(id, rank)));
    finish(path, set, producer);
}

#[test]
fn the_index_is_what_the_producer_holds() {
    let folder = TempDir::new().unwrap();
    let set = create(StoreKind::Lsm, folder.path(), SHARDS, &manual());
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(1));
    write(&producer, &mut dice, 4000);
    let path = Path::start(&set, &producer.config(), 300, 1);
    eventually("the backfill is there", || has_reached(&set, &producer));
    write(&producer, &mut dice, 2000);
    eventually("what came live is there", || has_reached(&set, &producer));
    assert_eq!(indexed(&set, 1), expected(&producer));
    assert_eq!(indexed(&set, 2), expected(&producer));
    finish(path, set, producer);
}

#[test]
fn cuts_at_any_point_and_restarts_from_saved_positions_lose_and_repeat_nothing() {
    let folder = TempDir::new().unwrap();
    let set = create(StoreKind::Lsm, folder.path(), SHARDS, &manual());
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(7));
    let config = DcpConfig { window_bytes: 20_000, batch_bytes: 4096, ..producer.config() };
    for life in 1..=25 {
        write(&producer, &mut dice, 400);
        let path = Path::start(&set, &config, 301, life);
        let after = usize::from(dice.choose(40_000)) + 1;
        producer.behave(|behaviour| {
            behaviour.compresses = life % 2 == 0;
            behaviour.cut_after = Some(after);
        });
        write(&producer, &mut dice, 100);
        eventually("it is cut, or all is there", || {
            path.connection.open_streams().is_none() || has_reached(&set, &producer)
        });
        producer.behave(|behaviour| behaviour.cut_after = None);
        path.close();
    }
    let path = Path::start(&set, &config, 301, 100);
    eventually("everything is there", || has_reached(&set, &producer));
    assert_eq!(indexed(&set, 1), expected(&producer));
    finish(path, set, producer);
}

#[test]
fn an_out_of_order_backfill_that_is_cut_begins_again_and_ends_in_the_same_index() {
    let folder = TempDir::new().unwrap();
    let set = create(StoreKind::Lsm, folder.path(), SHARDS, &manual());
    let (producer, mut dice) = (Producer::start(VBUCKETS), Dice::new(11));
    write(&producer, &mut dice, 3000);
    let config = DcpConfig { out_of_order: true, batch_bytes: 4096, ..producer.config() };
    for life in 1..=4 {
        producer.behave(|behaviour| behaviour.stalled = true);
        let path = Path::start(&set, &config, 302, life);
        eventually("all streams are asked for", || producer.state.lock().requests.len() as u64 == life * 8);
        producer.behave(|behaviour| (behaviour.stalled, behaviour.cut_after) = (false, Some(3000)));
        path.connection.ended().wait(&watchdog()).unwrap();
        path.close();
    }
    let path = Path::start(&set, &config, 302, 9);
    eventually("everything is there", || has_reached(&set, &producer));
    assert_eq!(indexed(&set, 1), expected(&producer));
    finish(path, set, producer);
}

#[test]
fn memory_is_bounded_while_a_shard_is_locked_and_the_stream_goes_on_after_the_unlock() {
    let folder = TempDir::new().unwrap();
    let set = create(StoreKind::Lsm, folder.path(), SHARDS, &manual());
    let producer = Producer::start(VBUCKETS);
    let value = format!("{{\"a\":\"{}\"}}", "x".repeat(2000));
    for number in 0..6000_u16 {
        producer.put(number % VBUCKETS, &format!("d{number}"), &value);
    }
    let config = DcpConfig { window_bytes: 500_000, ..producer.config() };
    producer.behave(|behaviour| behaviour.stalled = true);
    let path = Path::start(&set, &config, 303, 1);
    let locks = lock_all(set.shards(), "a test", &watchdog()).unwrap();
    producer.behave(|behaviour| behaviour.stalled = false);
    eventually("the window is full", || producer.seen().is_full);
    producer.noop();
    eventually("the noop is answered", || producer.seen().noops_answered == 1);
    assert!(path.budget.used_bytes() <= 1 << 20);
    assert!(path.connection.stats().held_bytes_max() < 2_000_000);
    assert!(!has_reached(&set, &producer));
    drop(locks);
    eventually("everything is there", || has_reached(&set, &producer));
    assert_eq!(indexed(&set, 1).len(), 6000);
    finish(path, set, producer);
}

#[test]
fn a_path_that_has_ended_ends_its_connection() {
    let folder = TempDir::new().unwrap();
    let set = create(StoreKind::Lsm, folder.path(), SHARDS, &manual());
    let producer = Producer::start(VBUCKETS);
    let mut path = Path::start(&set, &producer.config(), 304, 1);
    path.kvdata.stop_scatter();
    path.upstream = None;
    // It is seen by the next batch that is handed on.
    let mut dice = Dice::new(3);
    eventually("it ends", || {
        write(&producer, &mut dice, 1);
        path.connection.ended().is_given()
    });
    assert!(matches!(path.connection.join(&watchdog()), Ok(Some(DcpEnd::ReceiverGone))));
    finish(path, set, producer);
}
