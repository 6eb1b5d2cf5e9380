//! The control thread of a worker.

use crossbeam::channel::{Receiver, Sender, select_biased};
use slog::{Logger, debug};

use crate::thread::{self, Fin, FinHolder, JoinError, Thread, Until};

use super::{Order, WorkerEnd};

pub(super) struct GenServer {
    pub(super) name: String,
    pub(super) orders: Receiver<Order>,
    pub(super) data_orders: Sender<Order>,
    pub(super) stopped: Fin,
    pub(super) data_ended: Fin,
    /// Wakes the control thread of the `KvData`.
    pub(super) ended: Sender<()>,
    /// Keeps how the worker ended for whoever closes it.
    pub(super) end: Sender<WorkerEnd>,
    pub(super) logger: Logger,
}

impl GenServer {
    /// The thread's body. `run_fin` is given on every way out of the serving, also by a panic.
    pub(super) fn run(self, run_fin: FinHolder, data_thread: Thread<WorkerEnd>) {
        let server = &self;
        let outcome = thread::catch(&self.name, move || {
            server.serve();
            drop(run_fin);
            debug!(server.logger, "the data thread was told to end");
        });
        let end = match (outcome, data_thread.join(&Until::default())) {
            (_, Err(JoinError::Panicked(panicked))) | (Err(panicked), _) => WorkerEnd::Panicked(panicked),
            (Ok(()), Ok(end)) => end,
            // Without a deadline the join goes on until the thread has ended.
            (Ok(()), Err(JoinError::StillRunning(_))) => WorkerEnd::Closed,
        };
        // Each channel has room for the one message of this worker, in this order: who is woken finds the end.
        let _ = self.end.try_send(end);
        let _ = self.ended.try_send(());
    }

    fn serve(&self) {
        loop {
            select_biased! {
                recv(self.stopped.receiver()) -> _ => return,
                recv(self.data_ended.receiver()) -> _ => return,
                recv(self.orders) -> order => match order {
                    Ok(order) => {
                        let name = order.name();
                        debug!(self.logger, "an order came"; "order" => name);
                        if thread::send(&self.data_orders, order, &self.data_ended).is_err() {
                            return;
                        }
                        debug!(self.logger, "an order was passed to the data thread"; "order" => name);
                    }
                    Err(_) => return,
                },
            }
        }
    }
}
