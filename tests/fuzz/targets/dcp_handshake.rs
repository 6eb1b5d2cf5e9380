//! Bytes as a server's answers while a connection is opened: whatever it says, the opening ends, and what it ends with
//! can be told.

#![no_main]

use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::Duration;

use crossbeam::channel::bounded;
use dormouse::event::{ByteBudget, Generation};
use dormouse::source::dcp::{Connection, DcpConfig, DcpOutput, Login};
use dormouse::thread::Until;
use libfuzzer_sys::fuzz_target;
use slog::{Discard, Logger, o};

#[path = "../../support/little_node.rs"]
mod little_node;
mod server;

use little_node::{Answer, serve, yes};
use server::Server;

static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(answer));

/// Answers each request with what stands up to the next line feed: the status, and the value. When nothing is left it
/// hangs up.
fn answer(mut tcp: TcpStream, bytes: &[u8]) {
    let mut answers = bytes.split(|byte| *byte == b'\n');
    serve(&mut tcp, |asked| {
        let (status, said) = answers.next()?.split_first().unwrap_or((&0, &[]));
        // So the nonce of the client is in the server's, as it has to be.
        let nonce = asked.value.windows(3).position(|part| part == b",r=").map(|at| &asked.value[at + 3..]);
        let value = match (said.strip_prefix(b"r="), nonce) {
            (Some(rest), Some(nonce)) => [&b"r="[..], nonce, rest].concat(),
            // What has to be answered well.
            _ if said == b"*" => yes(asked).value,
            _ => said.to_vec(),
        };
        Some(Answer { status: u16::from(*status), value, is_last: false })
    });
}

fuzz_target!(|data: &[u8]| {
    SERVER.hand(data);
    let login =
        Login { user: "u".to_owned(), password: "p".to_owned(), plain_without_tls: data.len() % 2 == 0 };
    let config = DcpConfig::new(SERVER.address, "b", 2, login);
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
