//! Nodes of a cluster that go away, signals that come while one is waited for, and forks with a connection to one.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use dormouse::event::{ByteBudget, EventBatch, Generation, VbId};
use dormouse::source::dcp::{Connection, DcpConfig, DcpEnd, DcpOutput, Login, Opcode, Request, Tls};
use fork::{Fork, fork};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGPIPE, SIGUSR1};
use slog::{Discard, Logger, o};

use crate::forked::{end_child, wait_for};
use crate::little_node::{Answer, serve, yes};
use crate::process::{eventually, task};
use crate::service::minutes;

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// A node that agrees to everything, and then does something else.
struct Node {
    config: DcpConfig,
    thread: JoinHandle<()>,
}

impl Node {
    fn start(is_tls: bool, then: impl FnOnce(&mut dyn Wire) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let login = Login { user: "u".to_owned(), password: "p".to_owned(), plain_without_tls: true };
        let mut config = DcpConfig::new(listener.local_addr().unwrap(), "b", 1, login);
        config.step_timeout = Duration::from_secs(60);
        config.noop_interval = Duration::from_secs(600);
        let session = is_tls.then(|| {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            config.tls = Some(Tls::new("localhost", made.cert.pem().as_bytes()).unwrap());
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let server = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key.into())
                .unwrap();
            rustls::ServerConnection::new(Arc::new(server)).unwrap()
        });
        let serve_one = move || {
            let (tcp, _) = listener.accept().unwrap();
            let mut wire: Box<dyn Wire> = match session {
                None => Box::new(tcp),
                Some(session) => Box::new(rustls::StreamOwned::new(session, tcp)),
            };
            let is_agreed = serve(&mut wire, |asked| {
                let mut answer = yes(asked);
                answer.is_last = asked.key == b"send_stream_end_on_client_close_stream";
                Some(answer)
            });
            assert!(is_agreed, "the connection was not opened");
            then(&mut *wire);
        };
        let thread = std::thread::Builder::new().name("t-node".to_owned()).spawn(serve_one).unwrap();
        Self { config, thread }
    }

    fn connect(&self, number: u16) -> (Connection, Receiver<EventBatch>) {
        let (sender, batches) = bounded(1);
        let output =
            DcpOutput { generation: Generation(1), batches: sender, budget: ByteBudget::new(1 << 20) };
        let logger = Logger::root(Discard, o!());
        (Connection::open(&self.config, number, output, &logger, &minutes(1)).unwrap(), batches)
    }
}

pub(crate) fn while_it_is_answered() {
    // In place of what the Rust runtime does with the signal: a service that has no such runtime is ended by it.
    let came = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGPIPE, Arc::clone(&came)).unwrap();
    for is_tls in [false, true] {
        let node = Node::start(is_tls, |wire| {
            let mut noop = Vec::new();
            Request::NoopAnswer.encode(7, &mut noop).unwrap();
            // As a node asks, and more often than there can be an answer before it has gone.
            noop[0] = 0x80;
            wire.write_all(&noop.repeat(500)).unwrap();
            wire.flush().unwrap();
        });
        let (connection, _batches) = node.connect(1);
        let end = connection.join(&minutes(1)).unwrap();
        assert!(matches!(end, Some(DcpEnd::Failed(_))), "{end:?}");
        assert!(connection.stats().noops() > 0, "there was nothing to answer");
        node.thread.join().unwrap();
        assert!(!came.load(Ordering::SeqCst), "the signal came, with TLS: {is_tls}");
    }
    signal_hook::low_level::raise(SIGPIPE).unwrap();
    eventually("a signal that was raised", || came.load(Ordering::SeqCst));
}

/// Interrupts a thread of this process some times.
fn interrupt(thread: &str, came: &AtomicBool) {
    for _ in 0..20 {
        came.store(false, Ordering::SeqCst);
        kill_process(Pid::from_raw(task(thread)).unwrap(), Signal::USR1).unwrap();
        eventually("a signal that was sent", || came.load(Ordering::SeqCst));
    }
}

pub(crate) fn and_signals() {
    let came = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGUSR1, Arc::clone(&came)).unwrap();
    for is_tls in [false, true] {
        let (go_on, told) = channel::<()>();
        let node = Node::start(is_tls, move |wire| {
            let mut wire = wire;
            serve(&mut wire, |asked| {
                let is_last = asked.opcode == Opcode::DCP_FAILOVER_LOG;
                Some(Answer { is_last, ..yes(asked) })
            });
            // What is asked from here on waits, until it is told.
            told.iter().next();
            serve(&mut wire, |asked| Some(yes(asked)));
        });
        let (connection, _batches) = node.connect(7);
        interrupt("dcp-read-7", &came);
        connection.failover_log(VbId(0), &minutes(1)).unwrap();
        let (count, is_enough) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let ask = || {
                while !is_enough.load(Ordering::SeqCst) {
                    connection.close_stream(VbId(0)).unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                }
            };
            let asker =
                std::thread::Builder::new().name("t-asker".to_owned()).spawn_scoped(scope, ask).unwrap();
            eventually("a write that waits", || {
                let before = count.load(Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(20));
                before > 0 && count.load(Ordering::SeqCst) == before
            });
            interrupt("t-asker", &came);
            is_enough.store(true, Ordering::SeqCst);
            go_on.send(()).unwrap();
            asker.join().unwrap();
        });
        connection.failover_log(VbId(0), &minutes(1)).unwrap();
        assert!(matches!(connection.close(&minutes(1)), Ok(Some(DcpEnd::Stopped))));
        node.thread.join().unwrap();
    }
}

pub(crate) fn in_a_fork() {
    let node = Node::start(false, |wire| {
        let mut wire = wire;
        serve(&mut wire, |asked| Some(yes(asked)));
    });
    let (connection, _batches) = node.connect(9);
    match fork().unwrap() {
        Fork::Child => end_child(|| {
            let running = connection.close(&minutes(1)).unwrap_err().threads;
            assert!(running.contains(&"dcp-read-9".to_owned()), "{running:?}");
        }),
        Fork::Parent(child) => wait_for(child),
    }
    connection.failover_log(VbId(0), &minutes(1)).unwrap();
    assert!(matches!(connection.close(&minutes(1)), Ok(Some(DcpEnd::Stopped))));
    node.thread.join().unwrap();
}
