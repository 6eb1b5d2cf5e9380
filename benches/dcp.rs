//! The source `dcp`: decoding alone, and from a socket to an endpoint that does nothing.
//!
//! `decode/mutation_256` reads frames of 256 bytes from memory, header and message, on one core. `tcp/noop_endpoint` has
//! a server in this process that writes such frames over loopback, as the flow-control window allows, and takes as long
//! as the workers of a data path need to have evaluated all of them. `elem/s` are events.
#![expect(clippy::unwrap_used, reason = "in a bench a panic is the failure")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::channel::{Receiver, Sender, bounded};
use dormouse::event::{ByteBudget, Generation, VbId};
use dormouse::projector::{Endpoint, EndpointRefused, Feed, KvData, KvDataConfig};
use dormouse::shard::ShardId;
use dormouse::shard::batch::WriteBatch;
use dormouse::source::dcp::{
    Connection, DcpConfig, DcpOutput, Decoded, FRAME_BYTES_MAX, Frame, Login, Magic, Message, Opcode,
    StreamRequest,
};
use dormouse::thread::{self, Until};
use dormouse::timestamp::{Position, TsVbuuid};
use slog::{Discard, Logger, o};

const VBUCKETS: u16 = 64;
const FRAME_BYTES: usize = 256;
const KEY: &[u8] = b"\0document-of-some-length";
const CHUNK_EVENTS: usize = 4096;

/// Mutations of [`FRAME_BYTES`] each, of one vbucket after another. Their opaque is that of the first request for
/// the vbucket, as asked for in ascending order.
fn frames() -> Vec<u8> {
    let value = vec![b'7'; FRAME_BYTES - 24 - 31 - KEY.len()];
    let mut bytes = Vec::with_capacity(CHUNK_EVENTS * FRAME_BYTES);
    for number in 0..CHUNK_EVENTS {
        let vb = u16::try_from(number % usize::from(VBUCKETS)).unwrap();
        let frame = Frame {
            magic: Magic::Request,
            opcode: Opcode::DCP_MUTATION,
            datatype: 1,
            vb_or_status: vb,
            opaque: u32::from(vb) + 1,
            cas: 0,
            framing: &[],
            extras: &[0; 31],
            key: KEY,
            value: &value,
        };
        frame.encode(&mut bytes).unwrap();
    }
    bytes
}

fn decode(c: &mut Criterion) {
    let bytes = frames();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(CHUNK_EVENTS as u64));
    group.bench_function("mutation_256", |b| {
        b.iter(|| {
            let mut rest = black_box(&bytes[..]);
            while let Ok(Decoded::Whole(frame, len)) = Frame::decode(rest, FRAME_BYTES_MAX) {
                black_box(Message::decode(&frame, true).unwrap());
                rest = &rest[len..];
            }
            assert!(rest.is_empty());
        });
    });
    group.finish();
}

/// Takes everything and keeps nothing.
struct Taker;

impl Endpoint for Taker {
    fn try_apply(&self, _: ShardId, mut batch: Box<WriteBatch>) -> Result<Box<WriteBatch>, EndpointRefused> {
        batch.clear();
        Ok(batch)
    }
}

/// The server's side of one connection: says yes to everything, and writes chunks when it is told to.
struct Server {
    tcp: TcpStream,
    read: Vec<u8>,
    window: u64,
    sent: u64,
    acked: u64,
    streams: u16,
}

impl Server {
    fn serve(tcp: TcpStream, chunks: &Receiver<u64>) {
        tcp.set_nodelay(true).unwrap();
        let mut server = Self { tcp, read: Vec::new(), window: u64::MAX, sent: 0, acked: 0, streams: 0 };
        while server.streams < VBUCKETS {
            if !server.read_some() {
                return;
            }
        }
        let (mut chunk, mut seqno) = (frames(), 0_u64);
        while let Ok(count) = thread::recv(chunks, &Until::default()) {
            for _ in 0..count {
                let rounds = chunk.chunks_mut(FRAME_BYTES * usize::from(VBUCKETS));
                for round in rounds {
                    seqno += 1;
                    for frame in round.chunks_mut(FRAME_BYTES) {
                        frame[24..32].copy_from_slice(&seqno.to_be_bytes());
                    }
                }
                for piece in chunk.chunks(256 * 1024) {
                    while server.sent - server.acked > server.window {
                        if !server.read_some() {
                            return;
                        }
                    }
                    server.sent += piece.len() as u64;
                    server.tcp.write_all(piece).unwrap();
                }
            }
        }
    }

    fn read_some(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let Ok(read) = self.tcp.read(&mut bytes) else { return false };
        self.read.extend_from_slice(&bytes[..read]);
        loop {
            let (taken, answer) = match Frame::decode(&self.read, FRAME_BYTES_MAX).unwrap() {
                Decoded::Partial(_) => return read > 0,
                Decoded::Whole(frame, taken) => {
                    let value: &[u8] = match frame.opcode {
                        Opcode::HELLO => frame.value,
                        Opcode::SASL_LIST_MECHS => b"PLAIN",
                        Opcode::DCP_STREAM_REQ => &[1; 16],
                        _ => &[],
                    };
                    if frame.opcode == Opcode::DCP_CONTROL && frame.key == b"connection_buffer_size" {
                        self.window = std::str::from_utf8(frame.value).unwrap().parse().unwrap();
                    }
                    self.streams += u16::from(frame.opcode == Opcode::DCP_STREAM_REQ);
                    let mut answer = Vec::new();
                    if frame.opcode == Opcode::DCP_BUFFER_ACK {
                        self.acked += u64::from(u32::from_be_bytes(frame.extras.try_into().unwrap()));
                    } else {
                        let (key, extras): (&[u8], &[u8]) = (&[], &[]);
                        let frame =
                            Frame { magic: Magic::Response, vb_or_status: 0, key, extras, value, ..frame };
                        frame.encode(&mut answer).unwrap();
                    }
                    (taken, answer)
                }
            };
            self.read.drain(..taken);
            self.tcp.write_all(&answer).unwrap();
        }
    }
}

struct Path {
    kvdata: KvData,
    connection: Connection,
    chunks: Sender<u64>,
    events: u64,
}

impl Path {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (chunks, told) = bounded(1);
        let server = move || Server::serve(listener.accept().unwrap().0, &told);
        drop(thread::spawn("bench-server", server).unwrap());
        let login = Login { user: "u".to_owned(), password: "p".to_owned(), plain_without_tls: true };
        let config = DcpConfig::new(address, "b", VBUCKETS, login);
        let logger = Logger::root(Discard, o!());
        let feed = Feed::new(&logger);
        let generation = Generation(1);
        let link = feed.begin_generation(generation, &TsVbuuid::default()).unwrap();
        let shape =
            KvDataConfig { node: 0, workers: 2, vbuckets: VBUCKETS, shards: 8, worker_queue_batches: 4 };
        let endpoint: Arc<dyn Endpoint> = Arc::new(Taker);
        let (upstream, batches) = bounded(4);
        let kvdata = KvData::start(&shape, &endpoint, batches, &link, &logger).unwrap();
        let output = DcpOutput { generation, batches: upstream, budget: ByteBudget::new(64 << 20) };
        let connection = Connection::open(&config, 0, output, &logger, &Until::default()).unwrap();
        for vb in 0..VBUCKETS {
            connection.request_stream(&StreamRequest::follow(VbId(vb), Position::ZERO)).unwrap();
        }
        Self { kvdata, connection, chunks, events: 0 }
    }

    fn run(&mut self, chunks: u64) -> Duration {
        self.events += chunks * CHUNK_EVENTS as u64;
        let (_holder, never) = thread::fin();
        let began = Instant::now();
        thread::send(&self.chunks, chunks, &never).unwrap();
        while self.kvdata.worker_stats().documents() < self.events {
            let _ = never.wait(&Until::within(Duration::from_micros(100)));
        }
        began.elapsed()
    }
}

fn tcp(c: &mut Criterion) {
    let mut path = Path::start();
    let mut group = c.benchmark_group("tcp");
    group.throughput(Throughput::Elements(CHUNK_EVENTS as u64)).sample_size(10);
    group.bench_function("noop_endpoint", |b| b.iter_custom(|chunks| path.run(chunks)));
    group.finish();
    path.connection.close(&Until::default()).unwrap();
    path.kvdata.close(&Until::default()).unwrap();
}

criterion_group!(benches, decode, tcp);
criterion_main!(benches);
