//! A node for targets that open connections: for each it is handed bytes, and does with them what the target says.

use std::net::{SocketAddr, TcpListener, TcpStream};

use crossbeam::channel::{Sender, bounded};
use dormouse::thread::{self, Until};

/// See the module.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    bytes: Sender<Vec<u8>>,
}

impl Server {
    /// Listens until the process ends. It serves one connection after the other.
    pub fn start(serve: fn(TcpStream, &[u8])) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (bytes, told) = bounded::<Vec<u8>>(1);
        let work = move || {
            while let Ok(bytes) = thread::recv(&told, &Until::default()) {
                serve(listener.accept().expect("a connection").0, &bytes);
            }
        };
        drop(thread::spawn("fuzz-server", work).expect("a thread"));
        Self { address, bytes }
    }

    /// The next connection is served with these.
    pub fn hand(&self, bytes: &[u8]) {
        let (_holder, never) = thread::fin();
        assert!(thread::send(&self.bytes, bytes.to_vec(), &never).is_ok(), "the server is there");
    }
}
