//! The part of a server that clients write documents through, on a port of its own: what the official SDKs need, and
//! no more. What they write is on the streams of the same bucket, and the seqnos that they are told are those of its
//! history.
//!
//! It takes requests as they come: how these clients behave is not what is tested. What it cannot do it notes as a
//! fault.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use dormouse::source::dcp::CollectionId;
use dormouse::thread::{self, Cancel, Thread, Until};
use parking_lot::Mutex;
use serde_json::json;

use super::asked::{Asked, take_frame};
use super::bucket::What;
use super::scram::Exchange;
use super::{BUCKET_NAME, PASSWORD, Raw, State, USER};

const WAIT: Duration = Duration::from_millis(1);
/// Features of HELLO: seqnos of what was written, extended errors, buckets, compression, JSON, collections.
const KNOWN: [u16; 6] = [0x04, 0x07, 0x08, 0x0a, 0x0b, 0x12];
/// Path and id of a collection beside the default one.
pub(crate) const COLLECTION: (&str, u32) = ("inventory.airport", 0x555);

pub(super) fn accept(listener: &TcpListener, state: &Arc<Mutex<State>>, stop: &Cancel) {
    let mut threads: Vec<Thread<()>> = Vec::new();
    let port = listener.local_addr().unwrap().port();
    while stop.fin().wait(&Until::within(WAIT)).is_err() {
        let Ok((tcp, _)) = listener.accept() else { continue };
        tcp.set_nonblocking(false).unwrap();
        tcp.set_read_timeout(Some(WAIT)).unwrap();
        let mut client = Client { tcp, state: Arc::clone(state), port, read: Vec::new(), exchange: None };
        let stop = stop.clone();
        let serve = move || while !stop.is_cancelled() && client.turn().is_ok() {};
        threads.push(thread::spawn("test-kv", serve).unwrap());
    }
    for thread in threads {
        thread.join(&crate::support::watchdog()).unwrap();
    }
}

struct Client {
    tcp: TcpStream,
    state: Arc<Mutex<State>>,
    port: u16,
    read: Vec<u8>,
    exchange: Option<Exchange>,
}

/// What a write is. Whether a value is JSON a server finds out for itself.
fn put(asked: &Asked<'_>) -> What {
    let value = asked.value.to_vec();
    let compressed = asked.datatype & 2;
    let inflated = if compressed == 0 {
        value.clone()
    } else {
        snap::raw::Decoder::new().decompress_vec(&value).unwrap()
    };
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&inflated).is_ok();
    What::Put { value, datatype: compressed | u8::from(is_json) }
}

impl Client {
    fn turn(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        match self.tcp.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.read.extend_from_slice(&bytes[..read]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
        while let Some(frame) = take_frame(&mut self.read) {
            let asked = Asked::of(&frame).ok_or(io::ErrorKind::InvalidData)?;
            let answer = if asked.magic == 0x80 { self.judge(&asked) } else { self.refuse(&asked) };
            self.tcp.write_all(&answer)?;
        }
        Ok(())
    }

    fn refuse(&self, asked: &Asked<'_>) -> Vec<u8> {
        let fault = format!("a client asks for {:#x} with magic {:#x}", asked.opcode, asked.magic);
        self.state.lock().faults.push(fault);
        asked.answer(0x81, b"")
    }

    fn judge(&mut self, asked: &Asked<'_>) -> Vec<u8> {
        match asked.opcode {
            0x1f => {
                let wanted = asked.value.as_chunks::<2>().0.iter().map(|two| u16::from_be_bytes(*two));
                let granted = wanted.filter(|feature| KNOWN.contains(feature));
                asked.answer(0, &granted.flat_map(u16::to_be_bytes).collect::<Vec<u8>>())
            }
            // The errors that a client may meet: none that it has to be told about.
            0xfe => asked.answer(0, br#"{"version":1,"revision":1,"errors":{}}"#),
            0x20 => asked.answer(0, b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1"),
            0x21 => {
                let mechanism = String::from_utf8_lossy(asked.key);
                self.exchange = Exchange::begin(&mechanism, asked.value, USER);
                match &self.exchange {
                    Some(exchange) => asked.answer(0x21, exchange.server_first.as_bytes()),
                    None => asked.answer(0x20, b""),
                }
            }
            0x22 => {
                let exchange = self.exchange.take();
                match exchange.and_then(|exchange| exchange.finish(asked.value, PASSWORD)) {
                    Some(said) => asked.answer(0, said.as_bytes()),
                    None => asked.answer(0x20, b""),
                }
            }
            0x89 if asked.key == BUCKET_NAME.as_bytes() => asked.answer(0, b""),
            0xb5 => asked.answer(0, self.map().as_bytes()),
            0xbb if asked.value == COLLECTION.0.as_bytes() => collection(asked),
            0x01 => self.write(asked, put(asked)),
            0x04 => self.write(asked, What::Delete),
            _ => self.refuse(asked),
        }
    }

    /// The cluster is one node: this one.
    fn map(&self) -> String {
        let vbuckets = self.state.lock().vbs.len();
        json!({
            "rev": 1,
            "revEpoch": 1,
            "name": BUCKET_NAME,
            "uuid": "4a0b00000000000000000000000000aa",
            "nodeLocator": "vbucket",
            "bucketCapabilities": ["collections", "cccp", "couchapi", "cbhello", "touch"],
            "nodes": [{ "hostname": "$HOST", "ports": { "direct": self.port } }],
            "nodesExt": [{ "services": { "kv": self.port }, "thisNode": true }],
            "vBucketServerMap": {
                "hashAlgorithm": "CRC",
                "numReplicas": 0,
                "serverList": [format!("$HOST:{}", self.port)],
                "vBucketMap": vec![[0]; vbuckets],
            },
        })
        .to_string()
    }

    /// Writes a document, and tells the branch and the seqno of that.
    fn write(&self, asked: &Asked<'_>, what: What) -> Vec<u8> {
        let (collection, key) = CollectionId::split(asked.key).unwrap();
        let key = std::str::from_utf8(key).unwrap();
        let mut state = self.state.lock();
        let vb = &mut state.vbs[usize::from(asked.vb)];
        let seqno = vb.push(collection.0, key, what);
        vb.persisted = seqno;
        let extras = [vb.log[0].0.to_be_bytes(), seqno.to_be_bytes()].concat();
        let (opcode, opaque) = (asked.opcode, asked.opaque);
        let mut answer = Raw { magic: 0x81, opcode, opaque, extras: &extras, ..Raw::default() }.bytes();
        // A version, of which clients only want to know that there is one.
        answer[16..24].copy_from_slice(&seqno.to_be_bytes());
        answer
    }
}

fn collection(asked: &Asked<'_>) -> Vec<u8> {
    let (opcode, opaque) = (asked.opcode, asked.opaque);
    let extras = [&1_u64.to_be_bytes()[..], &COLLECTION.1.to_be_bytes()].concat();
    Raw { magic: 0x81, opcode, opaque, extras: &extras, ..Raw::default() }.bytes()
}
