//! Secondary indexes that follow a document bucket, and sleep for buckets that went idle.
//!
//! `dormouse` reads a bucket's changes, keeps index *shards* up to date with them, and puts an idle bucket to
//! sleep: its shards are locked, copied into an archive and unlocked, whether that succeeded or not. Later the
//! bucket is woken up from there. It is linked into services that run threads and no async runtime, so calls
//! block, long ones take an [`Until`](thread::Until), and nothing starts that the table of threads below does
//! not name.
//!
//! A host begins at [`bucket::DataDir`]; the README has an example. This page is the map of the house.
//!
//! # Rooms
//!
//! | room | what for | look here first |
//! |---|---|---|
//! | `cli` | the command line: parses, calls the library, prints; it belongs to the binary | `main.rs` |
//! | [`bucket`] | the product's loop: make, follow, scan, put to sleep, wake up, close | [`bucket::Bucket`] |
//! | [`pause`] | archives: plan, upload, manifest, download, verify | [`pause::Manifest`] |
//! | [`projector`] | the data path: from batches of events to write batches | [`projector::KvData`] |
//! | [`source`] | where changes come from: files of JSON lines, a cluster and connections to it | [`source::Replay`], [`source::dcp::Cluster`] |
//! | [`index`] | definitions, key order, evaluation, ranges, scans | [`index::IndexDefinition`] |
//! | [`shard`] | folders of entries and positions: the unit of locking and archiving | [`shard::Shard`] |
//! | [`objstore`] | object stores, and the one content hash | [`objstore::ObjectStore`] |
//! | [`event`] | what travels: events, their batches, the byte budget | [`event::EventBatch`] |
//! | [`timestamp`] | positions in the histories of vbuckets | [`timestamp::TsVbuuid`] |
//! | [`durable`] | files that outlive a crash: there whole or not at all | [`durable::replace`] |
//! | `text` | how ids are written, read and stored | `number_id!`, `stored_as_text!` |
//! | [`thread`] | named, joined threads, signals, deadlines, and what ended a call | [`thread::Until`], [`thread::Failure`] |
//!
//! Imports run one way: `cli` → `bucket` → `pause`, `projector`, `source` → `index` → `shard`, and `objstore` beside
//! them, → `event`, `timestamp`, `durable`, `thread`, `text`. `projector` and `pause` do not know each other: both know
//! `shard`. `objstore` knows nothing of shards, and `shard` nothing of what its entries mean. A test reads the imports
//! and holds them to this.
//!
//! # The walk of a change
//!
//! 1. [`bucket::Bucket::ingest`], for files, or [`bucket::Bucket::follow`], for a cluster, takes the bucket's turn,
//!    builds a data path and starts what feeds it. Both are one kind of intake: they run on the host's thread, and take
//!    everything down and commit, however they end.
//! 2. [`source`] reads a line of a file and gives the document's vbucket its next seqno, or it reads a frame from a
//!    node's socket, which has one; it adds the change to a batch. The batch takes its bytes from the
//!    [`event::ByteBudget`]; when that is used up, the source stops reading.
//! 3. `run_scatter` of the [`projector`] splits the batch by worker without copying a payload.
//! 4. A worker's data thread parses each document once, asks every engine for its [`index`] keys, and makes a
//!    [`shard::batch::WriteBatch`] for each shard, or several where there are many keys: entries, and how far each
//!    vbucket was followed.
//! 5. The [`shard`] applies it as a whole. An instance skips what is at or below its own position.
//! 6. A recovery point makes entries and positions durable together. What came after it is lost by a crash, and
//!    comes again from the source, because the positions went back with it.
//!
//! # The walk of a request
//!
//! 1. A host, or the bucket for it, asks a [`projector::KvData`] to take an index in
//!    ([`add_engines`](projector::KvData::add_engines)), and waits for the reply within its [`Until`](thread::Until).
//! 2. `gen_server` passes the engines to the control thread of every worker, and goes on serving.
//! 3. A worker's data thread looks at control before each piece of a batch: it takes the engines in between, and answers
//!    with the last seqno of each vbucket that they have not seen.
//! 4. `gen_server` takes the answers up as they come, and replies once all are there. Data was never waited for.
//!
//! # The walk of a pause
//!
//! 1. [`bucket::Bucket::pause`] takes the bucket's entry in the list of tasks, checks state, indexes, room and archive,
//!    and records that it begins. Each step after that is recorded, too, before it is made, by one function
//!    ([`pause::BucketState::after`]).
//! 2. [`pause::plan_upload`] leaves out what an earlier pause has in the archive of the files of pinned recovery
//!    points; [`pause::upload`] copies the rest, hashed and perhaps compressed on the way, under keys that were never
//!    used before. In rounds, while changes come in, until there is little left.
//! 3. All shards are locked, in ascending order, all or none. Each waits for the write in flight, makes a recovery
//!    point and stands still; reads go on. What is new since is copied.
//! 4. The manifest is published, last: from here the pause exists. Where nobody knows whether it does, the bucket is in
//!    doubt, and its shards stay closed for writes until the archive was asked.
//! 5. The bucket's metadata says `paused`, durably: from here writes are refused, also after a restart.
//! 6. The guards drop. On every failure before step 4 they drop too, and the bucket is online as it was.
//! 7. With `evict`, what was published is read back and checked, and only then the local data goes.
//!
//! [`bucket::DataDir::resume`] walks back: read the manifest, fetch and check every file in a staging folder, which
//! keeps what is right in it across failures, and put the bucket in its place with one rename.
//! [`bucket::DataDir::recover`] leads on or back what a crash interrupted.
//!
//! # Invariants
//!
//! * Entries and positions become durable in one step: after any crash each change counts once.
//! * Nothing on disk changes in a locked shard, and dropping its guard unlocks it, also while a panic unwinds.
//! * Data never waits for a lock in a call: a refused batch comes back with a signal to wait for. Control never
//!   waits for data.
//! * A signal is given by dropping its only holder, so it is given exactly once. No wait is without a signal or
//!   a deadline that somebody else can use to end it.
//! * No object is overwritten, no manifest means no pause, and nothing is deleted that was not proved to be
//!   elsewhere.
//! * Memory between source and shard is bounded: by the byte budget, and by the length of every queue.
//! * A panic on one of our threads closes its instance with a typed error and never takes the host down.
//!
//! # Threads
//!
//! | name | what it does | when it ends |
//! |---|---|---|
//! | `dm-flush` | makes recovery points of a bucket's shards | the bucket is closed |
//! | `dm-compact` | merges tables, removes what a lock had kept | the bucket is closed |
//! | `dm-load-N` | reads files of a shard that is in memory, beside the caller | the call that asked for them ends |
//! | `dm-source` | reads the inputs of an ingest | they are read, or the ingest ends |
//! | `dm-follow-N` | asks a cluster for its map, opens a connection, writes requests to it, or rolls a shard back, once | that is done, or following ends |
//! | `dcp-read-N` | reads a connection to a node of a cluster, answers its noops | the connection ends |
//! | `dcp-send-N` | hands on what was read, and acknowledges it | the connection ends |
//! | `kv-ctl-N` | control of a data path: serves requests, ends everything in order | the ingest ends |
//! | `kv-data-N` | scatters batches to workers | its control ends it, or the source is gone |
//! | `vbc-N-W` | control of a worker: passes engines on, joins its data thread | the data path closes |
//! | `vbd-N-W` | evaluates documents and writes to its shards | its control ends it, or a write failed |
//! | `dm-store-N` | carries files to and from an object store | the files are carried, or one fails |
//! | `dm-s3-watch` | ends calls on an `s3://` store whose limit has ended | the store is dropped |
//! | `dm-s3-names` | resolves the names of servers for an `s3://` store | the store is dropped |
//! | `dm-map` | asks for a cluster's map for [`source::dcp::Cluster::fetch_map`] | that is done |
//! | `dm-signals` | waits for interrupts; started by the binary alone | the program ends |
//!
//! An open bucket has two threads; a running ingest of files has three more, and two for each worker; one that follows
//! a cluster has two more, two for each worker, and two for each connection. `close` and the end
//! of an ingest join them within a deadline, and name those that still run. Scan runs on the caller's thread, and so
//! do pause and resume, but for the files: threads of their own carry those, and have ended when they return.
//!
//! # What the host is owed
//!
//! * **Instances share nothing.** What one [`bucket::DataDir`] or [`bucket::Bucket`] does, or fails at, is no matter of
//!   another one in the process. There are no globals.
//! * **An end in time.** [`bucket::Bucket::close`] ends what other threads of the host do with the bucket, returns at
//!   its deadline whatever hangs, names what still runs, and may be called again. Calls after it are refused with
//!   [`bucket::Closed`]. An ingest, or following, that was stopped takes up to half a minute more for what it started;
//!   what does not end in that time either is the bucket's, and `close` waits for it. Dropping a bucket without closing
//!   it waits for nothing: what was not durable comes again from its source.
//! * **A reason.** Each error says in a line what was being done, to what, why it failed and what helps. Those of calls
//!   with a limit are a [`thread::Failure`]: each tells in one way whether the limit ended the call, by its token or at
//!   its deadline, whether the same call may succeed later, or whether somebody has to mend something first.
//! * **Panics.** One on a thread of ours ends what that thread worked for, with an error that says so. No panic hook is
//!   set. A panic in code of the host that runs on the host's own thread, such as a callback of progress, unwinds
//!   through the call, which ends the threads that it started, within half a minute, and gives its locks back.
//! * **Signals.** No handler is set and no disposition changed, that of `SIGPIPE` included: sockets are written to
//!   without it. A thread of ours has the signal mask of the thread that made the call which starts it. So a host that
//!   wants its handlers on its own threads alone, or waits for signals in a call, blocks them before it opens a bucket
//!   and on every thread that ingests, follows, pauses or resumes; otherwise a handler may run on a thread of ours,
//!   where calls that it interrupts are made again.
//! * **Forks.** A data folder belongs to the process that opened it. In a fork of that process every call that gives a
//!   result is refused with [`bucket::Forked`], or of a shard with [`shard::Forked`], and dropping what the fork has
//!   copies of leaves threads, locks, files and sockets alone. So fork first and open afterwards; starting another
//!   program is no such fork. Looks without a result ([`bucket::Bucket::status`], [`bucket::DataDir::tasks`] and the
//!   like), holds of merges, and locks and scans that are open are not for a fork; nor may a callback that forks return
//!   there.
//! * **Async hosts.** Every call blocks its thread, for seconds at least in a pause: on a runtime's worker thread that
//!   stalls the runtime's other tasks. Such a host calls from a thread that may block (`spawn_blocking` in tokio,
//!   `unblock` in smol) and cancels by the [`Until`](thread::Until) that it handed in, as dropping a future that waits
//!   for such a thread ends nothing. No runtime is looked for, entered or started here, so a call from a worker thread
//!   works, and does not panic.
//! * **What is read.** Files and folders that the host named; no environment variable. Beyond that: the system's clocks
//!   (times in manifests, holders of locks, signatures; deadlines), its random numbers (identities), its resolver of
//!   names (which has files of its own), and the number of processors that the process may use (for `dm-load-N`).
//!
//! # Deliberately absent
//!
//! An async runtime; globals; environment variables; signal handlers, output and process exits in the library;
//! `unsafe`; a logger of its own (the host injects one, and the default discards); stored documents (an index
//! holds keys and ids); threads without a name; waits without an end.

pub mod bucket;
pub mod durable;
pub mod event;
pub mod index;
pub mod objstore;
pub mod pause;
pub mod projector;
pub mod shard;
pub mod source;
mod text;
pub mod thread;
pub mod timestamp;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
