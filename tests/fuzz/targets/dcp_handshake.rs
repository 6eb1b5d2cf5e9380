//! Bytes as a server's answers while a connection is opened: whatever it says, the opening ends, and what it ends with
//! can be told.

#![no_main]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use dormouse::event::{ByteBudget, Generation};
use dormouse::source::dcp::{
    Connection, DcpConfig, DcpOutput, Decoded, FRAME_BYTES_MAX, Frame, Login, Magic,
};
use dormouse::thread::{self, Until};
use libfuzzer_sys::fuzz_target;
use slog::{Discard, Logger, o};

struct Server {
    address: SocketAddr,
    bytes: Sender<Vec<u8>>,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let (bytes, told) = bounded::<Vec<u8>>(1);
    drop(
        thread::spawn("fuzz-server", move || {
            while let Ok(bytes) = thread::recv(&told, &Until::default()) {
                serve(listener.accept().expect("a connection").0, &bytes);
            }
        })
        .expect("a thread"),
    );
    Server { address, bytes }
});

/// Answers each request with what stands up to the next line feed: the status, and the value. When nothing is left it
/// hangs up.
fn serve(mut tcp: TcpStream, bytes: &[u8]) {
    let mut answers = bytes.split(|byte| *byte == b'\n');
    let mut read = Vec::new();
    loop {
        let mut room = [0; 4096];
        let Ok(len @ 1..) = tcp.read(&mut room) else { return };
        read.extend_from_slice(&room[..len]);
        while let Ok(Decoded::Whole(asked, taken)) = Frame::decode(&read, FRAME_BYTES_MAX) {
            let Some(answer) = answers.next() else { return };
            let (status, said) = answer.split_first().unwrap_or((&0, &[]));
            // So the nonce of the client is in the server's, as it has to be.
            let nonce =
                asked.value.windows(3).position(|part| part == b",r=").map(|at| &asked.value[at + 3..]);
            let value = match (said.strip_prefix(b"r="), nonce) {
                (Some(rest), Some(nonce)) => [&b"r="[..], nonce, rest].concat(),
                _ if said == b"*" => asked.value.to_vec(),
                _ => said.to_vec(),
            };
            let (magic, key, extras): (_, &[u8], &[u8]) = (Magic::Response, &[], &[]);
            let mut written = Vec::new();
            let frame =
                Frame { magic, vb_or_status: u16::from(*status), key, extras, value: &value, ..asked };
            frame.encode(&mut written).expect("an answer is short");
            if tcp.write_all(&written).is_err() {
                return;
            }
            read.drain(..taken);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let server = &*SERVER;
    let (_holder, never) = thread::fin();
    assert!(thread::send(&server.bytes, data.to_vec(), &never).is_ok(), "the server is there");
    let login =
        Login { user: "u".to_owned(), password: "p".to_owned(), plain_without_tls: data.len() % 2 == 0 };
    let config = DcpConfig::new(server.address, "b", 2, login);
    let (sender, _batches) = bounded(1);
    let output = DcpOutput { generation: Generation(1), batches: sender, budget: ByteBudget::new(1 << 20) };
    let soon = Until::within(Duration::from_secs(20));
    match Connection::open(&config, 0, output, &Logger::root(Discard, o!()), &soon) {
        Ok(connection) => drop(connection.close(&soon).expect("its threads end")),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && soon.check().is_ok(), "{text}");
        }
    }
});
