//! What stands between the database and its file: who may write, and from when on.
//!
//! The crate writes at times that a store must not: it changes the file when it is opened and when it is closed,
//! closing makes durable what no recovery point has, and a *read* may write out pages to make room in the cache.
//! So it gets no file but a [`Backing`], which lets nothing through to the disk but what is written on the thread
//! that holds the [`Pen`]. Everything else stays in memory or is refused, which the crate takes like a disk that
//! fails: a read keeps its page in the cache, a closing gives up, and what is on disk is as after a crash.
//!
//! Until the pen is taken for the first time, all writes go to a shadow in memory: opening a file and reading it
//! changes nothing on disk, repairs included. A check is an opening whose shadow is thrown away.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::ThreadId;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use redb::StorageBackend;

use crate::thread::{Stopped, Until};

/// The crate reads and writes multiples of it, at multiples of it; the file's header alone is shorter.
const PAGE_BYTES: u64 = 4096;

/// The right to write to the file, which one thread has at a time.
#[derive(Debug, Default)]
struct Pen(Mutex<Option<ThreadId>>);

/// Gives the pen back when dropped.
pub(super) struct Writing<'p>(&'p Pen);

impl Pen {
    fn take(&self) -> Writing<'_> {
        *self.0.lock() = Some(std::thread::current().id());
        Writing(self)
    }

    fn is_held_here(&self) -> bool {
        *self.0.lock() == Some(std::thread::current().id())
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

/// What was written and is not in the file.
#[derive(Debug)]
struct Shadow {
    /// The length that the file would have.
    length: u64,
    /// Bytes at the front of the file that still count. What was grown and not written is zero.
    shown: u64,
    /// Pages by their numbers.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Shadow {
    fn read(&self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(out.len() as u64) > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let shown = usize::try_from(self.shown.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (shown, grown) = out.split_at_mut(shown.min(out.len()));
        grown.fill(0);
        file.read_exact_at(shown, offset)?;
        for (page, within, bytes) in touched(offset, out.len()) {
            if let Some(written) = self.pages.get(&page).and_then(|content| content.get(within))
                && let Some(out) = out.get_mut(bytes)
            {
                out.copy_from_slice(written);
            }
        }
        Ok(())
    }

    fn write(&mut self, file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        for (page, within, bytes) in touched(offset, data.len()) {
            let start = page * PAGE_BYTES;
            // Both are at most a page, so they fit.
            let mut content = vec![0; usize::try_from(PAGE_BYTES).unwrap_or(0)];
            let known = usize::try_from(self.length.saturating_sub(start).min(PAGE_BYTES)).unwrap_or(0);
            self.read(file, start, content.get_mut(..known).unwrap_or_default())?;
            if let (Some(place), Some(data)) = (content.get_mut(within), data.get(bytes)) {
                place.copy_from_slice(data);
            }
            self.pages.insert(page, content.into());
        }
        Ok(())
    }

    fn set_length(&mut self, length: u64) {
        self.length = length;
        self.shown = self.shown.min(length);
        self.pages.retain(|page, _| page * PAGE_BYTES < length);
    }

    /// Makes the file what the shadow shows. The first page tells which of the others are believed, so it comes
    /// last.
    fn cast(&self, file: &File) -> io::Result<()> {
        file.set_len(self.shown)?;
        file.set_len(self.length)?;
        for (page, content) in self.pages.iter().filter(|(page, _)| **page != 0) {
            file.write_all_at(content, page * PAGE_BYTES)?;
        }
        file.sync_all()?;
        if let Some(first) = self.pages.get(&0) {
            file.write_all_at(first, 0)?;
            file.sync_all()?;
        }
        Ok(())
    }
}

/// A file that is written with the pen alone.
#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    pen: Pen,
    /// Until the first write.
    shadow: RwLock<Option<Shadow>>,
    /// The shadow may have a repair, which is a recovery point to the crate: it is not written to the file while
    /// anybody looks at what is there. Before `shadow` in the order of locks.
    first_write: RwLock<()>,
    /// How long reads go on, for as long as there is a shadow.
    until: Until,
    stopped: Mutex<Option<Stopped>>,
}

impl Backing {
    /// A file that is read while the limit lasts, and longer once it was written. One that is shorter than its
    /// header says was cut: the crate would take what is left for all there is, after a crash.
    pub(super) fn new(file: File, until: &Until) -> io::Result<Arc<Self>> {
        let length = file.metadata()?.len();
        if length > 0 && described_bytes(&file)? > length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut short"));
        }
        Ok(Arc::new(Self {
            file,
            pen: Pen::default(),
            shadow: RwLock::new(Some(Shadow { length, shown: length, pages: BTreeMap::new() })),
            first_write: RwLock::default(),
            until: until.clone(),
            stopped: Mutex::default(),
        }))
    }

    /// What ended the reading before its time.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        *self.stopped.lock()
    }

    /// The file's length.
    pub(super) fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether all writes went to the shadow.
    fn is_untouched(&self) -> bool {
        self.shadow.read().is_some()
    }

    /// Lets what this thread writes through to the file, until the result is dropped. What was written to the
    /// shadow goes first. Nobody else may hold the pen.
    pub(super) fn take_pen(&self) -> io::Result<Writing<'_>> {
        if self.is_untouched() {
            let _turn = self.first_write.write();
            let mut shadow = self.shadow.write();
            if let Some(written) = shadow.as_ref() {
                written.cast(&self.file)?;
                *shadow = None;
            }
        }
        Ok(self.pen.take())
    }

    /// Puts off the first write, if there was none yet, until the result is dropped.
    pub(super) fn put_off_first_write(&self) -> RwLockReadGuard<'_, ()> {
        self.first_write.read()
    }

    /// Makes a durable copy of the file at `to`, and gives back its length.
    pub(super) fn copy(&self, to: &Path) -> io::Result<u64> {
        use io::{Read, Seek};
        let _unrepaired = self.put_off_first_write();
        let length = self.length_bytes()?;
        let mut to = File::options().write(true).create_new(true).open(to)?;
        // The file's own place is used by nobody else: all other reads and writes name theirs.
        (&self.file).rewind()?;
        // By the system where it can, and so by sharing blocks.
        let copied = io::copy(&mut (&self.file).take(length), &mut to)?;
        to.sync_all()?;
        if copied == length { Ok(length) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn refuse_without_pen(&self) -> io::Result<()> {
        if self.pen.is_held_here() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "nothing is written between the shard's writes"))
    }
}

/// The length that the header of a file tells. Its numbers are `u32` in little-endian order: at byte 12 the size of
/// a page, then the pages of a region's header, those of its data, how many regions are full, and the data pages
/// of one more, if there are any. A page of its own goes before the regions.
fn described_bytes(file: &File) -> io::Result<u64> {
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 12)?;
    let mut numbers = [0_u64; 5];
    for (number, bytes) in numbers.iter_mut().zip(header.as_chunks::<4>().0) {
        *number = u64::from(u32::from_le_bytes(*bytes));
    }
    let [page_bytes, header_pages, data_pages, full, last] = numbers;
    let last_pages = if last == 0 { 0 } else { header_pages + last };
    let pages = full.saturating_mul(header_pages + data_pages).saturating_add(last_pages).saturating_add(1);
    Ok(pages.saturating_mul(page_bytes))
}

/// The pages that `length` bytes at `offset` touch: for each its number, which of its bytes they are, and where
/// those lie among the `length` bytes.
fn touched(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        // Both are at most a page, so they fit.
        let within = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
        let room = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap_or(usize::MAX);
        let taken = room.min(length - done);
        done += taken;
        Some((at / PAGE_BYTES, within..within + taken, done - taken..done))
    })
}

/// [`Backing`] in the form that the crate takes.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Backing>);

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        match self.0.shadow.read().as_ref() {
            Some(shadow) => Ok(shadow.length),
            None => self.0.length_bytes(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let shadow = self.0.shadow.read();
        let Some(shadow) = shadow.as_ref() else { return self.0.file.read_exact_at(out, offset) };
        if let Err(why) = self.0.until.check() {
            *self.0.stopped.lock() = Some(why);
            return Err(io::Error::other(why));
        }
        shadow.read(&self.0.file, offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if self.0.is_untouched()
            && let Some(shadow) = self.0.shadow.write().as_mut()
        {
            shadow.set_length(length);
            return Ok(());
        }
        self.0.refuse_without_pen()?;
        self.0.file.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.is_untouched() {
            return Ok(());
        }
        self.0.refuse_without_pen()?;
        self.0.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.0.is_untouched()
            && let Some(shadow) = self.0.shadow.write().as_mut()
        {
            return shadow.write(&self.0.file, offset, data);
        }
        self.0.refuse_without_pen()?;
        self.0.file.write_all_at(data, offset)
    }
}
