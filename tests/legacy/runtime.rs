//! A service with an async runtime, which does as the documentation of the library advises: here one that has a single
//! worker, so that a call which holds up the worker holds up everything.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use dormouse::bucket::{DataDir, IntakeError};
use dormouse::objstore::FileStore;
use dormouse::shard::StoreKind;
use dormouse::source::Input;
use dormouse::thread::{Cancel, Failure, Stopped, Until};
use tempfile::TempDir;

use crate::process::Facts;
use crate::service::{
    EVICT, Journal, config, fed, ingest, make, minutes, named, numbers, options, scan, write_documents,
};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a task to its end on this thread.
fn block_on<T>(task: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut task = std::pin::pin!(task);
    loop {
        if let Poll::Ready(done) = task.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        std::thread::park();
    }
}

/// Lets other tasks of the worker run.
async fn yield_now() {
    let mut is_over = false;
    poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut is_over, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

struct Call<T> {
    outcome: Option<T>,
    waiting: Option<Waker>,
}

/// Waits for what is done on a thread that may block.
struct Blocking<T>(Arc<Mutex<Call<T>>>);

/// What runtimes call `spawn_blocking` or `unblock`.
fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
    let call = Arc::new(Mutex::new(Call { outcome: None, waiting: None }));
    let own = Arc::clone(&call);
    let body = move || {
        let done = work();
        let mut call = own.lock().unwrap();
        call.outcome = Some(done);
        call.waiting.take().into_iter().for_each(Waker::wake);
    };
    std::thread::Builder::new().name("blocking".to_owned()).spawn(body).unwrap();
    Blocking(call)
}

impl<T> Future for Blocking<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut call = self.0.lock().unwrap();
        call.waiting = Some(context.waker().clone());
        call.outcome.take().map_or(Poll::Pending, Poll::Ready)
    }
}

/// A call beside which the worker goes on, whose future is dropped, and which its limit ends. Then a whole life.
async fn serve(root: &TempDir, journal: &Arc<Journal>) {
    let data = DataDir::open_or_create(&root.path().join("data")).unwrap();
    let bucket = Arc::new(make(&data, "travel", StoreKind::Lsm, &config(journal)));
    let documents = root.path().join("documents");
    write_documents(&documents, 10..20);
    let (cancel, (sender, input), (ended_sender, ended)) = (Cancel::new(), fed(), channel());
    let (shared, until) = (Arc::clone(&bucket), Until::new(None, cancel.clone()));
    let ingesting = unblock(move || {
        let ended = shared.ingest(vec![input], &options(), &until, &mut |_| {});
        drop(shared);
        ended_sender.send(ended).unwrap();
    });
    let line = |n: u32| format!("{{\"id\":\"d{n:06}\",\"n\":{n}}}\n");
    let ten = (0..10).map(line).collect::<String>();
    sender.send(ten.into_bytes()).unwrap();
    while bucket.status().indexes[0].changes < 10 {
        yield_now().await;
    }
    drop(ingesting);
    // A call from the worker itself works, and tells that the other one goes on.
    assert_eq!(scan(&bucket), numbers(0..10));
    assert!(matches!(ingest(&bucket, Input::Path(documents.clone())), Err(IntakeError::Busy { .. })));
    cancel.cancel();
    drop(sender);
    let ended = unblock(move || ended.iter().next().unwrap()).await.unwrap_err();
    assert_eq!(ended.stopped(), Some(Stopped::Cancelled), "{ended}");
    let archive = root.path().join("archive");
    let slept = unblock(move || {
        ingest(&bucket, Input::Path(documents)).unwrap();
        let archive = FileStore::open(&archive).unwrap();
        bucket.pause(&archive, EVICT, &minutes(1), &mut |_| {}).unwrap();
        bucket.close(&minutes(1)).unwrap();
        archive
    });
    let archive = slept.await;
    let woken = unblock({
        let config = config(journal);
        move || {
            let options = dormouse::bucket::ResumeOptions::default();
            data.resume(&named("travel"), &archive, options, &config, &minutes(1), &mut |_| {}).unwrap();
            let bucket = data.open_bucket(&named("travel"), &config).unwrap();
            let found = scan(&bucket);
            bucket.close(&minutes(1)).unwrap();
            found
        }
    });
    assert_eq!(woken.await, numbers(0..20));
}

pub(crate) fn with_one_worker() {
    let (root, journal) = (TempDir::new().unwrap(), Arc::<Journal>::default());
    let facts = Facts::now();
    block_on(serve(&root, &journal));
    facts.assert_again("after the last task has ended");
}
