//! Bytes as lines of a file: which of them are documents or changes, against `serde_json::Value`.

#![no_main]

use std::io::Cursor;

use crossbeam::channel::unbounded;
use dormouse::event::{ByteBudget, EventKind, Generation, KEY_BYTES_MAX, Seqno, VbId, VbUuid};
use dormouse::source::{Input, Replay, ReplayConfig, ReplayEnd, ReplayFormat};
use dormouse::thread::fin;
use dormouse::timestamp::{Position, TsVbuuid};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Ids and documents of the lines that are accepted, in their order; of a deletion or an expiration the id alone.
fn replayed(format: ReplayFormat, text: &[u8]) -> Vec<(String, Option<Value>)> {
    let (out, batches) = unbounded();
    let (_holder, never) = fin();
    let config = ReplayConfig { format, skip_bad: true, batch_bytes: 4096, batch_events: 16 };
    let start: TsVbuuid = [(VbId(0), Position::at(VbUuid(1), Seqno(0)))].into_iter().collect();
    let replay = Replay::new(config, Generation(1), &start, out, ByteBudget::new(1 << 30), never);
    let reader = Box::new(Cursor::new(text.to_vec()));
    let outcome = replay.run(vec![Input::Reader { name: "lines".to_owned(), reader }]);
    assert!(matches!(outcome.end, ReplayEnd::Finished), "{:?}", outcome.end);
    let mut changes = Vec::new();
    for batch in batches {
        let id = |key: dormouse::event::Span| String::from_utf8(key.of(&batch.buffer).to_vec()).expect("a text");
        changes.extend(batch.events.iter().filter_map(|event| match event.kind {
            EventKind::Mutation { key, value, .. } => {
                let document = serde_json::from_slice(value.of(&batch.buffer)).expect("a document");
                Some((id(key), Some(document)))
            }
            EventKind::Deletion { key } | EventKind::Expiration { key } => Some((id(key), None)),
            _ => None,
        }));
    }
    changes
}

fn id_of(line: &Value, field: &str) -> Option<String> {
    let id = line.get(field)?.as_str()?;
    (1..=KEY_BYTES_MAX).contains(&id.len()).then(|| id.to_owned())
}

fuzz_target!(|text: &[u8]| {
    // Its limit of depth is one lower than ours.
    let lines: Vec<Option<Value>> = text
        .split(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).ok().filter(|_| line.len() < 120))
        .collect();
    let too_long = text.split(|byte| *byte == b'\n').any(|line| line.len() >= 120);
    if too_long {
        replayed(ReplayFormat::Changes, text);
        replayed(ReplayFormat::Documents { id_field: "id".to_owned() }, text);
        return;
    }
    let documents = lines.iter().flatten().filter(|line| line.is_object());
    let expected: Vec<_> =
        documents.filter_map(|line| Some((id_of(line, "id")?, Some(line.clone())))).collect();
    assert_eq!(replayed(ReplayFormat::Documents { id_field: "id".to_owned() }, text), expected);
    for (id, document) in replayed(ReplayFormat::Changes, text) {
        let is_its_line = |line: &&Value| {
            id_of(line, "id").as_deref() == Some(id.as_str())
                && (document.is_none() || line.get("doc") == document.as_ref())
        };
        assert!(lines.iter().flatten().any(|line| is_its_line(&line)), "{id}");
    }
});
