//! Where batches of events come from: files, which a [`Replay`] reads, and nodes of a cluster ([`dcp`]).
//!
//! A source reads on a thread of its own and sends [`EventBatch`](crate::event::EventBatch)es into a bounded
//! channel. It stops reading when its byte budget is used up, so that memory is bounded from end to end, and it
//! ends when it is told to, when nobody takes its batches any more, or when it has delivered everything.

pub mod dcp;
mod line;
pub mod replay;

pub use line::LineProblem;
pub use replay::{
    Input, Replay, ReplayConfig, ReplayEnd, ReplayError, ReplayFormat, ReplayOutcome, ReplayProgress,
};
