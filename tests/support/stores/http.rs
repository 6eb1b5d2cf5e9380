//! A small HTTP server on loopback whose answers a test decides.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse::thread::{Thread, spawn};

use crate::support::watchdog;

/// A request as far as it was read. Names of headers are in lower case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The first line and the headers, as they came.
    pub(crate) head: String,
    pub(crate) method: String,
    /// The path with its query.
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn body_bytes(&self) -> usize {
        self.headers.get("content-length").map_or(0, |text| text.parse().unwrap())
    }

    /// Whether the client waits for a word before it sends the body.
    pub(crate) fn waits(&self) -> bool {
        self.header("expect") == "100-continue"
    }
}

/// Reads a request up to its body; `None` where the client is gone.
pub(crate) fn read_head(from: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut request = Request::default();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ").filter(|_| !request.head.is_empty()) {
            request.headers.insert(name.to_ascii_lowercase(), value.trim_end().to_owned());
        }
        request.head.push_str(&line);
    }
    let mut words = request.head.split_whitespace();
    request.method = words.next().unwrap_or_default().to_owned();
    request.path = words.next().unwrap_or_default().to_owned();
    Ok(Some(request))
}

/// Reads the body, after saying that it is wanted where the client waits for that.
pub(crate) fn read_body(request: &mut Request, stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    if request.waits() {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = vec![0; request.body_bytes()];
    stream.read_exact(&mut body)?;
    request.body = body;
    Ok(())
}

/// An answer with these headers, a line each, and this body; the connection ends with it.
pub(crate) fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// An error document of S3.
pub(crate) fn error_document(code: &str, message: &str) -> Vec<u8> {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>")
        .into_bytes()
}

/// A server that ends when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    accepting: Option<Thread<()>>,
}

impl Server {
    /// Gives each connection to `serve`, on a thread of its own.
    pub(crate) fn of_connections(
        serve: impl Fn(BufReader<TcpStream>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, serve) = (Arc::clone(&is_over), Arc::new(serve));
        let accepting = spawn("t-accept", move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Acquire) {
                    break;
                }
                let (stream, serve) = (BufReader::new(stream.unwrap()), Arc::clone(&serve));
                // It ends with its connection. A client that breaks off is what many tests are about.
                drop(spawn("t-serve", move || drop(serve(stream))).unwrap());
            }
        })
        .unwrap();
        Self { address, is_over, accepting: Some(accepting) }
    }

    /// Answers each request with what `serve` gives: the bytes of an [`answer`].
    pub(crate) fn start(serve: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::of_connections(move |mut stream| {
            if let Some(mut request) = read_head(&mut stream)? {
                read_body(&mut request, &mut stream)?;
                stream.get_mut().write_all(&serve(&request))?;
            }
            Ok(())
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join(&watchdog());
        }
    }
}
