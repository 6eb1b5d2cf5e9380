//! Tells a process from one that was forked from it.

/// The process that something was made in. One that was forked from it has a copy of the memory, and neither the
/// threads nor the right to the locks and files that are told of there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// The one that runs this.
    pub fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether this is still the same process, and no fork of it. A system call.
    pub fn is_current(self) -> bool {
        self == Self::current()
    }

    /// Its number.
    pub fn id(self) -> u32 {
        self.0
    }
}
