//! A bucket of one node or several that speak the server's side of DCP over TCP, in this process.
//!
//! It behaves as the recorded sessions show, and is stricter: whatever a consumer does that a real server would put
//! up with, it notes as a fault, and [`Producer::check`] fails on them. Its frames are made from numbers here, not by
//! the library that reads them.

mod asked;
mod bucket;
mod kv;
mod scram;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse::event::{VbId, VbUuid};
use dormouse::source::dcp::{Cluster, DcpConfig, Login, Network, NodeAddress, Tls};
use dormouse::thread::{self, Cancel, Thread};
use parking_lot::Mutex;
use serde_json::json;

use bucket::Vb;
pub(crate) use bucket::What;
pub(crate) use kv::COLLECTION;

use super::capture::Capture;
use super::watchdog;

pub(crate) const USER: &str = "rider";
pub(crate) const PASSWORD: &str = "pencil";
pub(crate) const BUCKET_NAME: &str = "travel";
/// A collection beside the default one.
pub(crate) const FILTERED: u32 = 8;

/// What it does to its consumers.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fault or a habit by itself, and any may go with any"
)]
pub(crate) struct Behaviour {
    /// Answers of these opcodes are replaced: status and value, or silence.
    pub(crate) answers: BTreeMap<u8, Option<(u16, Vec<u8>)>>,
    /// Ways to log in.
    pub(crate) mechanisms: &'static str,
    /// Bytes are written in pieces of this many.
    pub(crate) pieces: Option<usize>,
    /// A connection is cut after it has written so many bytes since this was set.
    pub(crate) cut_after: Option<usize>,
    /// Nothing is sent on streams.
    pub(crate) stalled: bool,
    /// The window is not looked at.
    pub(crate) floods: bool,
    /// Values are compressed.
    pub(crate) compresses: bool,
    /// What is written stays in memory: a vbucket's disk goes on by [`Producer::persist`] alone.
    pub(crate) keeps_in_memory: bool,
    /// Markers are those of version 2.0.
    pub(crate) markers_v2: bool,
    /// What streams send carries the number of its stream, as where consumers ask for that.
    pub(crate) numbers_streams: bool,
    /// Nothing is sent on the streams of these vbuckets that were asked for from zero.
    pub(crate) stalled_from_zero: BTreeSet<u16>,
    /// Streams that were asked for from zero stay so many changes behind.
    pub(crate) lags_from_zero: u64,
    /// Nothing is sent by these nodes.
    pub(crate) stalled_nodes: BTreeSet<usize>,
    /// These nodes hang: they read nothing and write nothing, and their connections stay.
    pub(crate) hung_nodes: BTreeSet<usize>,
    /// A connection sends so many bytes a second at most.
    pub(crate) bytes_a_second: Option<usize>,
    /// Nodes call themselves what nobody outside knows, and have other addresses for those who are outside.
    pub(crate) is_hidden: bool,
    /// Nodes that call themselves by a name.
    pub(crate) node_names: BTreeMap<usize, &'static str>,
}

impl Behaviour {
    /// Whether a stream of a vbucket that began at `start` sends nothing.
    fn stalls(&self, vb: u16, start: u64, node: usize) -> bool {
        let from_zero = start == 0 && self.stalled_from_zero.contains(&vb);
        from_zero || self.stalled || self.stalled_nodes.contains(&node)
    }

    /// What is sent is sent at once, and as a whole.
    pub(crate) fn be_quick(&mut self) {
        (self.pieces, self.bytes_a_second) = (None, None);
    }
}

/// What is known of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) controls: BTreeMap<String, String>,
    /// Bytes that count on the window, and those that were acknowledged.
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) acks: Vec<u64>,
    pub(crate) noops_sent: u64,
    pub(crate) noops_answered: u64,
    /// The window is full.
    pub(crate) is_full: bool,
    pub(crate) is_open: bool,
}

/// What a node knows.
struct View {
    vbs: Vec<Vb>,
    owners: Vec<Option<usize>>,
    revision: u64,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) vbs: Vec<Vb>,
    /// The nodes, and those that are down.
    nodes: Vec<SocketAddr>,
    pub(crate) down: BTreeSet<usize>,
    /// The node of each vbucket.
    pub(crate) owners: Vec<Option<usize>>,
    revision: u64,
    /// What nodes know that are cut off from the others.
    cut_off: BTreeMap<usize, View>,
    pub(crate) behaviour: Behaviour,
    /// What consumers did wrong.
    pub(crate) faults: Vec<String>,
    pub(crate) connections: Vec<Seen>,
    pub(crate) names: BTreeSet<String>,
    /// Bytes for connections, as they are.
    injected: BTreeMap<usize, Vec<u8>>,
    noops: u64,
    /// Branches that were begun.
    branches: u64,
    /// Starts that streams were asked for from.
    pub(crate) requests: Vec<(VbId, u64)>,
    /// Vbuckets whose streams were closed by the consumer.
    pub(crate) closes: Vec<u16>,
    /// When the stream of a vbucket was closed by the consumer that was not asked for since, and how long others were
    /// closed.
    closed: BTreeMap<u16, Instant>,
    pub(crate) stood_still: Vec<(u16, Duration)>,
    /// Stream requests that were answered by a rollback.
    pub(crate) rollbacks: u64,
    /// Times that somebody asked how far a vbucket is on disk.
    pub(crate) observes: u64,
    /// Streams of vbuckets that are to end, each with its reason.
    ends: Vec<(u16, u32)>,
    /// Collections that were dropped.
    dropped: BTreeSet<u32>,
    /// Nodes that have heard of no collection but the default one.
    pub(crate) behind: BTreeSet<usize>,
    /// Stream requests that named a manifest that their node had not heard of.
    pub(crate) manifests_ahead: u64,
    /// What crossed its sockets, where somebody wants to know.
    pub(crate) capture: Option<Capture>,
}

impl State {
    /// The vbuckets as a node has them.
    fn vbs_at(&self, node: usize) -> &[Vb] {
        self.cut_off.get(&node).map_or(&self.vbs, |view| &view.vbs)
    }

    /// The cluster's configuration, as a node tells it.
    fn map_at(&self, node: usize) -> String {
        let (owners, revision) = match self.cut_off.get(&node) {
            Some(view) => (&view.owners, view.revision),
            None => (&self.owners, self.revision),
        };
        // Whatever name the consumer knows this machine by.
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("$HOST:{}", node.port())).collect();
        let owners: Vec<[i32; 1]> =
            owners.iter().map(|owner| [owner.map_or(-1, |node| i32::try_from(node).unwrap())]).collect();
        let ports = self.nodes.iter().enumerate().map(|(number, node)| {
            let ports = json!({ "kv": node.port(), "kvSSL": node.port() });
            if self.behaviour.is_hidden {
                let outside = json!({ "external": { "hostname": node.ip(), "ports": ports } });
                let services = json!({ "kv": 11210, "kvSSL": 11207 });
                json!({ "hostname": "inside.invalid", "services": services, "alternateAddresses": outside })
            } else if let Some(name) = self.behaviour.node_names.get(&number) {
                json!({ "hostname": name, "services": ports })
            } else {
                json!({ "services": ports })
            }
        });
        json!({
            "rev": revision,
            "revEpoch": 1,
            "name": BUCKET_NAME,
            "nodesExt": ports.collect::<Vec<_>>(),
            "vBucketServerMap": { "serverList": nodes, "vBucketMap": owners },
        })
        .to_string()
    }

    /// Number and collections of the manifest that a node knows.
    fn manifest_at(&self, node: usize) -> (u64, Vec<u32>) {
        if self.behind.contains(&node) {
            return (1, vec![0]);
        }
        let all = [0, FILTERED, COLLECTION.1].into_iter().filter(|id| !self.dropped.contains(id));
        (if self.dropped.is_empty() { 2 } else { 3 }, all.collect())
    }

    /// The same, as a node tells it.
    fn manifest_text_at(&self, node: usize) -> String {
        let (uid, collections) = self.manifest_at(node);
        let collection = |id: &u32| json!({ "name": format!("c{id}"), "uid": format!("{id:x}") });
        let collections: Vec<_> = collections.iter().map(collection).collect();
        let scope = json!({ "name": "_default", "uid": "0", "collections": collections });
        json!({ "uid": format!("{uid:x}"), "scopes": [scope] }).to_string()
    }

    fn is_at(&self, vb: u16, node: usize) -> bool {
        let vb = usize::from(vb);
        let owners = self.cut_off.get(&node).map_or(&self.owners, |view| &view.owners);
        owners.get(vb) == Some(&Some(node)) && self.vbs_at(node)[vb].is_active
    }
}

pub(crate) struct Producer {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    stop: Cancel,
    threads: Vec<Thread<()>>,
}

/// The cluster that a producer at this address is a node of.
pub(crate) fn cluster_at(address: SocketAddr, vbuckets: u16) -> Cluster {
    let login = Login { user: USER.to_owned(), password: PASSWORD.to_owned(), plain_without_tls: false };
    let mut connection = DcpConfig::new(address, BUCKET_NAME, vbuckets, login);
    connection.step_timeout = Duration::from_secs(20);
    let seed = NodeAddress { host: address.ip().to_string(), port: address.port() };
    Cluster { seeds: vec![seed], network: Network::Auto, connection }
}

/// A certificate authority and a server's key, both made for one test.
pub(crate) struct Certificate {
    pub(crate) authority_pem: String,
    config: Arc<rustls::ServerConfig>,
}

impl Certificate {
    pub(crate) fn new(host: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        Self { authority_pem: made.cert.pem(), config: Arc::new(config) }
    }
}

impl Producer {
    pub(crate) fn start(vbuckets: u16) -> Self {
        Self::start_with(vbuckets, None)
    }

    pub(crate) fn start_with(vbuckets: u16, certificate: Option<&Certificate>) -> Self {
        Self::start_nodes(vbuckets, 1, certificate)
    }

    /// Vbuckets are spread over the nodes in turn.
    pub(crate) fn start_nodes(vbuckets: u16, nodes: usize, certificate: Option<&Certificate>) -> Self {
        let behaviour =
            Behaviour { mechanisms: "SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN", ..Behaviour::default() };
        let vbs = (0..vbuckets).map(|vb| Vb::new(0xa000 + u64::from(vb))).collect();
        let listeners: Vec<TcpListener> =
            (0..nodes).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let owners = (0..usize::from(vbuckets)).map(|vb| Some(vb % nodes)).collect();
        let (address, revision) = (addresses[0], 1);
        let state = State { vbs, behaviour, nodes: addresses, owners, revision, ..State::default() };
        let (state, stop) = (Arc::new(Mutex::new(state)), Cancel::new());
        let serve = |(node, listener): (usize, TcpListener)| {
            listener.set_nonblocking(true).unwrap();
            let (shared, stopped) = (Arc::clone(&state), stop.clone());
            let tls = certificate.map(|certificate| Arc::clone(&certificate.config));
            thread::spawn("test-producer", move || {
                serve::accept(&listener, &shared, tls.as_ref(), node, &stopped);
            })
            .unwrap()
        };
        let threads = listeners.into_iter().enumerate().map(serve).collect();
        Self { address, state, stop, threads }
    }

    /// Opens a port for clients that write documents.
    pub(crate) fn serve_clients(&mut self) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, stop) = (Arc::clone(&self.state), self.stop.clone());
        let accept = move || kv::accept(&listener, &state, &stop);
        self.threads.push(thread::spawn("test-clients", accept).unwrap());
        port
    }

    /// A vbucket is on another node from now on, or on none.
    pub(crate) fn move_vb(&self, vb: u16, node: Option<usize>) {
        let mut state = self.state.lock();
        state.owners[usize::from(vb)] = node;
        state.revision += 1;
    }

    /// A node is gone, and answers nobody; or is there again.
    pub(crate) fn set_down(&self, node: usize, is_down: bool) {
        let mut state = self.state.lock();
        if is_down {
            state.down.insert(node);
        } else {
            state.down.remove(&node);
        }
    }

    /// A node is cut off from the others, not from its consumers, and knows nothing of it: from now on it has and tells
    /// what it has and tells now.
    pub(crate) fn cut_off(&self, node: usize) {
        let mut state = self.state.lock();
        let (vbs, owners, revision) = (state.vbs.clone(), state.owners.clone(), state.revision);
        state.cut_off.insert(node, View { vbs, owners, revision });
    }

    /// A vbucket goes back to a seqno, on a new branch.
    pub(crate) fn fail_over(&self, vb: u16, seqno: u64) {
        let mut state = self.state.lock();
        state.branches += 1;
        let branch = 0xb0_0000 + state.branches;
        state.vbs[usize::from(vb)].fail_over(branch, seqno);
    }

    /// The stream of a vbucket ends.
    pub(crate) fn end_stream(&self, vb: u16, reason: u32) {
        self.state.lock().ends.push((vb, reason));
    }

    /// A vbucket's disk has everything up to a seqno.
    pub(crate) fn persist(&self, vb: u16, seqno: u64) {
        let mut state = self.state.lock();
        let vb = &mut state.vbs[usize::from(vb)];
        vb.persisted = vb.persisted.max(seqno.min(vb.high));
    }

    /// Deletions of a vbucket up to a seqno are forgotten: who does not have them begins anew.
    pub(crate) fn purge(&self, vb: u16, seqno: u64) {
        self.state.lock().vbs[usize::from(vb)].purged = seqno;
    }

    /// A collection is gone in all vbuckets.
    pub(crate) fn drop_collection(&self, collection: u32) {
        let mut state = self.state.lock();
        state.dropped.insert(collection);
        let value = [3_u64.to_be_bytes().to_vec(), [0, collection].map(u32::to_be_bytes).concat()].concat();
        for vb in &mut state.vbs {
            vb.history.retain(|change| change.collection != collection);
            vb.push(collection, "", What::System { event: 1, value: value.clone() });
            vb.persisted = vb.high;
        }
    }

    /// Everything is on disk, and the node starts again: each vbucket is on a new branch that has all of the old one.
    pub(crate) fn restart(&self) {
        for (vb, high) in (0..).zip(self.highs()) {
            self.fail_over(vb, high);
        }
        self.behave(|behaviour| behaviour.cut_after = Some(0));
    }

    /// Forgets changes that later ones of the same document replace, but for the newest so many of each vbucket.
    pub(crate) fn compact(&self, kept: u64) {
        self.state.lock().vbs.iter_mut().for_each(|vb| vb.compact(kept));
    }

    /// What a follower needs to follow it.
    pub(crate) fn cluster(&self) -> Cluster {
        let vbuckets = u16::try_from(self.state.lock().vbs.len()).unwrap();
        cluster_at(self.address, vbuckets)
    }

    /// What a consumer needs to follow it.
    pub(crate) fn config(&self) -> DcpConfig {
        self.cluster().connection
    }

    pub(crate) fn config_with(&self, certificate: &Certificate) -> DcpConfig {
        let tls = Tls::new("localhost", certificate.authority_pem.as_bytes()).unwrap();
        DcpConfig { tls: Some(tls), ..self.config() }
    }

    pub(crate) fn put(&self, vb: u16, key: &str, value: &str) -> u64 {
        self.change(vb, key, What::Put { value: value.as_bytes().to_vec(), datatype: 1 })
    }

    /// So many documents `d0`, `d1` and so on in vbucket 0.
    pub(crate) fn fill(&self, documents: u64, value: &str) {
        for number in 0..documents {
            self.put(0, &format!("d{number}"), value);
        }
    }

    pub(crate) fn delete(&self, vb: u16, key: &str) -> u64 {
        self.change(vb, key, What::Delete)
    }

    pub(crate) fn change(&self, vb: u16, key: &str, what: What) -> u64 {
        self.change_in(0, vb, key, what)
    }

    pub(crate) fn change_in(&self, collection: u32, vb: u16, key: &str, what: What) -> u64 {
        let mut state = self.state.lock();
        let is_kept = !state.behaviour.keeps_in_memory;
        let vb = &mut state.vbs[usize::from(vb)];
        let seqno = vb.push(collection, key, what);
        if is_kept {
            vb.persisted = seqno;
        }
        seqno
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.lock().behaviour);
    }

    /// Answers to an opcode are these from now on.
    pub(crate) fn answer(&self, opcode: u8, status: u16, value: &[u8]) {
        self.behave(|behaviour| drop(behaviour.answers.insert(opcode, Some((status, value.to_vec())))));
    }

    /// The newest connection gets these bytes.
    pub(crate) fn inject(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let newest = state.connections.len() - 1;
        state.injected.entry(newest).or_default().extend_from_slice(bytes);
    }

    /// Whether all such bytes were sent, as far as their connections are there.
    pub(crate) fn has_injected(&self) -> bool {
        let state = self.state.lock();
        state.injected.keys().all(|number| !state.connections[*number].is_open)
    }

    /// The newest connection gets a noop.
    pub(crate) fn noop(&self) {
        self.state.lock().noops += 1;
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state.lock().connections.last().cloned().unwrap_or_default()
    }

    /// Where everything is, for a message.
    pub(crate) fn describe(&self) -> String {
        let state = self.state.lock();
        let open = state.connections.iter().enumerate().filter(|(_, seen)| seen.is_open);
        let open = open.map(|(number, seen)| {
            let Seen { node, sent, acked, is_full, .. } = seen;
            format!("{number} to node {node}: {sent} sent, {acked} acknowledged, full: {is_full}")
        });
        let (owners, open) = (&state.owners, open.collect::<Vec<_>>());
        let State { behaviour, requests, rollbacks, faults, .. } = &*state;
        let requests = &requests[requests.len().saturating_sub(20)..];
        format!(
            "owners {owners:?}, last requests {requests:?}, {rollbacks} rollbacks, faults {faults:?}, {behaviour:?}, \
             connections {open:#?}"
        )
    }

    /// Connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.state.lock().connections.iter().filter(|seen| seen.is_open).count()
    }

    pub(crate) fn high(&self, vb: u16) -> u64 {
        self.state.lock().vbs[usize::from(vb)].high
    }

    pub(crate) fn highs(&self) -> Vec<u64> {
        self.state.lock().vbs.iter().map(|vb| vb.high).collect()
    }

    /// The documents of the default collection, with their values.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        self.state.lock().vbs.iter().flat_map(Vb::contents).collect()
    }

    /// The documents of the default collection.
    pub(crate) fn documents(&self) -> BTreeSet<String> {
        self.state.lock().vbs.iter().flat_map(Vb::documents).collect()
    }

    pub(crate) fn branch(&self, vb: u16) -> VbUuid {
        VbUuid(self.state.lock().vbs[usize::from(vb)].log[0].0)
    }

    /// Ends the producer, and fails where a consumer did something wrong.
    pub(crate) fn check(mut self) {
        self.end();
        let state = self.state.lock();
        assert!(state.faults.is_empty(), "{:#?}", state.faults);
        for seen in &state.connections {
            assert!(seen.acked <= seen.sent, "{} bytes were acknowledged of {}", seen.acked, seen.sent);
        }
    }

    fn end(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            thread.join(&watchdog()).unwrap();
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// A frame of the server: magic, opcode, extras, key, value, and the numbers of the header.
#[derive(Default)]
pub(crate) struct Raw<'a> {
    pub(crate) magic: u8,
    pub(crate) opcode: u8,
    pub(crate) datatype: u8,
    pub(crate) vb_or_status: u16,
    pub(crate) opaque: u32,
    pub(crate) extras: &'a [u8],
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl Raw<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let body = self.extras.len() + self.key.len() + self.value.len();
        let mut bytes = vec![self.magic, self.opcode];
        bytes.extend(u16::try_from(self.key.len()).unwrap().to_be_bytes());
        bytes.extend([u8::try_from(self.extras.len()).unwrap(), self.datatype]);
        bytes.extend(self.vb_or_status.to_be_bytes());
        bytes.extend(u32::try_from(body).unwrap().to_be_bytes());
        bytes.extend(self.opaque.to_be_bytes());
        bytes.extend([0; 8]);
        for part in [self.extras, self.key, self.value] {
            bytes.extend(part);
        }
        bytes
    }
}
