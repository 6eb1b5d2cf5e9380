//! The addresses of servers.
//!
//! The system's resolver takes as long as it likes and cannot be interrupted. It is asked on one thread,
//! `dm-s3-names`, and whoever needs the answer waits for it only as long as its limit lasts. An answer is good for
//! a while, so that a request does not ask anew.
//!
//! Invariant: there is one such thread for each store, however many calls wait, and a failure is never kept.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::watch::thread_is_gone;
use crate::objstore::error::StoreCause;
use crate::thread::{RecvError, Thread, Until, recv, spawn};

/// How long an answer is good.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// How long dropping waits for an answer that is under way, before the thread is left to end by itself.
const END_LIMIT: Duration = Duration::from_secs(1);

const THREAD: &str = "dm-s3-names";

type Known = Arc<Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>>;

pub(super) struct Names {
    questions: Option<Sender<Question>>,
    thread: Option<Thread<()>>,
    known: Known,
}

struct Question {
    host: String,
    answer: Sender<Result<Vec<IpAddr>, io::Error>>,
}

impl Names {
    pub(super) fn start() -> io::Result<Self> {
        let (questions, incoming) = unbounded();
        let known = Known::default();
        let shared = Arc::clone(&known);
        let thread = spawn(THREAD, move || answer(&incoming, &shared))?;
        Ok(Self { questions: Some(questions), thread: Some(thread), known })
    }

    /// The addresses of `host`, at least one. It may be an address itself, with brackets around one of version 6.
    pub(super) fn resolve(
        &self,
        host: &str,
        port: u16,
        until: &Until,
    ) -> Result<Vec<SocketAddr>, StoreCause> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let addresses = match known(&self.known, host) {
            Some(addresses) => addresses,
            None => self.ask(host, until)?,
        };
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    fn ask(&self, host: &str, until: &Until) -> Result<Vec<IpAddr>, StoreCause> {
        let failed =
            |why: &dyn std::fmt::Display| StoreCause::Connection(format!("cannot resolve {host}: {why}"));
        let (answer, answered) = bounded(1);
        if let Some(questions) = &self.questions {
            // It has no bound; nobody to answer is seen below, as the question is dropped with its way back.
            let _ = questions.try_send(Question { host: host.to_owned(), answer });
        }
        match recv(&answered, until) {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(e)) => Err(failed(&e)),
            Err(RecvError::Stopped(why)) => Err(why.into()),
            Err(RecvError::Closed) => Err(thread_is_gone(THREAD)),
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(&Until::within(END_LIMIT));
        }
    }
}

fn known(known: &Known, host: &str) -> Option<Vec<IpAddr>> {
    let known = known.lock();
    let (since, addresses) = known.get(host)?;
    (since.elapsed() < GOOD_FOR).then(|| addresses.clone())
}

fn answer(questions: &Receiver<Question>, shared: &Known) {
    // Ends when the store does.
    while let Ok(Question { host, answer }) = recv(questions, &Until::default()) {
        let result = match known(shared, &host) {
            Some(addresses) => Ok(addresses),
            None => look_up(&host),
        };
        if let Ok(addresses) = &result {
            shared.lock().insert(host, (Instant::now(), addresses.clone()));
        }
        // Nobody may wait for it any more.
        let _ = answer.try_send(result);
    }
}

fn look_up(host: &str) -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = (host, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_nobody_answers_any_more_is_a_permanent_error_with_the_way_out() {
        let (questions, _) = unbounded();
        let names = Names { questions: Some(questions), thread: None, known: Known::default() };
        let cause = names.resolve("archive.example", 443, &Until::default()).unwrap_err();
        let text = cause.to_string();
        assert!(matches!(cause, StoreCause::Endpoint(_)), "{text}");
        assert!(text.contains(THREAD) && text.contains("open the archive again"), "{text}");
    }
}
