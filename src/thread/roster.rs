//! The threads of one instance by name, for as long as they run.
//!
//! Invariant: where no thread is on the roster, the outcome of each can be taken without waiting; a thread that was
//! joined is on no roster.

use std::sync::Arc;

use parking_lot::Mutex;

use super::spawn::{Thread, spawn_with_rest};

/// The threads of one instance: each is counted from its start to its end, wherever its handle is.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Vec<String>>>);

/// Takes a thread off its roster when dropped.
struct Entry {
    roster: Roster,
    name: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut names = self.roster.0.lock();
        if let Some(place) = names.iter().position(|name| *name == self.name) {
            names.swap_remove(place);
        }
    }
}

impl Roster {
    /// The names of the threads that run now, in their order.
    pub fn running(&self) -> Vec<String> {
        let mut names = self.0.lock().clone();
        names.sort();
        names
    }

    /// The same, with those that could not be joined, some of which may have ended since.
    pub fn still_running<'t>(&self, unjoined: impl Iterator<Item = &'t str>) -> Vec<String> {
        let mut names = self.running();
        names.extend(unjoined.map(ToOwned::to_owned));
        names.sort();
        names.dedup();
        names
    }

    /// Starts a thread as [`spawn`](super::spawn()) does, and counts it.
    pub fn spawn<T, F>(&self, name: impl Into<String>, work: F) -> std::io::Result<Thread<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let name = name.into();
        self.0.lock().push(name.clone());
        let entry = Entry { roster: self.clone(), name: name.clone() };
        spawn_with_rest(name, work, entry)
    }

    /// Starts a thread that takes `given`, as [`Roster::spawn`] does. Where no thread is to be had it comes back.
    pub fn spawn_with<G, F>(
        &self,
        name: impl Into<String>,
        given: G,
        work: F,
    ) -> Result<Thread<()>, (std::io::Error, Option<G>)>
    where
        G: Send + 'static,
        F: FnOnce(G) + Send + 'static,
    {
        let kept = Arc::new(Mutex::new(Some(given)));
        let own = Arc::clone(&kept);
        let started = self.spawn(name, move || {
            let given = own.lock().take();
            if let Some(given) = given {
                work(given);
            }
        });
        started.map_err(|error| (error, kept.lock().take()))
    }
}
