//! The source that reads files of JSON lines.

use std::io::{self, Read, Write};
use std::path::Path;

use crossbeam::channel::{Receiver, bounded, unbounded};
use dormouse::event::{
    ByteBudget, DOCUMENT_BYTES_MAX, EventBatch, EventKind, Generation, Seqno, VbId, VbUuid,
};
use dormouse::index::DOCUMENT_DEPTH_MAX;
use dormouse::source::{
    Input, LineProblem, Replay, ReplayConfig, ReplayEnd, ReplayError, ReplayFormat, ReplayOutcome,
};
use dormouse::thread::{FinHolder, Thread, fin, spawn};
use dormouse::timestamp::{Position, TsVbuuid};

use crate::support::{eventually, watchdog};

const VBUCKETS: u16 = 4;

fn documents() -> ReplayFormat {
    ReplayFormat::Documents { id_field: "id".to_owned() }
}

fn config(format: ReplayFormat, skip_bad: bool) -> ReplayConfig {
    ReplayConfig { format, skip_bad, batch_bytes: 4096, batch_events: 16 }
}

fn start() -> TsVbuuid {
    (0..VBUCKETS).map(|vb| (VbId(vb), Position::at(VbUuid(7), Seqno(10)))).collect()
}

fn reader(reader: impl Read + Send + 'static) -> Input {
    Input::Reader { name: "lines".to_owned(), reader: Box::new(reader) }
}

fn text(lines: &str) -> Input {
    reader(io::Cursor::new(lines.as_bytes().to_vec()))
}

/// Reads everything, with nobody in the way.
fn replay(format: ReplayFormat, skip_bad: bool, inputs: Vec<Input>) -> (ReplayOutcome, Vec<EventBatch>) {
    let (out, batches) = unbounded();
    let (_holder, never) = fin();
    let budget = ByteBudget::new(1 << 30);
    let source = Replay::new(config(format, skip_bad), Generation(1), &start(), out, budget, never);
    let outcome = source.run(inputs);
    (outcome, batches.into_iter().collect())
}

/// What was read, one text a change.
fn changes(batches: &[EventBatch]) -> Vec<String> {
    let mut changes = Vec::new();
    for batch in batches {
        let text = |span: dormouse::event::Span| String::from_utf8_lossy(span.of(&batch.buffer)).into_owned();
        changes.extend(batch.events.iter().filter_map(|event| match event.kind {
            EventKind::Mutation { key, value, .. } => Some(format!("{} = {}", text(key), text(value).trim())),
            EventKind::Deletion { key } => Some(format!("{} deleted", text(key))),
            EventKind::Expiration { key } => Some(format!("{} expired", text(key))),
            _ => None,
        }));
    }
    changes
}

#[test]
fn documents_come_in_the_order_of_their_lines_and_each_vbucket_counts_on() {
    let lines = (0..100).map(|n| format!("{{\"id\":\"d{n}\"}}\n")).collect::<Vec<_>>().concat();
    let (outcome, batches) = replay(documents(), false, vec![text(&lines)]);
    assert!(matches!(outcome.end, ReplayEnd::Finished));
    let expected: Vec<String> = (0..100).map(|n| format!("d{n} = {{\"id\":\"d{n}\"}}")).collect();
    assert_eq!(changes(&batches), expected);
    for vb in 0..VBUCKETS {
        let kinds: Vec<(u64, &str)> = batches
            .iter()
            .flat_map(|batch| &batch.events)
            .filter(|event| event.vb == VbId(vb))
            .map(|event| match event.kind {
                EventKind::StreamReq { .. } => (event.seqno.0, "begin"),
                EventKind::SnapshotMarker { .. } => (event.seqno.0, "marker"),
                EventKind::StreamEnd { .. } => (event.seqno.0, "end"),
                _ => (event.seqno.0, "change"),
            })
            .collect();
        let last = outcome.reached.get(VbId(vb)).unwrap().seqno.0;
        let mut expected = vec![(10, "begin"), (10, "marker")];
        expected.extend((11..=last).map(|seqno| (seqno, "change")));
        expected.push((last, "end"));
        assert_eq!(kinds, expected);
    }
}

#[test]
fn changes_are_upserts_deletions_and_expirations() {
    let lines = concat!(
        r#"{"op":"upsert","id":"a","doc":{"n":1}}"#,
        "\n",
        r#"{"id":"a\u0062","op":"delete"}"#,
        "\n",
        r#"{"op":"expire","id":"c","doc":null}"#,
        "\n",
    );
    let (outcome, batches) = replay(ReplayFormat::Changes, false, vec![text(lines)]);
    assert!(matches!(outcome.end, ReplayEnd::Finished));
    assert_eq!(changes(&batches), [r#"a = {"n":1}"#, "ab deleted", "c expired"]);
}

#[test]
fn lines_may_end_as_windows_ends_them_be_blank_or_not_end_at_all() {
    let lines = "{\"id\":\"a\"}\r\n\r\n   \n{\"id\":\"b\"}\n\n{\"id\":\"c\"}";
    let (outcome, batches) = replay(documents(), false, vec![text(lines), text(""), text("\n")]);
    assert!(matches!(outcome.end, ReplayEnd::Finished));
    assert_eq!(changes(&batches), [r#"a = {"id":"a"}"#, r#"b = {"id":"b"}"#, r#"c = {"id":"c"}"#]);
}

/// The problem of the bad line that stands third, with a good line on either side.
fn problem(format: &ReplayFormat, bad: &str) -> LineProblem {
    let good = |id: &str| match format {
        ReplayFormat::Documents { .. } => format!("{{\"id\":\"{id}\"}}"),
        ReplayFormat::Changes => format!("{{\"op\":\"delete\",\"id\":\"{id}\"}}"),
    };
    let lines = format!("{}\n\n{bad}\n{}\n", good("before"), good("after"));
    let (outcome, batches) = replay(format.clone(), false, vec![text(&lines)]);
    assert_eq!(changes(&batches).len(), 1, "what stands before a bad line is kept");
    let ReplayEnd::Failed(ReplayError::BadLine { line, problem, input }) = outcome.end else {
        panic!("it was read: {bad}");
    };
    assert_eq!((line, input.as_str()), (3, "lines"));
    let (outcome, batches) = replay(format.clone(), true, vec![text(&lines)]);
    assert!(matches!(outcome.end, ReplayEnd::Finished));
    assert_eq!(changes(&batches).len(), 2, "and what stands behind a skipped one is read");
    let skipped: Vec<_> = outcome.bad_lines.iter().map(|bad| (bad.line, bad.problem.clone())).collect();
    assert_eq!(skipped, [(3, problem.clone())]);
    problem
}

#[test]
fn each_problem_of_a_document_is_told_with_its_line() {
    let of = |bad: &str| problem(&documents(), bad);
    for bad in ["{", "[1]", "7", r#"{"id":"a"} {}"#, r#"{"id":"a","x":01}"#, r#"{"id":"a","x":1e999}"#] {
        assert!(matches!(of(bad), LineProblem::Json(_)), "{bad}");
    }
    assert_eq!(of(r#"{"x":1}"#), LineProblem::NoId("id".to_owned()));
    assert_eq!(of(r#"{"id":7}"#), LineProblem::IdNoString);
    assert_eq!(of(r#"{"id":{"id":"a"}}"#), LineProblem::IdNoString);
    assert_eq!(of(r#"{"id":""}"#), LineProblem::IdLength(0));
    assert_eq!(of(&format!(r#"{{"id":"{}"}}"#, "x".repeat(251))), LineProblem::IdLength(251));
    let large = format!(r#"{{"id":"a","x":"{}"}}"#, "x".repeat(DOCUMENT_BYTES_MAX));
    assert_eq!(of(&large), LineProblem::TooLarge);
}

#[test]
fn each_problem_of_a_change_is_told_with_its_line() {
    let of = |bad: &str| problem(&ReplayFormat::Changes, bad);
    assert!(matches!(of(r#"{"id":"a"}"#), LineProblem::Json(_)));
    assert_eq!(of(r#"{"op":"merge","id":"a"}"#), LineProblem::UnknownOp("merge".to_owned()));
    assert_eq!(of(r#"{"op":"upsert","id":"a"}"#), LineProblem::NoDocument);
    assert_eq!(of(r#"{"op":"delete"}"#), LineProblem::NoId("id".to_owned()));
    assert_eq!(of(r#"{"op":"delete","id":[]}"#), LineProblem::IdNoString);
    assert!(matches!(of(r#"{"op":"upsert","id":"a","doc":{"x":"\ud800"}}"#), LineProblem::Json(_)));
    assert!(matches!(of(r#"["delete","a"]"#), LineProblem::Json(_)));
    assert!(matches!(of(r#" ["upsert","a",{}]"#), LineProblem::Json(_)));
}

#[test]
fn a_document_nests_as_deep_as_an_index_reads_it_and_one_that_is_deeper_is_told() {
    let nested = |depth: usize| {
        let arrays = depth - 1;
        format!("{{\"id\":\"a\",\"x\":{}{}}}", "[".repeat(arrays), "]".repeat(arrays))
    };
    let changed = |depth| format!("{{\"op\":\"upsert\",\"id\":\"a\",\"doc\":{}}}", nested(depth));
    let lines: [(ReplayFormat, &dyn Fn(usize) -> String); 2] =
        [(documents(), &nested), (ReplayFormat::Changes, &changed)];
    for (format, line) in lines {
        let (outcome, batches) = replay(format.clone(), false, vec![text(&line(DOCUMENT_DEPTH_MAX))]);
        assert!(matches!(outcome.end, ReplayEnd::Finished), "{:?}", outcome.end);
        assert_eq!(changes(&batches), [format!("a = {}", nested(DOCUMENT_DEPTH_MAX))]);
        for depth in [DOCUMENT_DEPTH_MAX + 1, 100_000] {
            let told = problem(&format, &line(depth)).to_string();
            assert!(told.contains("more than 128 arrays and objects lie within each other"), "{told}");
        }
    }
}

#[test]
fn an_id_that_nests_too_deep_is_told_like_any_other_value() {
    let told = problem(&documents(), &format!("{{\"id\":{}}}", "[".repeat(100_000))).to_string();
    assert!(told.contains("more than 128 arrays and objects lie within each other"), "{told}");
}

#[test]
fn bytes_that_are_no_text_are_a_bad_line() {
    let lines =
        [&b"{\"id\":\"a\xff\"}\n"[..], b"{\"id\":\"b\",\"x\":\"\xc3\"}\n", b"{\"id\":\"c\"}\n"].concat();
    let (outcome, batches) = replay(documents(), true, vec![reader(io::Cursor::new(lines))]);
    assert_eq!(changes(&batches), [r#"c = {"id":"c"}"#]);
    assert_eq!(outcome.bad_lines.len(), 2);
}

#[test]
fn a_file_that_was_cut_off_is_told_from_a_bad_line() {
    let (outcome, batches) = replay(documents(), false, vec![text("{\"id\":\"a\"}\n{\"id\":\"b")]);
    assert_eq!(changes(&batches).len(), 1);
    let ReplayEnd::Failed(error) = outcome.end else { panic!("it was read") };
    assert!(matches!(error, ReplayError::BadLine { line: 2, problem: LineProblem::CutOff, .. }), "{error}");
}

fn gzipped(folder: &Path, name: &str, members: &[&str]) -> std::path::PathBuf {
    let path = folder.join(name);
    let mut file = std::fs::File::create(&path).unwrap();
    for member in members {
        let mut encoder = flate2::write::GzEncoder::new(&mut file, flate2::Compression::fast());
        encoder.write_all(member.as_bytes()).unwrap();
        encoder.finish().unwrap();
    }
    path
}

#[test]
fn gzip_files_are_read_with_all_their_members() {
    let dir = tempfile::tempdir().unwrap();
    let path = gzipped(dir.path(), "lines.gz", &["{\"id\":\"a\"}\n{\"id\"", ":\"b\"}\n"]);
    let (outcome, batches) = replay(documents(), false, vec![Input::Path(path)]);
    assert!(matches!(outcome.end, ReplayEnd::Finished));
    assert_eq!(changes(&batches).len(), 2);
}

#[test]
fn a_gzip_file_that_was_cut_off_fails_after_its_whole_lines() {
    let dir = tempfile::tempdir().unwrap();
    let lines = (0..2000).map(|n| format!("{{\"id\":\"d{n}\"}}\n")).collect::<Vec<_>>().concat();
    let path = gzipped(dir.path(), "lines.gz", &[&lines]);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    let (outcome, batches) = replay(documents(), true, vec![Input::Path(path)]);
    assert!(matches!(outcome.end, ReplayEnd::Failed(ReplayError::Read { .. })), "{:?}", outcome.end);
    let kept = changes(&batches);
    assert!(kept.iter().zip(0..).all(|(change, n)| *change == format!("d{n} = {{\"id\":\"d{n}\"}}")));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let (outcome, _) = replay(documents(), true, vec![Input::Path("no/such.jsonl".into())]);
    let ReplayEnd::Failed(error) = outcome.end else { panic!("it was read") };
    assert!(error.to_string().starts_with("cannot read no/such.jsonl: "), "{error}");
}

#[test]
fn a_line_that_is_longer_than_any_document_is_passed_over_in_bounded_memory() {
    let long = io::repeat(b'x').take(64 << 20);
    let lines = long.chain(io::Cursor::new("\n{\"id\":\"a\"}\n"));
    let (outcome, batches) = replay(documents(), true, vec![reader(lines)]);
    let bad: Vec<_> = outcome.bad_lines.iter().map(|bad| (bad.line, bad.problem.clone())).collect();
    assert_eq!(bad, [(1, LineProblem::TooLarge)]);
    assert_eq!(changes(&batches), [r#"a = {"id":"a"}"#]);
    assert!(batches.iter().all(|batch| batch.weight_bytes() < 1 << 20));
}

/// Gives few bytes at a time, and is interrupted before each of them.
struct Interrupted {
    bytes: io::Cursor<Vec<u8>>,
    interrupt: bool,
}

impl Read for Interrupted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let few = buffer.len().min(3);
        self.bytes.read(&mut buffer[..few])
    }
}

#[test]
fn a_reader_that_is_interrupted_in_the_middle_of_lines_loses_nothing() {
    let lines = "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}";
    let bytes = io::Cursor::new(lines.as_bytes().to_vec());
    let (outcome, batches) =
        replay(documents(), false, vec![reader(Interrupted { bytes, interrupt: false })]);
    assert!(matches!(outcome.end, ReplayEnd::Finished));
    assert_eq!(changes(&batches).len(), 3);
}

struct Running {
    source: Thread<ReplayOutcome>,
    stop: FinHolder,
    batches: Receiver<EventBatch>,
    budget: ByteBudget,
}

fn run(input: Input, budget_bytes: usize, queue: usize) -> Running {
    let (out, batches) = bounded(queue);
    let (stop, stopped) = fin();
    let budget = ByteBudget::new(budget_bytes);
    let config = config(documents(), true);
    let source = Replay::new(config, Generation(1), &start(), out, budget.clone(), stopped);
    let source = spawn("t-source", move || source.run(vec![input])).unwrap();
    Running { source, stop, batches, budget }
}

fn stopped(running: Running) {
    drop(running.stop);
    let outcome = running.source.join(&watchdog()).unwrap();
    assert!(matches!(outcome.end, ReplayEnd::Stopped), "{:?}", outcome.end);
}

/// The same line for ever.
struct Endless(&'static [u8]);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let whole = buffer.len() / self.0.len() * self.0.len();
        for line in buffer[..whole].chunks_exact_mut(self.0.len()) {
            line.copy_from_slice(self.0);
        }
        Ok(whole)
    }
}

#[test]
fn a_stop_is_seen_while_the_budget_is_used_up() {
    let running = run(reader(Endless(b"{\"id\":\"a\"}\n")), 1, 1000);
    eventually("the first batch is out", || !running.batches.is_empty());
    assert!(running.budget.used_bytes() > 0);
    stopped(running);
}

#[test]
fn a_stop_is_seen_while_nobody_takes_the_batches() {
    let running = run(reader(Endless(b"{\"id\":\"a\"}\n")), 1 << 30, 1);
    eventually("the queue is full", || running.batches.is_full());
    stopped(running);
}

#[test]
fn a_stop_is_seen_among_endless_bad_lines() {
    stopped(run(reader(Endless(b"bad\n")), 1 << 30, 1000));
}

#[test]
fn a_stop_is_seen_among_endless_blank_lines() {
    stopped(run(reader(Endless(b"\n")), 1 << 30, 1000));
}

#[test]
fn a_stop_is_seen_in_a_line_that_never_ends() {
    stopped(run(reader(io::repeat(b'x')), 1 << 30, 1000));
}

#[test]
fn a_source_whose_batches_nobody_wants_any_more_ends() {
    let running = run(reader(Endless(b"{\"id\":\"a\"}\n")), 1 << 30, 1);
    drop(running.batches);
    let outcome = running.source.join(&watchdog()).unwrap();
    assert!(matches!(outcome.end, ReplayEnd::Stopped));
}
