//! The vbuckets of a test's bucket: histories, branches, and what a stream gets of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Raw;

#[derive(Debug, Clone)]
pub(crate) enum What {
    Put {
        value: Vec<u8>,
        datatype: u8,
    },
    Delete,
    Expire,
    /// Number of the event, and its value.
    System {
        event: u32,
        value: Vec<u8>,
    },
    /// The first half of a durable write, which nobody is told of.
    Prepare,
    /// What is sent of it is no message.
    Malformed,
}

#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) seqno: u64,
    pub(crate) collection: u32,
    pub(crate) key: String,
    pub(crate) what: What,
}

#[derive(Clone)]
pub(crate) struct Vb {
    /// Branches, newest first.
    pub(crate) log: Vec<(u64, u64)>,
    pub(crate) history: Vec<Change>,
    pub(crate) high: u64,
    pub(crate) persisted: u64,
    pub(crate) purged: u64,
    pub(crate) is_active: bool,
}

/// How a stream request is answered.
pub(crate) enum Verdict {
    Begin,
    Refuse(u16, Vec<u8>),
}

impl Vb {
    pub(super) fn new(vbuuid: u64) -> Self {
        let (high, persisted, purged) = (0, 0, 0);
        Self { log: vec![(vbuuid, 0)], history: Vec::new(), high, persisted, purged, is_active: true }
    }

    pub(super) fn push(&mut self, collection: u32, key: &str, what: What) -> u64 {
        self.high += 1;
        self.history.push(Change { seqno: self.high, collection, key: key.to_owned(), what });
        self.high
    }

    /// A new branch begins at `seqno`; what was later never was.
    pub(crate) fn fail_over(&mut self, vbuuid: u64, seqno: u64) {
        self.history.retain(|change| change.seqno <= seqno);
        self.high = seqno;
        self.persisted = self.persisted.min(seqno);
        self.log.retain(|(_, at)| *at <= seqno);
        self.log.insert(0, (vbuuid, seqno));
    }

    /// The members `n` of everything that was ever written.
    pub(crate) fn numbers(&self) -> BTreeSet<i64> {
        let number = |change: &Change| match &change.what {
            What::Put { value, .. } => serde_json::from_slice::<serde_json::Value>(value).ok()?["n"].as_i64(),
            _ => None,
        };
        self.history.iter().filter_map(number).collect()
    }

    /// Forgets changes that later ones of the same document replace, but for the newest `kept`. A fail-over must not go
    /// further back than those.
    pub(super) fn compact(&mut self, kept: u64) {
        let horizon = self.high.saturating_sub(kept);
        let mut latest = BTreeMap::new();
        for change in self.history.iter().filter(|change| change.seqno <= horizon) {
            latest.insert((change.collection, change.key.clone()), change.seqno);
        }
        self.history.retain(|change| {
            change.seqno > horizon || latest[&(change.collection, change.key.clone())] == change.seqno
        });
    }

    pub(super) fn documents(&self) -> Vec<String> {
        self.contents().into_keys().collect()
    }

    pub(super) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut contents = BTreeMap::new();
        for change in self.history.iter().filter(|change| change.collection == 0) {
            match &change.what {
                What::Put { value, .. } => drop(contents.insert(change.key.clone(), value.clone())),
                What::Delete | What::Expire => drop(contents.remove(&change.key)),
                What::System { .. } | What::Prepare | What::Malformed => {}
            }
        }
        contents
    }

    pub(super) fn log_bytes(&self) -> Vec<u8> {
        self.log
            .iter()
            .flat_map(|(vbuuid, seqno)| [vbuuid.to_be_bytes(), seqno.to_be_bytes()].concat())
            .collect()
    }

    /// The last change of a collection.
    pub(crate) fn high_of(&self, collection: u32) -> u64 {
        let of_collection =
            |change: &&Change| change.collection == collection && !matches!(change.what, What::Prepare);
        self.history.iter().rev().find(of_collection).map_or(0, |change| change.seqno)
    }

    /// As the KV engine judges a request.
    pub(super) fn judge(&self, [start, end, vbuuid, snap_start, snap_end]: [u64; 5]) -> Verdict {
        let rollback = |to: u64| Verdict::Refuse(0x23, to.to_be_bytes().to_vec());
        if start > end || snap_start > start || start > snap_end {
            return Verdict::Refuse(0x22, Vec::new());
        }
        if start == 0 {
            return Verdict::Begin;
        }
        if start < self.purged {
            return rollback(0);
        }
        let Some(place) = self.log.iter().position(|(branch, _)| *branch == vbuuid) else {
            return rollback(0);
        };
        let upper = if place == 0 { self.high } else { self.log[place - 1].1 };
        let (mut from, mut to) = (snap_start, snap_end);
        if start == from {
            to = start;
        }
        if start == to {
            from = start;
        }
        match () {
            () if to <= upper => Verdict::Begin,
            () if from >= upper || from == start => rollback(upper),
            () => rollback(from),
        }
    }
}

/// What a connection agreed on, and how its node behaves.
#[derive(Debug, Clone, Copy, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fault or a habit by itself, and any may go with any"
)]
pub(super) struct Manner {
    pub(super) oso: bool,
    pub(super) compresses: bool,
    pub(super) expirations: bool,
    pub(super) xattrs: bool,
    pub(super) delete_times: bool,
    pub(super) markers_v2: bool,
    pub(super) numbers: bool,
    pub(super) lag: u64,
}

/// Lays a frame out flexibly, with the number of its stream.
fn number(frame: &mut Vec<u8>) {
    const NUMBER: [u8; 3] = [0x22, 0x00, 0x07];
    assert_eq!((frame[0], frame[2]), (0x80, 0), "its key has a length of one byte");
    (frame[0], frame[2]) = (0x08, 3);
    let body = u32::from_be_bytes(frame[8..12].try_into().unwrap()) + 3;
    frame[8..12].copy_from_slice(&body.to_be_bytes());
    frame.splice(24..24, NUMBER);
}

/// One stream of one connection.
pub(super) struct Stream {
    pub(super) vb: u16,
    pub(super) opaque: u32,
    pub(super) end: u64,
    pub(super) collection: Option<u32>,
    /// The branch that it follows.
    branch: u64,
    pub(super) start: u64,
    /// Everything up to here was queued.
    at: u64,
    is_first: bool,
    pub(super) queued: VecDeque<Vec<u8>>,
    pub(super) is_ended: bool,
}

impl Stream {
    pub(super) fn new(
        vb: u16,
        opaque: u32,
        (start, end): (u64, u64),
        collection: Option<u32>,
        branch: u64,
    ) -> Self {
        Self {
            vb,
            opaque,
            end,
            collection,
            branch,
            start,
            at: start,
            is_first: true,
            queued: VecDeque::new(),
            is_ended: false,
        }
    }

    fn raw<'a>(&self, opcode: u8, extras: &'a [u8]) -> Raw<'a> {
        Raw { magic: 0x80, opcode, vb_or_status: self.vb, opaque: self.opaque, extras, ..Raw::default() }
    }

    fn queue(&mut self, bytes: Vec<u8>) {
        self.queued.push_back(bytes);
    }

    pub(super) fn end(&mut self, reason: u32) {
        let bytes = self.raw(0x55, &reason.to_be_bytes()).bytes();
        self.queue(bytes);
        self.is_ended = true;
    }

    fn document(&self, change: &Change, manner: Manner) -> Vec<u8> {
        let mut key = Vec::new();
        let mut left = change.collection;
        while left >= 0x80 {
            key.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
            left >>= 7;
        }
        key.push(u8::try_from(left).unwrap());
        key.extend_from_slice(change.key.as_bytes());
        let numbers = [change.seqno.to_be_bytes(), 1_u64.to_be_bytes()].concat();
        match &change.what {
            What::Put { value, datatype } => {
                let extras = [&numbers[..], &[0; 14], &[2]].concat();
                let (mut value, mut datatype) = (&value[..], *datatype);
                if datatype & 4 != 0 && !manner.xattrs {
                    let attributes = u32::from_be_bytes(value[..4].try_into().unwrap()) as usize;
                    (value, datatype) = (&value[4 + attributes..], datatype & !4);
                }
                let squeezed =
                    manner.compresses.then(|| snap::raw::Encoder::new().compress_vec(value).unwrap());
                let datatype = datatype | if manner.compresses { 2 } else { 0 };
                let value = squeezed.as_deref().unwrap_or(value);
                Raw { key: &key, value, datatype, ..self.raw(0x57, &extras) }.bytes()
            }
            What::Delete | What::Expire if matches!(change.what, What::Delete) || !manner.expirations => {
                let rest = if manner.delete_times { 5 } else { 2 };
                let extras = [&numbers[..], &[0; 5][..rest]].concat();
                Raw { key: &key, ..self.raw(0x58, &extras) }.bytes()
            }
            What::Delete | What::Expire => {
                let extras = [&numbers[..], &[0; 4]].concat();
                Raw { key: &key, ..self.raw(0x59, &extras) }.bytes()
            }
            What::System { event, value } => {
                let extras = [&change.seqno.to_be_bytes()[..], &event.to_be_bytes(), &[0]].concat();
                Raw { key: change.key.as_bytes(), value, ..self.raw(0x5f, &extras) }.bytes()
            }
            What::Malformed => Raw { key: &key, ..self.raw(0x57, &numbers) }.bytes(),
            What::Prepare => panic!("nobody is told of a prepare"),
        }
    }

    fn marker(&mut self, start: u64, end: u64, kind: u32, manner: Manner) {
        let window = [&start.to_be_bytes()[..], &end.to_be_bytes(), &kind.to_be_bytes()].concat();
        let bytes = if manner.markers_v2 {
            let value = [&window[..], &end.to_be_bytes(), &0_u64.to_be_bytes()].concat();
            Raw { value: &value, ..self.raw(0x56, &[0]) }.bytes()
        } else {
            self.raw(0x56, &window).bytes()
        };
        self.queue(bytes);
    }

    /// Queues the next snapshot, if there is something.
    pub(super) fn advance(&mut self, vb: &Vb, is_here: bool, manner: Manner) {
        let before = self.queued.len();
        self.queue_next(vb, is_here, manner);
        if manner.numbers {
            self.queued.iter_mut().skip(before).for_each(number);
        }
    }

    fn queue_next(&mut self, vb: &Vb, is_here: bool, manner: Manner) {
        if self.is_ended {
            return;
        }
        if vb.log[0].0 != self.branch {
            // What was not sent never was.
            self.queued.clear();
            return self.end(2);
        }
        if !self.queued.is_empty() {
            return;
        }
        if !is_here {
            return self.end(2);
        }
        let lag = if self.start == 0 { manner.lag } else { 0 };
        let mut high = vb.high.saturating_sub(lag).min(self.end);
        // What is not on disk comes from memory.
        if self.is_first && vb.persisted > self.at {
            high = high.min(vb.persisted);
        }
        if high > self.at {
            let (from, is_first) = (self.at, std::mem::take(&mut self.is_first) && vb.persisted > self.at);
            let new = vb.history[vb.history.partition_point(|change| change.seqno <= from)..].iter();
            let mut changes: Vec<&Change> = new.take_while(|change| change.seqno <= high).collect();
            let last = changes.last().map_or(from, |change| change.seqno);
            let told = changes.iter().rev().find(|change| !matches!(change.what, What::Prepare));
            let told = told.map_or(from, |change| change.seqno);
            let wanted = self.collection;
            changes.retain(|change| wanted.is_none_or(|wanted| change.collection == wanted));
            changes.retain(|change| !matches!(change.what, What::Prepare));
            let out_of_order = is_first && from == 0 && manner.oso && wanted.is_some();
            if is_first {
                // What is read from disk has each document once.
                let mut latest = BTreeMap::new();
                for change in &changes {
                    latest.insert((change.collection, change.key.clone()), change.seqno);
                }
                changes.retain(|change| latest[&(change.collection, change.key.clone())] == change.seqno);
            }
            if out_of_order {
                changes.sort_by(|a, b| a.key.cmp(&b.key));
                let bytes = self.raw(0x65, &1_u32.to_be_bytes()).bytes();
                self.queue(bytes);
            } else {
                let (start, kind) = if is_first { (from, 0x06) } else { (from + 1, 0x05) };
                self.marker(start, last, kind, manner);
            }
            let delivered = changes.iter().map(|change| change.seqno).max().unwrap_or(0);
            for change in changes {
                let bytes = self.document(change, manner);
                self.queue(bytes);
            }
            // A snapshot may end with a prepare, which nobody hears of.
            if delivered < told {
                let bytes = self.raw(0x64, &told.to_be_bytes()).bytes();
                self.queue(bytes);
            }
            if out_of_order {
                let bytes = self.raw(0x65, &2_u32.to_be_bytes()).bytes();
                self.queue(bytes);
            }
            self.at = last;
        }
        self.is_first = false;
        if self.at >= self.end {
            self.end(0);
        }
    }
}
