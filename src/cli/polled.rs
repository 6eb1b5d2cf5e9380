//! Reading and writing what may keep a caller waiting, so that the wait can be ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use dormouse::thread::Cancel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How long a read or write waits before somebody looks around.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A pipe, a terminal or the like. A read that finds nothing for a while is [`io::ErrorKind::Interrupted`].
pub(super) struct Polled(File);

impl Polled {
    /// Standard input, without the buffer that the standard library puts before it: what lies in a buffer is not
    /// seen by a poll.
    pub(super) fn stdin() -> io::Result<Self> {
        Ok(Self(io::stdin().as_fd().try_clone_to_owned()?.into()))
    }

    /// A named pipe or device. Opening does not wait for somebody who writes.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let no_wait = OFlags::NONBLOCK.bits().cast_signed();
        Ok(Self(File::options().read(true).custom_flags(no_wait).open(path)?))
    }
}

impl Read for Polled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&WAIT))? == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match self.0.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::Interrupted.into()),
            read => read,
        }
    }
}

/// What a pipe takes at once when it says that it takes something.
const PIECE_BYTES: usize = 4096;

/// Standard output. A write that nobody reads ends when the token is given.
pub(super) struct PolledOutput {
    file: File,
    /// It is a file, which does not keep a writer waiting for a reader.
    is_file: bool,
    cancel: Cancel,
}

impl PolledOutput {
    pub(super) fn stdout(cancel: Cancel) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let is_file = file.metadata()?.is_file();
        Ok(Self { file, is_file, cancel })
    }

    fn wait_for_room(&self) -> io::Result<()> {
        loop {
            match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&WAIT)) {
                Ok(0) | Err(Errno::INTR) if self.cancel.is_cancelled() => {
                    return Err(io::Error::other("it was cancelled while nobody read them"));
                }
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for PolledOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_file {
            return self.file.write(bytes);
        }
        self.wait_for_room()?;
        self.file.write(bytes.get(..PIECE_BYTES).unwrap_or(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
