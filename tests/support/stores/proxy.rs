//! A proxy on loopback that does to requests and answers what networks and servers do.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse::thread::{Cancel, Until};
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;

use super::http::{Request, Server, answer, error_document, read_body, read_head};

/// What is done to one request or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is reset after the head of the request.
    ResetBeforeBody,
    /// It is reset in the middle of the request's body.
    ResetWithinBody,
    /// It is reset when the request was read, which reaches nobody.
    ResetAfterBody,
    /// It is reset in the middle of the answer's body.
    ResetWithinAnswer,
    /// The request is carried out, and its answer is lost.
    LostAnswer,
    /// The request is read, and nothing more happens.
    Stall,
    /// A half of the request's body is read, and nothing more happens.
    StallWithinBody,
    /// The answer's body comes a byte at a time.
    Dribble,
    /// The request's body is taken a little at a time.
    DribbleUp,
    /// The server is busy, says so before the body is read, and closes.
    BusyBeforeBody,
    /// Success, with a document that says otherwise.
    ErrorInSuccess,
    /// Half of the answer's body, and the end of the connection.
    Truncated,
    /// The answer's body is shorter than it says, and its connection stays open.
    ShorterThanSaid,
    /// The answer says that its body is shorter than it is.
    LongerThanSaid,
    /// The answer's body comes packed.
    Packed,
    /// A bit of the request's body is not what was sent.
    FlippedUp,
    /// A bit of the answer's body is not what the server sent.
    FlippedDown,
    /// The credentials are too old.
    ExpiredToken,
    /// The clock is off.
    ClockSkew,
}

/// Faults for requests that come, and what came.
pub(crate) struct Proxy {
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: u16,
    faults: Mutex<Vec<Planned>>,
    requests: AtomicUsize,
    faulty: AtomicUsize,
    /// Ends what stalls.
    over: Cancel,
}

struct Planned {
    fault: Fault,
    /// The request that it befalls, counted from 1 over those that `befalls`; 0 is each.
    number: usize,
    befalls: fn(&Request) -> bool,
    seen: usize,
}

impl Proxy {
    /// A proxy before the server on this port of the machine.
    pub(crate) fn before(upstream: u16) -> Self {
        let shared = Arc::new(Shared {
            upstream,
            faults: Mutex::default(),
            requests: AtomicUsize::new(0),
            faulty: AtomicUsize::new(0),
            over: Cancel::new(),
        });
        let serving = Arc::clone(&shared);
        let server = Server::of_connections(move |stream| serving.serve(stream));
        Self { server, shared }
    }

    /// Plans a fault for request `number`, from 1, of those that `befalls` holds for; 0 is each of them.
    pub(crate) fn plan(&self, fault: Fault, number: usize, befalls: fn(&Request) -> bool) {
        *self.shared.faults.lock() = vec![Planned { fault, number, befalls, seen: 0 }];
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Requests that came.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Those that a fault befell.
    pub(crate) fn faulty(&self) -> usize {
        self.shared.faulty.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.cancel();
    }
}

impl Shared {
    fn fault(&self, request: &Request) -> Option<Fault> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut faults = self.faults.lock();
        let planned = faults.iter_mut().find(|planned| (planned.befalls)(request))?;
        planned.seen += 1;
        let is_due = planned.number == 0 || planned.seen == planned.number;
        is_due.then(|| {
            self.faulty.fetch_add(1, Ordering::Relaxed);
            planned.fault
        })
    }

    fn stall(&self) {
        let _ = self.over.fin().wait(&Until::within(Duration::from_secs(60)));
    }

    /// One request of one connection: whatever comes after needs a new one.
    fn serve(&self, mut stream: BufReader<TcpStream>) -> std::io::Result<()> {
        let Some(mut request) = read_head(&mut stream)? else { return Ok(()) };
        let fault = self.fault(&request);
        match fault {
            // What was not read makes the close a reset.
            Some(Fault::ResetBeforeBody) => return Ok(()),
            Some(Fault::BusyBeforeBody) => {
                let busy =
                    answer(503, "Retry-After: 0\r\n", &error_document("SlowDown", "Reduce your rate."));
                return stream.get_mut().write_all(&busy);
            }
            Some(Fault::ResetWithinBody) => return take_half(&request, &mut stream),
            Some(Fault::StallWithinBody) => {
                take_half(&request, &mut stream)?;
                self.stall();
                return Ok(());
            }
            Some(Fault::DribbleUp) => return self.take_slowly(&request, &mut stream),
            _ => {}
        }
        read_body(&mut request, &mut stream)?;
        let client = stream.get_mut();
        match fault {
            Some(Fault::ResetAfterBody) => return reset(client),
            Some(Fault::Stall) => {
                self.stall();
                return Ok(());
            }
            Some(Fault::ErrorInSuccess) => {
                return client.write_all(&answer(200, "", &error_document("InternalError", "Try again.")));
            }
            Some(Fault::ExpiredToken) => {
                return client.write_all(&answer(
                    400,
                    "",
                    &error_document("ExpiredToken", "The token has expired."),
                ));
            }
            Some(Fault::ClockSkew) => {
                let text = "The difference between the request time and the server's time is too large.";
                let date = "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
                return client.write_all(&answer(403, date, &error_document("RequestTimeTooSkewed", text)));
            }
            Some(Fault::FlippedUp) => {
                if let Some(byte) = request.body.first_mut() {
                    *byte ^= 1;
                }
            }
            _ => {}
        }
        let answered = self.forward(&request)?;
        self.hand_back(client, &answered, fault)
    }

    /// Takes the body so slowly that the client never waits long, and is never done.
    fn take_slowly(&self, request: &Request, stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
        welcome(request, stream)?;
        let mut piece = [0; 4096];
        while stream.read(&mut piece)? > 0 && !self.over.is_cancelled() {
            let _ = self.over.fin().wait(&Until::within(Duration::from_millis(50)));
        }
        Ok(())
    }

    fn forward(&self, request: &Request) -> std::io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(("127.0.0.1", self.upstream))?;
        let head: String = request
            .head
            .split_inclusive('\n')
            .filter(|line| !line.to_ascii_lowercase().starts_with("expect:"))
            .collect();
        server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        server.write_all(&request.body)?;
        let mut answered = Vec::new();
        server.read_to_end(&mut answered)?;
        Ok(answered)
    }

    fn hand_back(
        &self,
        client: &mut TcpStream,
        answered: &[u8],
        fault: Option<Fault>,
    ) -> std::io::Result<()> {
        let ends = answered.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let (head, body) = answered.split_at(ends);
        match fault {
            Some(Fault::LostAnswer) => Ok(()),
            Some(Fault::Dribble) => {
                client.write_all(head)?;
                for byte in body {
                    client.write_all(&[*byte])?;
                    let _ = self.over.fin().wait(&Until::within(Duration::from_millis(10)));
                }
                Ok(())
            }
            Some(Fault::Truncated) => client.write_all(&answered[..ends + body.len() / 2]),
            Some(Fault::ResetWithinAnswer) => {
                client.write_all(&answered[..ends + body.len() / 2])?;
                reset(client)
            }
            Some(Fault::ShorterThanSaid) => {
                client.write_all(&answered[..answered.len() - usize::from(!body.is_empty())])?;
                self.stall();
                Ok(())
            }
            Some(Fault::LongerThanSaid) => {
                client.write_all(&with_length(head, body.len().saturating_sub(1)))?;
                client.write_all(body)
            }
            Some(Fault::Packed) => {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(body)?;
                let packed = gzip.finish()?;
                let head = with_length(head, packed.len());
                client.write_all(head.strip_suffix(b"\r\n").unwrap())?;
                client.write_all(b"Content-Encoding: gzip\r\n\r\n")?;
                client.write_all(&packed)
            }
            Some(Fault::FlippedDown) if !body.is_empty() => {
                let mut flipped = answered.to_vec();
                flipped[ends + body.len() / 2] ^= 1;
                client.write_all(&flipped)
            }
            _ => client.write_all(answered),
        }
    }
}

/// Says that the body is wanted, where the client waits for that.
fn welcome(request: &Request, stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    if request.waits() {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    Ok(())
}

/// Reads a half of the body; what is left of it makes a close a reset.
fn take_half(request: &Request, stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    welcome(request, stream)?;
    let half = request.body_bytes() as u64 / 2;
    std::io::copy(&mut stream.take(half), &mut std::io::sink()).map(drop)
}

/// Has the connection end with a reset, whatever was read and sent.
fn reset(stream: &TcpStream) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?)
}

/// The head of an answer with another length.
fn with_length(head: &[u8], length: usize) -> Vec<u8> {
    let text = std::str::from_utf8(head).unwrap();
    let lines = text.split_inclusive('\n').map(|line| {
        let is_length = line.to_ascii_lowercase().starts_with("content-length:");
        if is_length { format!("Content-Length: {length}\r\n") } else { line.to_owned() }
    });
    lines.collect::<String>().into_bytes()
}
