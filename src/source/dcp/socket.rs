//! A socket that one thread reads and several write to, with TLS or without.
//!
//! A read waits without holding anything that a writer needs. Every write has the socket's deadline, and the socket
//! can be shut down from any thread, which ends every read and write. A signal that comes in between ends neither, and
//! none is raised by a write to a node that has gone.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustls::ClientConnection;

use super::config::Tls;
use super::error::OpenCause;
use crate::thread::Until;

/// The socket as a session of TLS writes to it, which would write several pieces at once where it can: of the system's
/// calls only the one for a single piece raises no signal when the other side has gone, and that signal ends a host
/// whose `main` is not Rust's.
struct PieceWriter<'a>(&'a TcpStream);

impl Write for PieceWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // The system itself does not go on after a signal with what has a deadline.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How often a wait looks whether its limit has ended.
const SLICE: Duration = Duration::from_millis(25);
/// Bytes of TLS that are read at once: a record.
const CIPHER_BYTES: usize = 17 * 1024;

/// The side that anybody may use.
pub(super) struct Socket {
    tcp: TcpStream,
    /// Held for writes; with TLS also while what was read is decrypted.
    tls: Mutex<Option<ClientConnection>>,
}

/// The side of the one reader.
pub(super) struct ReadHalf {
    socket: Arc<Socket>,
    is_tls: bool,
    cipher: Vec<u8>,
    /// What of `cipher` was not decrypted yet.
    left: std::ops::Range<usize>,
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Waits until `tcp` is ready for `what`; `false` where the time passed first.
fn is_ready(tcp: &TcpStream, what: PollFlags, timeout: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(tcp, what)];
    match poll(&mut fds, Some(&timespec(timeout))) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The same in slices, up to the end of `until`, whose own end is told from `step`'s.
fn wait_ready(tcp: &TcpStream, what: PollFlags, step: &Until, until: &Until) -> Result<(), OpenCause> {
    while !is_ready(tcp, what, SLICE)? {
        check_step(step, until)?;
    }
    Ok(())
}

/// Whether neither the caller's limit nor that of the step has ended.
pub(super) fn check_step(step: &Until, until: &Until) -> Result<(), OpenCause> {
    until.check()?;
    step.check().map_err(|_| OpenCause::Silent)
}

impl Socket {
    /// Connects, by `step`.
    pub(super) fn connect(address: SocketAddr, step: &Until, until: &Until) -> Result<TcpStream, OpenCause> {
        until.check()?;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd =
            socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
        let tcp = TcpStream::from(fd);
        tcp.set_nonblocking(true)?;
        match connect(&tcp, &address) {
            Ok(()) => {}
            Err(rustix::io::Errno::INPROGRESS) => {
                wait_ready(&tcp, PollFlags::OUT, step, until)?;
                if let Some(error) = tcp.take_error()? {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
        tcp.set_nonblocking(false)?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// Both sides of a connected socket, whose writes each end after `write_timeout`.
    pub(super) fn new(
        tcp: TcpStream,
        tls: Option<&Tls>,
        write_timeout: Duration,
    ) -> Result<(Arc<Self>, ReadHalf), OpenCause> {
        tcp.set_write_timeout(Some(write_timeout))?;
        let session = tls.map(|tls| ClientConnection::new(Arc::clone(&tls.config), tls.server.clone()));
        let session = session.transpose().map_err(io::Error::other)?;
        let is_tls = session.is_some();
        let socket = Arc::new(Self { tcp, tls: Mutex::new(session) });
        let cipher = vec![0; if is_tls { CIPHER_BYTES } else { 0 }];
        let half = ReadHalf { socket: Arc::clone(&socket), is_tls, cipher, left: 0..0 };
        Ok((socket, half))
    }

    /// Writes all of `bytes`.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut session = self.tls.lock();
        let Some(session) = session.as_mut() else { return (&self.tcp).write_all(bytes) };
        session.writer().write_all(bytes)?;
        self.flush(session)
    }

    fn flush(&self, session: &mut ClientConnection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut PieceWriter(&self.tcp))?;
        }
        Ok(())
    }

    /// Ends every read and write, now and later.
    pub(super) fn shut_down(&self) {
        // One that the other side has closed cannot be shut down any more, which is as well.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// From now on a read that waits longer fails.
    pub(super) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.tcp.set_read_timeout(Some(timeout))
    }
}

impl ReadHalf {
    /// Reads into `room` what is there, or waits for something. Nothing at all means that the other side has closed.
    pub(super) fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(read) = self.step(room)? {
                return Ok(read);
            }
        }
    }

    /// The same by a deadline.
    pub(super) fn read_by(
        &mut self,
        room: &mut [u8],
        step: &Until,
        until: &Until,
    ) -> Result<usize, OpenCause> {
        loop {
            if self.left.is_empty() && !self.has_plain() {
                wait_ready(&self.socket.tcp, PollFlags::IN, step, until)?;
            }
            if let Some(read) = self.step(room)? {
                return Ok(read);
            }
            check_step(step, until)?;
        }
    }

    /// Whether a read would give something at once, as far as that is known.
    pub(super) fn is_ready(&self) -> bool {
        let buffered = !self.left.is_empty() || self.has_plain();
        buffered || is_ready(&self.socket.tcp, PollFlags::IN, Duration::ZERO).unwrap_or(true)
    }

    fn has_plain(&self) -> bool {
        if !self.is_tls {
            return false;
        }
        let mut session = self.socket.tls.lock();
        session.as_mut().is_some_and(|session| {
            session.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
        })
    }

    /// Reads from the socket once at most. `None` where that made nothing readable yet.
    fn step(&mut self, room: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.is_tls {
            return match (&self.socket.tcp).read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                read => read.map(Some),
            };
        }
        if let Some(read) = self.decrypt(room)? {
            return Ok(Some(read));
        }
        match (&self.socket.tcp).read(&mut self.cipher) {
            Ok(0) => Ok(Some(0)),
            Ok(read) => {
                self.left = 0..read;
                self.decrypt(room)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives what was decrypted, after decrypting what was read.
    fn decrypt(&mut self, room: &mut [u8]) -> io::Result<Option<usize>> {
        let mut session = self.socket.tls.lock();
        let Some(session) = session.as_mut() else { return Ok(None) };
        loop {
            match session.reader().read(room) {
                Ok(read) => return Ok(Some(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut cipher = self.cipher.get(self.left.clone()).unwrap_or_default();
            if cipher.is_empty() {
                return Ok(None);
            }
            self.left.start += session.read_tls(&mut cipher)?;
            let state = session.process_new_packets().map_err(io::Error::other);
            // An alert tells the other side what was wrong, also where that fails here.
            self.socket.flush(session)?;
            state?;
        }
    }
}
