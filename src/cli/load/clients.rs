//! The connections: each takes the next request that is due, sends it, and waits for its answer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hyper::{Method, Uri};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::events::Events;
use super::pace::Schedule;
use super::tally::{Outcome, Tally};
use crate::cli::client::{Connection, Target};
use crate::status::model::rfc3339;
use crate::sys::clock::wall_now;

/// A run: what all connections share.
pub(super) struct Run {
    /// Where to.
    pub target: Rc<Target>,
    /// `/v1/ingest/batch` with its query.
    pub path: Uri,
    /// When requests are due.
    pub schedule: Schedule,
    /// A permit for each of them.
    pub due: Arc<Semaphore>,
    /// How many were taken.
    pub taken: Cell<u64>,
    /// When what is left is given up.
    pub give_up_at: Instant,
    /// Events of a request.
    pub batch: usize,
    /// The priorities, in turn.
    pub priorities: Vec<u8>,
    /// Whose turn it is.
    pub turn: Cell<usize>,
    /// Where bodies come from.
    pub events: RefCell<Events>,
    /// What became of it.
    pub tally: RefCell<Tally>,
}

impl Run {
    /// Sends everything over `connections` connections.
    pub(super) async fn send_all(self: &Rc<Self>, connections: usize) {
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let run = Rc::clone(self);
            tasks.spawn_local(async move { run.send_until_end().await });
        }
        tasks.join_all().await;
    }

    async fn send_until_end(&self) {
        let mut connection = Connection::new(&self.target);
        loop {
            // Before the request is due, so that making it does not count.
            let mut body = Vec::new();
            let priority = self.next_priority();
            self.events.borrow_mut().write_body(&mut body, self.batch, priority, &rfc3339(wall_now()));
            // A closed semaphore would mean the end, too; nobody closes it.
            let Ok(permit) = self.due.acquire().await else { return };
            permit.forget();
            let number = self.taken.get();
            if number >= self.schedule.requests || Instant::now() >= self.give_up_at {
                return;
            }
            self.taken.set(number + 1);
            let (due, sent_at) = (self.schedule.due(number), Instant::now());
            let answer = connection.send(Method::POST, &self.path, body.into()).await;
            let outcome = Outcome::of(&answer);
            let late = sent_at.saturating_duration_since(due);
            self.tally.borrow_mut().record(priority, self.batch, late, due.elapsed(), outcome);
        }
    }

    fn next_priority(&self) -> u8 {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.priorities.len());
        self.priorities[turn]
    }
}
