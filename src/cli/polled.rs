//! Reading what may keep its reader waiting, so that the wait can be ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// How long a read waits before it lets its caller look around.
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
