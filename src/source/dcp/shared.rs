//! What the threads of a connection share, and the calls that are made on it.
//!
//! Nothing here waits for anything but a write, which has the socket's deadline.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slog::{Logger, warn};

use super::error::{ConnectionError, DcpRequestError};
use super::opcode::Opcode;
use super::queue::Queue;
use super::request::Request;
use super::socket::Socket;
use super::stats::{DcpStats, add};
use super::streams::Book;
use crate::event::{Seqno, VbId};
use crate::thread::Cancel;

/// See the module.
pub(super) struct Shared {
    pub(super) socket: Arc<Socket>,
    pub(super) book: Book,
    pub(super) queue: Queue,
    pub(super) stats: Arc<DcpStats>,
    /// Given when nothing more is to be done, also not what has been read.
    pub(super) stop: Cancel,
    /// What failed first that was not the reader's.
    pub(super) failure: Mutex<Option<ConnectionError>>,
    /// How long nothing may be heard.
    pub(super) silence: Duration,
}

impl Shared {
    /// A write ends at the socket's deadline. One that fails ends the connection, which ends what was asked for.
    pub(super) fn send(
        &self,
        opcode: Opcode,
        request: &Request<'_>,
        opaque: u32,
    ) -> Result<(), DcpRequestError> {
        let mut bytes = Vec::new();
        request.encode(opaque, &mut bytes)?;
        self.socket.send(&bytes).map_err(|source| {
            self.socket.shut_down();
            DcpRequestError::Write { opcode, source }
        })
    }

    pub(super) fn close_stream(&self, vb: VbId) -> Result<(), DcpRequestError> {
        let opaque = self.book.close_stream(vb)?;
        self.send(Opcode::DCP_CLOSE_STREAM, &Request::CloseStream(vb), opaque)
    }

    /// Ends the connection. What was read before is handed on all the same: the reader sees the end, and tells why.
    pub(super) fn fail(&self, error: ConnectionError) {
        self.failure.lock().get_or_insert(error);
        self.socket.shut_down();
    }

    /// A value could not be taken apart. Its old entry goes, and the stream goes on: the same bytes would come again on
    /// any connection.
    pub(super) fn note_bad_value(&self, vb: VbId, seqno: Seqno, logger: &Logger) {
        add(&self.stats.bad_values, 1);
        warn!(logger, "a value cannot be read and counts as empty"; "vbucket" => vb.0, "seqno" => seqno.0);
    }
}
