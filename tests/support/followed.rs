//! A connection to a test's producer, and what comes of it.

use std::collections::BTreeMap;

use crossbeam::channel::{Receiver, bounded};
use dormouse::event::{
    ByteBudget, DcpEvent, EventBatch, EventKind, Generation, Seqno, StreamEndReason, StreamStatus, VbId,
};
use dormouse::source::dcp::{
    Connection, ConnectionError, DcpConfig, DcpEnd, DcpOutput, OpenError, StreamRequest,
};
use dormouse::thread::{self, Until};
use dormouse::timestamp::Position;
use slog::{Discard, Logger, o};

use super::watchdog;

pub(crate) const GENERATION: Generation = Generation(9);

pub(crate) struct Followed {
    pub(crate) connection: Connection,
    pub(crate) batches: Receiver<EventBatch>,
    pub(crate) budget: ByteBudget,
}

/// An event with its key and value.
pub(crate) type Told = (u16, u64, String);

/// An event in words.
pub(crate) fn told(event: &DcpEvent, buffer: &[u8]) -> Told {
    let text = |span: dormouse::event::Span| String::from_utf8_lossy(span.of(buffer)).into_owned();
    let what = match event.kind {
        EventKind::StreamReq { status: StreamStatus::Success { vbuuid } } => format!("begin {:x}", vbuuid.0),
        EventKind::StreamReq { status } => status.to_string(),
        EventKind::SnapshotMarker { start, end, each_once } => {
            format!("window {start} {end}{}", if each_once { " once" } else { "" })
        }
        EventKind::OsoSnapshot { edge } => format!("{edge:?}"),
        EventKind::Mutation { key, value, datatype, .. } => {
            format!("{}={} {}", text(key), text(value), datatype.0)
        }
        EventKind::Deletion { key } => format!("-{}", text(key)),
        EventKind::Expiration { key } => format!("~{}", text(key)),
        EventKind::SystemEvent { event } => format!("{event:?}"),
        EventKind::SeqnoAdvanced => "advanced".to_owned(),
        EventKind::StreamEnd { reason } => format!("end {reason:?}"),
    };
    (event.vb.0, event.seqno.0, what)
}

pub(crate) fn try_open(config: &DcpConfig, number: u16, until: &Until) -> Result<Followed, OpenError> {
    let (sender, batches) = bounded(1);
    let budget = ByteBudget::new(1 << 20);
    let output = DcpOutput { generation: GENERATION, batches: sender, budget: budget.clone() };
    let connection = Connection::open(config, number, output, &Logger::root(Discard, o!()), until)?;
    Ok(Followed { connection, batches, budget })
}

pub(crate) fn open(config: &DcpConfig, number: u16) -> Followed {
    try_open(config, number, &watchdog()).unwrap()
}

impl Followed {
    pub(crate) fn follow(&self, vb: u16, from: Position) {
        self.connection.request_stream(&StreamRequest::follow(VbId(vb), from)).unwrap();
    }

    /// Asks for everything up to a seqno.
    pub(crate) fn follow_to(&self, vb: u16, to: u64) {
        let request = StreamRequest { to: Seqno(to), ..StreamRequest::follow(VbId(vb), Position::ZERO) };
        self.connection.request_stream(&request).unwrap();
    }

    /// The events of the next batch.
    pub(crate) fn next(&self) -> Vec<Told> {
        let batch = thread::recv(&self.batches, &watchdog()).unwrap();
        assert_eq!(batch.generation, GENERATION);
        assert!(batch.charge.is_some(), "a batch weighs on nothing");
        batch.events.iter().map(|event| told(event, &batch.buffer)).collect()
    }

    /// Events up to and with the first that is wanted.
    pub(crate) fn until(&self, is_last: impl Fn(&Told) -> bool) -> Vec<Told> {
        let mut all = Vec::new();
        while !all.iter().any(&is_last) {
            all.extend(self.next());
        }
        all
    }

    /// Events up to this many ends of streams.
    pub(crate) fn until_ends(&self, ends: usize) -> Vec<Told> {
        let mut all = Vec::new();
        while all.iter().filter(|(_, _, what): &&Told| what.starts_with("end ")).count() < ends {
            all.extend(self.next());
        }
        all
    }

    pub(crate) fn close(&self) {
        self.connection.close(&watchdog()).unwrap();
    }
}

/// The same events by vbucket: those of several stand in no order.
pub(crate) fn by_vb(events: Vec<Told>) -> BTreeMap<u16, Vec<(u64, String)>> {
    let mut sorted: BTreeMap<u16, Vec<(u64, String)>> = BTreeMap::new();
    for (vb, seqno, what) in events {
        sorted.entry(vb).or_default().push((seqno, what));
    }
    sorted
}

pub(crate) fn end(reason: StreamEndReason) -> String {
    format!("end {reason:?}")
}

/// How a connection ended that ends by itself.
pub(crate) fn failure(followed: &Followed) -> ConnectionError {
    match followed.connection.join(&watchdog()).unwrap() {
        Some(DcpEnd::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}
