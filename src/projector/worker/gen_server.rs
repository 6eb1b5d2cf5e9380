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
    pub(super) run_fin: FinHolder,
    pub(super) data_thread: Thread<WorkerEnd>,
    /// Wakes the control thread of the `KvData`.
    pub(super) ended: Sender<()>,
    /// Keeps how the worker ended for whoever closes it.
    pub(super) end: Sender<WorkerEnd>,
    pub(super) logger: Logger,
}

impl GenServer {
    pub(super) fn run(self) {
        let served = thread::catch(&self.name, || self.serve());
        drop(self.run_fin);
        let end = match (served, self.data_thread.join(&Until::default())) {
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
                        debug!(self.logger, "an order is passed to the data thread"; "order" => order.name());
                        if thread::send(&self.data_orders, order, &self.data_ended).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                },
            }
        }
    }
}
