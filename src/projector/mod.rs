//! The data path: from batches of events to batches of index entries.
//!
//! ```text
//!  source ──EventBatch──> KvData                    VbucketWorker (one of several)
//!                         run_scatter ──events────> run         ──WriteBatch──> Endpoint ──> Shard
//!  Feed  <─begin,end,fin─ gen_server  ──engines───> gen_server
//! ```
//!
//! [`Feed`] keeps the books of one topic: which streams were asked for, which are active, and why a data path
//! ended. A [`KvData`] is one data path, which all nodes feed; it and each of its workers have a control thread
//! (`gen_server`) and a data thread. Control never waits for data, and data never waits for a lock. What went wrong in
//! the system that this re-imagines, and what became of each of its hazards, stands in [`hazards`].
//!
//! | thread | name | ends when |
//! |---|---|---|
//! | `gen_server` of a `KvData` | `kv-ctl-N` | it is closed, or its data thread or a worker has ended |
//! | `run_scatter` | `kv-data-N` | its source is gone, a hand-off fails, or `gen_server` has ended |
//! | `gen_server` of a worker | `vbc-N-W` | the `KvData` closes it, or its data thread has ended |
//! | `run` of a worker | `vbd-N-W` | its `gen_server` ends it, nothing can come any more, or an apply failed |
//!
//! `N` is the number of the data path, `W` that of the worker.
//!
//! Invariants:
//! * A signal is given by dropping its only holder, so it is given once on every way out, also by a panic.
//! * Every stream that began gets exactly one end, and every `KvData` posts exactly one fin, whatever ends first.
//! * Everything that crosses from one generation to the next carries its generation.
//! * No thread here holds a mutex over a channel operation or a call into a shard.

mod books;
mod endpoint;
mod engine;
mod feed;
pub mod hazards;
mod kvdata;
mod worker;

pub use books::{Books, StreamCounts, StreamState};
pub use endpoint::{Endpoint, EndpointRefused, ShardEndpoint};
pub use engine::{Engine, Evaluator};
pub use feed::{Feed, FeedError, FeedLink, Keyspace};
pub use kvdata::{EndReason, KvData, KvDataConfig, KvStats, RequestError, StillRunning};
pub use worker::{Tuning, WorkerStats};
