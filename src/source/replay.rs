//! The source `replay`: files of JSON lines, as a stream of changes.
//!
//! A file is always read from its start, and each line is a new change: the next seqno of its document's
//! vbucket. Reading a file again therefore skips nothing and repeats nothing that matters. A file's number of
//! lines is not known beforehand, so its changes lie in one open-ended snapshot, in which every seqno is a
//! consistent point.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;
use flate2::read::MultiGzDecoder;

use crate::event::{
    ByteBudget, DOCUMENT_BYTES_MAX, Datatype, DcpEvent, EventBatch, EventKind, Generation, Seqno, Span,
    StreamEndReason, StreamStatus, VbId, VbUuid,
};
use crate::thread::{self, Fin};
use crate::timestamp::{Position, TsVbuuid};

use super::line::{self, Change, LineProblem};

/// What a change file's line may have around its document.
const LINE_BYTES_MAX: usize = DOCUMENT_BYTES_MAX + 4096;
const READ_BYTES: usize = 256 * 1024;
/// Bad lines whose problem is kept for the report.
const BAD_LINES_KEPT: usize = 20;

/// Something to read.
pub enum Input {
    /// A file; one whose name ends in `.gz` is read as gzip.
    Path(PathBuf),
    /// Anything else. A reader that may block for long returns [`io::ErrorKind::Interrupted`] now and then, so
    /// that the source can be ended.
    Reader {
        /// For messages.
        name: String,
        /// The bytes.
        reader: Box<dyn Read + Send>,
    },
}

impl Input {
    fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Reader { name, .. } => name.clone(),
        }
    }

    /// Bytes to read, where that is known beforehand.
    fn length_bytes(&self) -> Option<u64> {
        match self {
            Self::Path(path) => {
                std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|m| m.len())
            }
            Self::Reader { .. } => None,
        }
    }
}

/// What a line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayFormat {
    /// A document, with its id in the named member.
    Documents {
        /// Name of the member.
        id_field: String,
    },
    /// A change: `{"op":"upsert","id":"k","doc":{…}}`, `{"op":"delete","id":"k"}`, `{"op":"expire","id":"k"}`.
    Changes,
}

impl Default for ReplayFormat {
    fn default() -> Self {
        Self::Documents { id_field: "id".to_owned() }
    }
}

/// How files are read.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// What a line is.
    pub format: ReplayFormat,
    /// Go on after a bad line, and count it.
    pub skip_bad: bool,
    /// A batch is sent when its buffer has this many bytes; a longer line is a batch of its own.
    pub batch_bytes: usize,
    /// A batch is sent when it has this many documents.
    pub batch_events: usize,
}

/// Why reading ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A line is not what it should be.
    #[error("cannot read {input}: line {line}: {problem}; mend the line, or skip bad lines (--skip-bad)")]
    BadLine {
        /// File or reader.
        input: String,
        /// Number of the line, from one.
        line: u64,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// The system, or the decompressor, refused.
    #[error("cannot read {input}: {source}")]
    Read {
        /// File or reader.
        input: String,
        /// What it said.
        source: io::Error,
    },
}

/// A line that was skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{input}: line {line}: {problem}")]
pub struct BadLine {
    /// File or reader.
    pub input: String,
    /// Number of the line, from one.
    pub line: u64,
    /// What is wrong with it.
    pub problem: LineProblem,
}

/// How reading ended.
#[derive(Debug)]
pub enum ReplayEnd {
    /// All was read.
    Finished,
    /// It was told to stop, or nobody takes its batches any more.
    Stopped,
    /// An input failed. Every change before it was sent.
    Failed(ReplayError),
}

/// What was read.
#[derive(Debug)]
pub struct ReplayOutcome {
    /// How it ended.
    pub end: ReplayEnd,
    /// For each vbucket that was changed, the position of its last change. Unless it was stopped, all of them
    /// were sent.
    pub reached: TsVbuuid,
    /// The first of the lines that were skipped.
    pub bad_lines: Vec<BadLine>,
}

/// How far reading is. Anyone may look at any time.
#[derive(Debug, Default)]
pub struct ReplayProgress {
    documents: AtomicU64,
    bad_lines: AtomicU64,
    read_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl ReplayProgress {
    /// Changes that were sent.
    pub fn documents(&self) -> u64 {
        self.documents.load(Ordering::Relaxed)
    }

    /// Lines that were skipped.
    pub fn bad_lines(&self) -> u64 {
        self.bad_lines.load(Ordering::Relaxed)
    }

    /// Bytes that were read, before decompression.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of all inputs, or `None` where one of them does not say.
    pub fn total_bytes(&self) -> Option<u64> {
        Some(self.total_bytes.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }
}

/// Why a step of the reading ended.
enum Halt {
    Stopped,
    Failed(ReplayError),
}

/// A source that is about to run. [`Replay::run`] is the body of its thread.
pub struct Replay {
    config: ReplayConfig,
    generation: Generation,
    streams: Vec<(VbUuid, Seqno)>,
    moved: Vec<bool>,
    batch: EventBatch,
    documents: usize,
    id: String,
    out: Sender<EventBatch>,
    budget: ByteBudget,
    fin: Fin,
    progress: Arc<ReplayProgress>,
    bad_lines: Vec<BadLine>,
}

impl Replay {
    /// A source whose vbuckets start after the positions in `start`, which has one for each vbucket.
    pub fn new(
        config: ReplayConfig,
        generation: Generation,
        start: &TsVbuuid,
        out: Sender<EventBatch>,
        budget: ByteBudget,
        fin: Fin,
    ) -> Self {
        let streams: Vec<_> = start.iter().map(|(_, position)| (position.vbuuid, position.seqno)).collect();
        Self {
            config,
            generation,
            moved: vec![false; streams.len()],
            streams,
            batch: EventBatch::default(),
            documents: 0,
            id: String::new(),
            out,
            budget,
            fin,
            progress: Arc::default(),
            bad_lines: Vec::new(),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Arc<ReplayProgress> {
        Arc::clone(&self.progress)
    }

    /// Reads all inputs, one after another, and sends what they hold.
    pub fn run(mut self, inputs: Vec<Input>) -> ReplayOutcome {
        let total: Option<u64> = inputs.iter().map(Input::length_bytes).sum();
        self.progress.total_bytes.store(total.unwrap_or(0), Ordering::Relaxed);
        self.begin_streams();
        let read = inputs.into_iter().try_for_each(|input| self.read_input(input));
        // What stands before a bad line is kept, so the batch that was being filled goes out in every case but
        // a stop.
        let end = match (read, self.send_batch()) {
            (Err(Halt::Stopped), _) | (_, Err(Halt::Stopped)) => ReplayEnd::Stopped,
            (Err(Halt::Failed(error)), _) | (Ok(()), Err(Halt::Failed(error))) => ReplayEnd::Failed(error),
            (Ok(()), Ok(())) => match self.end_streams() {
                Ok(()) => ReplayEnd::Finished,
                Err(_) => ReplayEnd::Stopped,
            },
        };
        ReplayOutcome { end, reached: self.reached(), bad_lines: self.bad_lines }
    }

    fn reached(&self) -> TsVbuuid {
        let moved = (0_u16..).zip(&self.streams).zip(&self.moved).filter(|(_, moved)| **moved);
        moved.map(|((vb, (vbuuid, seqno)), _)| (VbId(vb), Position::at(*vbuuid, *seqno))).collect()
    }

    fn begin_streams(&mut self) {
        for (vb, (vbuuid, seqno)) in (0_u16..).zip(&self.streams) {
            let (vb, seqno) = (VbId(vb), *seqno);
            let marker = EventKind::SnapshotMarker { start: seqno, end: Seqno::OPEN_END, each_once: false };
            self.batch.events.push(DcpEvent {
                vb,
                seqno,
                kind: EventKind::StreamReq { status: StreamStatus::Success { vbuuid: *vbuuid } },
            });
            self.batch.events.push(DcpEvent { vb, seqno, kind: marker });
        }
    }

    fn end_streams(&mut self) -> Result<(), Halt> {
        let kind = EventKind::StreamEnd { reason: StreamEndReason::Finished };
        for (vb, (_, seqno)) in (0_u16..).zip(&self.streams) {
            self.batch.events.push(DcpEvent { vb: VbId(vb), seqno: *seqno, kind });
        }
        self.send_batch()
    }

    fn read_input(&mut self, input: Input) -> Result<(), Halt> {
        let name = input.name();
        let read = |source| Halt::Failed(ReplayError::Read { input: name.clone(), source });
        let mut lines = Lines::open(input, &self.progress).map_err(read)?;
        loop {
            if lines.may_block() {
                self.send_batch()?;
            }
            let (start, documents) = (self.batch.buffer.len(), self.documents);
            match lines.next(&mut self.batch.buffer) {
                Ok(Line::End) => return Ok(()),
                Ok(Line::Pause) => {}
                Ok(Line::Whole { ended }) => {
                    if let Err(problem) = self.take_line(start) {
                        self.batch.buffer.truncate(start);
                        let cut_off = !ended && matches!(problem, LineProblem::Json(_));
                        let problem = if cut_off { LineProblem::CutOff } else { problem };
                        self.bad_line(&name, lines.number, problem)?;
                    }
                }
                Ok(Line::TooLong) => {
                    self.batch.buffer.truncate(start);
                    self.bad_line(&name, lines.number, LineProblem::TooLarge)?;
                }
                Err(source) => {
                    self.batch.buffer.truncate(start);
                    return Err(read(source));
                }
            }
            // Where documents come, sending them sees the signal.
            if self.documents == documents && self.fin.is_given() {
                return Err(Halt::Stopped);
            }
            if self.batch.buffer.len() >= self.config.batch_bytes
                || self.documents >= self.config.batch_events
            {
                self.send_batch()?;
            }
        }
    }

    fn bad_line(&mut self, input: &str, line: u64, problem: LineProblem) -> Result<(), Halt> {
        let input = input.to_owned();
        if !self.config.skip_bad {
            return Err(Halt::Failed(ReplayError::BadLine { input, line, problem }));
        }
        self.progress.bad_lines.fetch_add(1, Ordering::Relaxed);
        if self.bad_lines.len() < BAD_LINES_KEPT {
            self.bad_lines.push(BadLine { input, line, problem });
        }
        Ok(())
    }

    /// Makes an event of the line that stands in the buffer from `start` on.
    fn take_line(&mut self, start: usize) -> Result<(), LineProblem> {
        let line = self.batch.buffer.get(start..).unwrap_or_default();
        if line.iter().all(u8::is_ascii_whitespace) {
            self.batch.buffer.truncate(start);
            return Ok(());
        }
        let change = match &self.config.format {
            ReplayFormat::Documents { id_field } => line::parse_document(line, id_field)?,
            ReplayFormat::Changes => line::parse_change(line)?,
        };
        let (id, value, is_expiry) = match change {
            Change::Upsert { id, document } => {
                let offset = document.as_ptr() as usize - line.as_ptr() as usize;
                (id, Some(Span::new(start + offset, document.len())), false)
            }
            Change::Delete { id } => (id, None, false),
            Change::Expire { id } => (id, None, true),
        };
        // The id may stand in the line with escapes, so its bytes are put behind the line.
        self.id.clear();
        self.id.push_str(&id);
        drop(id);
        let key_start = self.batch.buffer.len();
        self.batch.buffer.extend_from_slice(self.id.as_bytes());
        let key = Span::since(key_start, &self.batch.buffer);
        // Streams count at most 2^15 vbuckets.
        let vbuckets = u16::try_from(self.streams.len()).unwrap_or(u16::MAX);
        let vb = VbId::of_key(self.id.as_bytes(), vbuckets);
        let slot = usize::from(vb.0);
        let (Some((_, seqno)), Some(moved)) = (self.streams.get_mut(slot), self.moved.get_mut(slot)) else {
            return Ok(());
        };
        *seqno = seqno.next();
        *moved = true;
        let kind = match value {
            Some(value) => EventKind::Mutation { key, value, xattrs_len: 0, datatype: Datatype::JSON },
            None if is_expiry => EventKind::Expiration { key },
            None => EventKind::Deletion { key },
        };
        self.batch.events.push(DcpEvent { vb, seqno: *seqno, kind });
        self.documents += 1;
        Ok(())
    }

    fn send_batch(&mut self) -> Result<(), Halt> {
        if self.batch.events.is_empty() {
            return Ok(());
        }
        let charge = self.budget.charge(self.batch.weight_bytes(), &self.fin).ok_or(Halt::Stopped)?;
        let next = EventBatch {
            events: Vec::with_capacity(self.config.batch_events),
            buffer: Vec::with_capacity(self.config.batch_bytes + self.config.batch_bytes / 8),
            ..EventBatch::default()
        };
        let mut batch = std::mem::replace(&mut self.batch, next);
        batch.generation = self.generation;
        batch.charge = Some(charge);
        let documents = std::mem::take(&mut self.documents);
        thread::send(&self.out, batch, &self.fin).map_err(|_| Halt::Stopped)?;
        self.progress.documents.fetch_add(documents as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// What [`Lines::next`] found.
enum Line {
    /// A line was put into the buffer; `ended` tells whether a newline followed.
    Whole { ended: bool },
    /// A line was longer than any document, and was passed over.
    TooLong,
    /// No end of a line was found yet: time to look whether the source is to end.
    Pause,
    /// There are no more lines.
    End,
}

/// The lines of one input.
struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    blocks: bool,
    number: u64,
    /// What was read of the present line.
    partial: Vec<u8>,
    /// The present line is too long: its rest is passed over.
    too_long: bool,
}

/// Counts what is read from a file.
struct Counted {
    file: File,
    progress: Arc<ReplayProgress>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.progress.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Lines {
    fn open(input: Input, progress: &Arc<ReplayProgress>) -> io::Result<Self> {
        let (reader, blocks): (Box<dyn Read + Send>, bool) = match input {
            Input::Reader { reader, .. } => (reader, true),
            Input::Path(path) => {
                let file = File::open(&path)?;
                let blocks = !file.metadata()?.is_file();
                let counted = Counted { file, progress: Arc::clone(progress) };
                if path.extension().is_some_and(|extension| extension == "gz") {
                    (Box::new(MultiGzDecoder::new(counted)), blocks)
                } else {
                    (Box::new(counted), blocks)
                }
            }
        };
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Ok(Self { reader, blocks, number: 0, partial: Vec::new(), too_long: false })
    }

    /// Whether the next line may not be there yet.
    fn may_block(&self) -> bool {
        self.blocks && memchr::memchr(b'\n', self.reader.buffer()).is_none()
    }

    /// Appends the next line to `buffer`, without its newline. Reads at most once.
    fn next(&mut self, buffer: &mut Vec<u8>) -> io::Result<Line> {
        let available = match self.reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Line::Pause),
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            let nothing_left = self.partial.is_empty() && !self.too_long;
            return Ok(if nothing_left { Line::End } else { self.finish(buffer, false) });
        }
        let newline = memchr::memchr(b'\n', available);
        let taken = newline.unwrap_or(available.len());
        self.too_long |= self.partial.len() + taken > LINE_BYTES_MAX;
        if let Some(part) = available.get(..taken).filter(|_| !self.too_long) {
            // A line that is whole already takes no way round.
            let to =
                if self.partial.is_empty() && newline.is_some() { &mut *buffer } else { &mut self.partial };
            to.extend_from_slice(part);
        }
        self.reader.consume(taken + usize::from(newline.is_some()));
        Ok(if newline.is_some() { self.finish(buffer, true) } else { Line::Pause })
    }

    fn finish(&mut self, buffer: &mut Vec<u8>, ended: bool) -> Line {
        self.number += 1;
        if std::mem::take(&mut self.too_long) {
            self.partial = Vec::new();
            return Line::TooLong;
        }
        buffer.append(&mut self.partial);
        Line::Whole { ended }
    }
}
