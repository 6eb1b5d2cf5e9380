//! A node of a cluster for benches, in this process: it says yes to everything, and sends documents as fast as the
//! flow-control window allows. What its threads cost is known, and is not the library's.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse::event::VBUCKETS_MAX;
use dormouse::source::dcp::{DcpConfig, Decoded, FRAME_BYTES_MAX, Frame, Login, Magic, Opcode};
use dormouse::thread;

/// Bytes that are written before the consumer is listened to again.
const TURN_BYTES: usize = 256 * 1024;
/// Documents of a vbucket that follow each other.
const RUN: u64 = 64;
const VBUUID: u64 = 7;

/// The bytes of a mutation, and where its number goes in.
pub(crate) struct Document {
    pub(crate) key: &'static [u8],
    pub(crate) value: Vec<u8>,
    /// Writes the number of a document into its key and its value.
    pub(crate) number: fn(&mut [u8], &mut [u8], u64),
}

struct Shared {
    vbuckets: u16,
    document: Document,
    address: SocketAddr,
    /// Seqno up to which each vbucket is sent.
    allowed: AtomicU64,
}

/// A node that listens until the process ends.
pub(crate) struct Node {
    shared: Arc<Shared>,
}

impl Node {
    pub(crate) fn start(vbuckets: u16, document: Document) -> Self {
        assert!(vbuckets <= VBUCKETS_MAX);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { vbuckets, document, address, allowed: AtomicU64::new(0) });
        let accepted = Arc::clone(&shared);
        let accept = move || {
            for tcp in listener.incoming() {
                let shared = Arc::clone(&accepted);
                drop(
                    thread::spawn("bench-node", move || Session::new(tcp.unwrap(), &shared).serve()).unwrap(),
                );
            }
        };
        drop(thread::spawn("bench-node", accept).unwrap());
        Self { shared }
    }

    /// So many more changes are there in each vbucket.
    pub(crate) fn allow(&self, changes: u64) {
        self.shared.allowed.fetch_add(changes, Ordering::Release);
    }

    pub(crate) fn config(&self) -> DcpConfig {
        let login = Login { user: "u".to_owned(), password: "p".to_owned(), plain_without_tls: true };
        DcpConfig::new(self.shared.address, "b", self.shared.vbuckets, login)
    }
}

struct Stream {
    vb: u16,
    opaque: u32,
    at: u64,
    /// Last seqno of the window that was begun.
    end: u64,
}

/// One connection.
struct Session<'a> {
    shared: &'a Shared,
    tcp: TcpStream,
    read: Vec<u8>,
    out: Vec<u8>,
    window: u64,
    sent: u64,
    acked: u64,
    streams: Vec<Stream>,
    turn: usize,
}

fn frame<'a>(opcode: Opcode, extras: &'a [u8], key: &'a [u8], value: &'a [u8]) -> Frame<'a> {
    let (magic, framing): (_, &[u8]) = (Magic::Request, &[]);
    Frame { magic, opcode, datatype: 0, vb_or_status: 0, opaque: 0, cas: 0, framing, extras, key, value }
}

/// Begins a window.
fn marker(stream: &Stream, extras: &[u8], out: &mut Vec<u8>) {
    let marker = frame(Opcode::DCP_SNAPSHOT_MARKER, extras, &[], &[]);
    Frame { vb_or_status: stream.vb, opaque: stream.opaque, ..marker }.encode(out).unwrap();
}

impl<'a> Session<'a> {
    fn new(tcp: TcpStream, shared: &'a Shared) -> Self {
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let (read, out, streams) = (Vec::new(), Vec::new(), Vec::new());
        Self { shared, tcp, read, out, window: u64::MAX, sent: 0, acked: 0, streams, turn: 0 }
    }

    fn serve(mut self) {
        let mut documents = Vec::new();
        loop {
            let may_send = self.sent - self.acked <= self.window;
            self.tcp.set_nonblocking(may_send && self.has_more()).unwrap();
            let is_there = self.read_some();
            self.tcp.set_nonblocking(false).unwrap();
            if !is_there {
                return;
            }
            if may_send {
                documents.clear();
                self.put_documents(&mut documents);
                self.sent += documents.len() as u64;
                self.out.append(&mut documents);
            }
            if self.tcp.write_all(&self.out).is_err() {
                return;
            }
            self.out.clear();
        }
    }

    fn has_more(&self) -> bool {
        let allowed = self.shared.allowed.load(Ordering::Acquire);
        self.streams.iter().any(|stream| stream.at < allowed)
    }

    /// The next documents of a stream after the other.
    fn put_documents(&mut self, out: &mut Vec<u8>) {
        let allowed = self.shared.allowed.load(Ordering::Acquire);
        let vbuckets = u64::from(self.shared.vbuckets);
        let Document { key, value, number } = &self.shared.document;
        let (mut template, extras) = (Vec::new(), [0; 31]);
        frame(Opcode::DCP_MUTATION, &extras, key, value).encode(&mut template).unwrap();
        template[5] = 1;
        for _ in 0..self.streams.len() {
            if out.len() >= TURN_BYTES {
                break;
            }
            self.turn = (self.turn + 1) % self.streams.len();
            let stream = &mut self.streams[self.turn];
            if stream.at >= allowed {
                continue;
            }
            if stream.at >= stream.end {
                // What is there at first comes from disk, in one window from where it was asked for.
                let (start, kind) = if stream.at == 0 { (0, 6) } else { (stream.at + 1, 1) };
                stream.end = allowed;
                let window = [start, allowed].map(u64::to_be_bytes).concat();
                marker(stream, &[&window[..], &[0, 0, 0, kind]].concat(), out);
            }
            let end = stream.end.min(stream.at + RUN);
            template[6..8].copy_from_slice(&stream.vb.to_be_bytes());
            template[12..16].copy_from_slice(&stream.opaque.to_be_bytes());
            while stream.at < end {
                stream.at += 1;
                let start = out.len();
                out.extend_from_slice(&template);
                let document = &mut out[start..];
                document[24..32].copy_from_slice(&stream.at.to_be_bytes());
                let (key_bytes, value_bytes) = document[55..].split_at_mut(key.len());
                number(key_bytes, value_bytes, stream.at * vbuckets + u64::from(stream.vb));
            }
        }
    }

    /// Answers what was asked. `false` when nothing comes any more.
    fn read_some(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.tcp.read(&mut bytes) {
            Ok(0) => return false,
            Ok(read) => self.read.extend_from_slice(&bytes[..read]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return false,
        }
        let asked = std::mem::take(&mut self.read);
        let mut rest = &asked[..];
        while let Decoded::Whole(frame, taken) = Frame::decode(rest, FRAME_BYTES_MAX).unwrap() {
            self.answer(&frame);
            rest = &rest[taken..];
        }
        self.read = rest.to_vec();
        true
    }

    fn answer(&mut self, asked: &Frame<'_>) {
        let log = [VBUUID.to_be_bytes(), 0_u64.to_be_bytes()].concat();
        let value = match asked.opcode {
            Opcode::DCP_BUFFER_ACK => {
                self.acked += u64::from(u32::from_be_bytes(asked.extras.try_into().unwrap()));
                return;
            }
            Opcode::DCP_CONTROL if asked.key == b"connection_buffer_size" => {
                self.window = std::str::from_utf8(asked.value).unwrap().parse().unwrap();
                Vec::new()
            }
            Opcode::HELLO => asked.value.to_vec(),
            Opcode::SASL_LIST_MECHS => b"PLAIN".to_vec(),
            Opcode::GET_CLUSTER_CONFIG => self.map().into_bytes(),
            Opcode::GET_ALL_VB_SEQNOS => self.seqnos(),
            Opcode::DCP_FAILOVER_LOG => log,
            Opcode::DCP_STREAM_REQ => {
                let at = u64::from_be_bytes(asked.extras[8..16].try_into().unwrap());
                self.streams.push(Stream { vb: asked.vb_or_status, opaque: asked.opaque, at, end: at });
                log
            }
            _ => Vec::new(),
        };
        let (magic, vb_or_status, key, extras): (_, _, &[u8], &[u8]) = (Magic::Response, 0, &[], &[]);
        let answer = Frame { magic, vb_or_status, key, extras, value: &value, ..*asked };
        answer.encode(&mut self.out).unwrap();
    }

    fn map(&self) -> String {
        let (port, map) =
            (self.shared.address.port(), vec!["[0]"; usize::from(self.shared.vbuckets)].join(","));
        format!(r#"{{"rev":1,"vBucketServerMap":{{"serverList":["$HOST:{port}"],"vBucketMap":[{map}]}}}}"#)
    }

    fn seqnos(&self) -> Vec<u8> {
        let high = self.shared.allowed.load(Ordering::Acquire).to_be_bytes();
        (0..self.shared.vbuckets).flat_map(|vb| [&vb.to_be_bytes()[..], &high].concat()).collect()
    }
}
