//! What goes wrong with a connection.

use std::io;
use std::net::SocketAddr;

use super::answer::AnswerError;
use super::frame::FrameError;
use super::message::MessageError;
use super::opcode::{Feature, Opcode, Status};
use crate::event::VbId;
use crate::thread::{Failure, FailureKind, Panicked, Stopped};

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a connection to {address}: {step}: {cause}")]
pub struct OpenError {
    /// The node.
    pub address: SocketAddr,
    /// What was being done: to connect, to start threads, or the request that it was about.
    pub step: String,
    /// Why it failed.
    #[source]
    pub cause: OpenCause,
}

/// Why a step of opening a connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenCause {
    /// The system or TLS refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The caller's limit ended.
    #[error("{0}")]
    Stopped(#[from] Stopped),
    /// The server said nothing for as long as a step may take.
    #[error("the server gave no answer in time; is this the port of the KV service?")]
    Silent,
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server sent what is no frame.
    #[error("{0}; is this the port of the KV service?")]
    Frame(#[from] FrameError),
    /// The server answered something else than what was asked.
    #[error("the server answered {opcode} with opaque {opaque}, which was not asked for")]
    OtherAnswer {
        /// What it answered.
        opcode: Opcode,
        /// Opaque of that.
        opaque: u32,
    },
    /// The server refused.
    #[error("the server refused with status {status}{said}")]
    Refused {
        /// Its status.
        status: Status,
        /// What it said.
        said: String,
    },
    /// The answer is not what such an answer is.
    #[error("{0}")]
    Answer(#[from] AnswerError),
    /// The server agreed on what it was not asked for.
    #[error("the server agreed on feature {0}, which nobody asked for")]
    UnaskedFeature(Feature),
    /// The server cannot do what this needs.
    #[error("the server does not know feature {0}, which is needed; Couchbase Server has it since 7.0")]
    MissingFeature(Feature),
    /// There is no way to log in that is safe here. A program may allow it all the same, by
    /// [`Login::plain_without_tls`](super::Login::plain_without_tls).
    #[error(
        "the server offers {0} to log in with, and a password is not sent without TLS; follow it over TLS, as couchbases://"
    )]
    NoMechanism(String),
    /// The log-in came to nothing.
    #[error("the log-in failed: {0}")]
    Login(String),
}

impl Failure for OpenCause {
    fn kind(&self) -> FailureKind {
        let is_temporary = match self {
            Self::Stopped(why) => return why.kind(),
            // A server that does not prove who it is will not do so later.
            Self::Io(error) => {
                error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()).is_none()
            }
            Self::Silent | Self::Closed => true,
            Self::Refused { status, .. } => matches!(*status, Status::TMPFAIL | Status::ENOMEM),
            _ => false,
        };
        if is_temporary { FailureKind::Temporary } else { FailureKind::Lasting }
    }
}

impl Failure for OpenError {
    fn kind(&self) -> FailureKind {
        self.cause.kind()
    }
}

/// Why a connection ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing was heard for twice the interval of noops.
    #[error("nothing was heard from the server for {0} seconds")]
    Silent(u64),
    /// A request was not answered for twice the interval of noops, whatever else was heard.
    #[error("{opcode} was not answered for {seconds} seconds")]
    Unanswered {
        /// The request.
        opcode: Opcode,
        /// How long it waits.
        seconds: u64,
    },
    /// The system or TLS refused a read.
    #[error("cannot read from the server: {0}")]
    Read(io::Error),
    /// The system or TLS refused a write.
    #[error("cannot write to the server: {0}")]
    Write(io::Error),
    /// The server takes no acknowledgement, and would send nothing more once its window is full.
    #[error("the server refused the acknowledgement of what it sent: {status}{said}")]
    Unacknowledged {
        /// What it answered.
        status: Status,
        /// What it said about that.
        said: String,
    },
    /// The server goes on with a stream that nobody wants any more. Without the connection it ends.
    #[error("the server did not close the stream of vbucket {vb}: {status}{said}")]
    NotClosed {
        /// The vbucket.
        vb: VbId,
        /// What it answered.
        status: Status,
        /// What it said about that.
        said: String,
    },
    /// The server does not say how far its vbuckets are on disk.
    #[error("cannot wait for changes to be on disk: {0}")]
    Persisted(DcpRequestError),
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came is a frame that nothing of it may be.
    #[error("the server sent {0} with a magic that only clients of other kinds know")]
    Magic(Opcode),
    /// What came is no message.
    #[error("vbucket {vb}: {error}")]
    Message {
        /// The vbucket that its header names.
        vb: VbId,
        /// What is wrong with it.
        error: MessageError,
    },
    /// The reader has a defect.
    #[error(transparent)]
    Panicked(Panicked),
    /// What came is no answer.
    #[error("cannot read the answer to {opcode}: {error}")]
    Answer {
        /// What it answers.
        opcode: Opcode,
        /// What is wrong with it.
        error: AnswerError,
    },
}

impl ConnectionError {
    /// Whether the bytes that came made no sense, as they may do again wherever they come.
    pub fn is_malformed(&self) -> bool {
        match self {
            Self::Frame(_)
            | Self::Magic(_)
            | Self::Message { .. }
            | Self::Panicked(_)
            | Self::Answer { .. } => true,
            Self::Closed
            | Self::Silent(_)
            | Self::Unanswered { .. }
            | Self::Read(_)
            | Self::Write(_)
            | Self::Unacknowledged { .. }
            | Self::NotClosed { .. }
            | Self::Persisted(_) => false,
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum DcpEnd {
    /// It was told to.
    Stopped,
    /// Nobody takes its batches any more.
    ReceiverGone,
    /// It failed. What came before was sent, with an end for each of its streams.
    Failed(ConnectionError),
}

/// Why a request on a connection came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DcpRequestError {
    /// The connection has ended.
    #[error("cannot ask for {0}: the connection has ended; open another one")]
    Closed(Opcode),
    /// The stream was asked for already, and has not ended.
    #[error("cannot ask for a stream of vbucket {0}: this connection has one; close it first")]
    HasStream(VbId),
    /// There is no such vbucket.
    #[error("cannot ask for a stream of vbucket {vb}: the bucket has {vbuckets}")]
    NoVbucket {
        /// What was asked for.
        vb: VbId,
        /// The bucket's number of vbuckets.
        vbuckets: u16,
    },
    /// The system or TLS refused. The connection ends.
    #[error("cannot ask for {opcode}: {source}")]
    Write {
        /// What was asked for.
        opcode: Opcode,
        /// What it said.
        source: io::Error,
    },
    /// The caller's limit ended. A late answer is dropped.
    #[error("{opcode} was not answered: {why}")]
    Stopped {
        /// What was asked for.
        opcode: Opcode,
        /// Which part of the limit.
        why: Stopped,
    },
    /// The server refused.
    #[error("the server refused {opcode} with status {status}{said}")]
    Refused {
        /// What was asked for.
        opcode: Opcode,
        /// Its status.
        status: Status,
        /// What it said.
        said: String,
    },
    /// The answer is not what such an answer is.
    #[error("cannot read the answer to {opcode}: {error}")]
    Answer {
        /// What was asked for.
        opcode: Opcode,
        /// What is wrong with it.
        error: AnswerError,
    },
    /// The request does not fit a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Failure for DcpRequestError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Stopped { why, .. } => why.kind(),
            Self::Closed(_)
            | Self::Write { .. }
            | Self::Refused { status: Status::TMPFAIL | Status::ENOMEM, .. } => FailureKind::Temporary,
            _ => FailureKind::Lasting,
        }
    }
}
