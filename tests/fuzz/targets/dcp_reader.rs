//! Bytes on a connection, after its handshake and while two streams are open: events lie within their batches, every
//! stream has one end at most, no more memory is held than the limit, and the connection ends when the bytes do.

#![no_main]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use dormouse::event::{ByteBudget, EventKind, Generation, StreamStatus, VbId};
use dormouse::source::dcp::{
    Connection, DcpConfig, DcpOutput, FRAME_BYTES_MAX, Login, Opcode, StreamRequest,
};
use dormouse::thread::{self, RecvError, Until};
use dormouse::timestamp::Position;
use libfuzzer_sys::fuzz_target;
use slog::{Discard, Logger, o};

#[path = "../../support/little_node.rs"]
mod little_node;
mod server;

use little_node::{Answer, serve, yes};
use server::Server;

const STREAMS: u16 = 2;

static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(say));

/// Says yes to everything until all streams are asked for, and then these bytes.
fn say(mut tcp: TcpStream, bytes: &[u8]) {
    let mut streams = 0;
    let are_asked_for = serve(&mut tcp, |asked| {
        streams += u16::from(asked.opcode == Opcode::DCP_STREAM_REQ);
        Some(Answer { is_last: streams == STREAMS, ..yes(asked) })
    });
    if are_asked_for {
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(Shutdown::Write);
        while let Ok(1..) = tcp.read(&mut [0; 4096]) {}
    }
}

/// Takes batches until the connection ends; gives the ends of each vbucket's streams.
fn take(batches: &Receiver<dormouse::event::EventBatch>, soon: &Until) -> BTreeMap<VbId, i32> {
    // What a vbucket has begun is more by one than what it has ended, or the same.
    let mut open: BTreeMap<VbId, i32> = BTreeMap::new();
    loop {
        let batch = match thread::recv(batches, soon) {
            Ok(batch) => batch,
            Err(RecvError::Closed) => return open,
            Err(RecvError::Stopped(why)) => panic!("it hangs: {why}"),
        };
        for event in &batch.events {
            let spans = match event.kind {
                EventKind::Mutation { key, value, xattrs_len, datatype } => {
                    assert!(datatype.0 & 2 == 0, "a value is compressed");
                    let xattrs = value.before(xattrs_len).of(&batch.buffer);
                    assert_eq!(xattrs.len(), xattrs_len as usize);
                    vec![key, value]
                }
                EventKind::Deletion { key } | EventKind::Expiration { key } => vec![key],
                _ => vec![],
            };
            if let Some(key) = spans.first() {
                assert!((1..=250).contains(&key.of(&batch.buffer).len()), "a key of no length");
            }
            match event.kind {
                EventKind::StreamReq { status: StreamStatus::Success { .. } } => {
                    *open.entry(event.vb).or_default() += 1
                }
                EventKind::StreamEnd { .. } => *open.entry(event.vb).or_default() -= 1,
                _ => continue,
            }
            let open = open[&event.vb];
            // One that was never answered is owed an end all the same.
            assert!((-1..=1).contains(&open), "{open} streams of {}", event.vb);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    SERVER.hand(data);
    let login = Login { user: "u".to_owned(), password: "p".to_owned(), plain_without_tls: true };
    let config = DcpConfig {
        window_bytes: 4096,
        batch_bytes: 4096,
        ..DcpConfig::new(SERVER.address, "b", STREAMS, login)
    };
    let (sender, batches) = bounded(1);
    let output = DcpOutput { generation: Generation(1), batches: sender, budget: ByteBudget::new(1 << 20) };
    let soon = Until::within(Duration::from_secs(20));
    let connection =
        Connection::open(&config, 0, output, &Logger::root(Discard, o!()), &soon).expect("a handshake");
    for vb in 0..STREAMS {
        // The last one may find that the bytes have ended it.
        let _ = connection.request_stream(&StreamRequest::follow(VbId(vb), Position::ZERO));
    }
    take(&batches, &soon);
    assert!(connection.stats().held_bytes_max() <= (FRAME_BYTES_MAX + (1 << 20)) as u64);
    connection.close(&soon).expect("its threads end");
});
