//! Sleep and wake-up between those who push and the flushers.
//!
//! ```text
//!  flusher: mark sleeping ▸ look for work ─ none ─▶ park        pusher: push ▸ swap the mark ─ was set ─▶ unpark
//!                                 └─ some ─▶ unmark; was it swapped meanwhile? then wake another
//! ```
//!
//! The mark is set *before* the look and the push comes *before* the swap, with a full fence between on both
//! sides: either the look sees the push, or the swap finds the mark. So no wake-up is lost; a model under loom
//! goes through the interleavings (`make loom`).

#[cfg(not(ingestd_loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(not(ingestd_loom))]
use crossbeam::sync::{Parker, Unparker};
#[cfg(ingestd_loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(ingestd_loom)]
use self::model::{Parker, Unparker};
use crate::flush::merge::Role;

/// The flushers as those who push see them.
pub struct Sleepers {
    sleepers: Box<[Sleeper]>,
}

struct Sleeper {
    role: Role,
    sleeping: AtomicBool,
    unparker: Unparker,
}

/// A flusher's place, handed to its thread.
pub struct Seat {
    /// Which one it is, from 0.
    pub index: usize,
    /// What this flusher may take.
    pub role: Role,
    /// Where it sleeps.
    pub parker: Parker,
}

impl Sleepers {
    /// A sleeper and its seat for each of `roles`.
    pub fn new(roles: impl Iterator<Item = Role>) -> (Self, Vec<Seat>) {
        let (mut sleepers, mut seats) = (Vec::new(), Vec::new());
        for (index, role) in roles.enumerate() {
            let parker = Parker::new();
            sleepers.push(Sleeper { role, sleeping: AtomicBool::new(false), unparker: parker.unparker().clone() });
            seats.push(Seat { index, role, parker });
        }
        (Self { sleepers: sleepers.into_boxed_slice() }, seats)
    }

    /// Marks a flusher as sleeping (before it looks for work) or awake; returns what it was.
    pub fn mark(&self, seat: &Seat, sleeping: bool) -> bool {
        let before = self.sleepers[seat.index].sleeping.swap(sleeping, Ordering::SeqCst);
        // Partner of the fence in `wake_one`: the look for work stays behind the mark.
        fence(Ordering::SeqCst);
        before
    }

    /// Wakes one sleeping flusher of `role`, if there is one; after a push.
    pub fn wake_one(&self, role: Role) {
        // Partner of the fence in `mark`: the push stays before the look at the marks.
        fence(Ordering::SeqCst);
        for sleeper in self.sleepers.iter().filter(|sleeper| sleeper.role == role) {
            if sleeper.sleeping.swap(false, Ordering::SeqCst) {
                sleeper.unparker.unpark();
                return;
            }
        }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        for sleeper in &self.sleepers {
            sleeper.sleeping.store(false, Ordering::SeqCst);
            sleeper.unparker.unpark();
        }
    }
}

/// crossbeam's parker, made of what loom can follow, and the models.
#[cfg(ingestd_loom)]
mod model {
    use std::time::Instant;

    use loom::sync::{Arc, Condvar, Mutex};

    #[derive(Clone)]
    pub struct Unparker {
        token: Arc<(Mutex<bool>, Condvar)>,
    }

    pub struct Parker {
        unparker: Unparker,
    }

    impl Unparker {
        pub fn unpark(&self) {
            *self.token.0.lock().expect("no panic holds it") = true;
            self.token.1.notify_one();
        }
    }

    impl Parker {
        pub fn new() -> Self {
            Self { unparker: Unparker { token: Arc::new((Mutex::new(false), Condvar::new())) } }
        }

        pub fn unparker(&self) -> &Unparker {
            &self.unparker
        }

        pub fn park(&self) {
            let (token, arrived) = &*self.unparker.token;
            let mut token = token.lock().expect("no panic holds it");
            while !*token {
                token = arrived.wait(token).expect("no panic holds it");
            }
            *token = false;
        }

        /// The models have no clock.
        pub fn park_deadline(&self, _: Instant) {
            self.park();
        }
    }
}

#[cfg(all(test, ingestd_loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn push(queue: &AtomicUsize, sleepers: &Sleepers) {
        // A lock-free queue publishes with Release and takes with Acquire, no more.
        queue.fetch_add(1, Ordering::Release);
        sleepers.wake_one(Role::General);
    }

    fn take(queue: &AtomicUsize) -> bool {
        queue.fetch_update(Ordering::Acquire, Ordering::Acquire, |waiting| waiting.checked_sub(1)).is_ok()
    }

    /// The loop of `Flusher::run` until it has one item; then it is busy for ever.
    fn take_one(queue: &AtomicUsize, sleepers: &Sleepers, seat: &Seat) {
        loop {
            sleepers.mark(seat, true);
            if take(queue) {
                if !sleepers.mark(seat, false) {
                    sleepers.wake_one(seat.role);
                }
                return;
            }
            seat.parker.park();
        }
    }

    /// `loom` reports a thread that sleeps for ever as a deadlock.
    fn every_item_is_taken(flushers: usize) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let (sleepers, seats) = Sleepers::new(std::iter::repeat_n(Role::General, flushers));
            let (sleepers, queue) = (Arc::new(sleepers), Arc::new(AtomicUsize::new(0)));
            let flush = |seat: Seat| {
                let (sleepers, queue) = (Arc::clone(&sleepers), Arc::clone(&queue));
                loom::thread::spawn(move || take_one(&queue, &sleepers, &seat))
            };
            let threads: Vec<_> = seats.into_iter().map(flush).collect();
            for _ in 0..flushers {
                push(&queue, &sleepers);
            }
            threads.into_iter().for_each(|thread| thread.join().expect("it ended"));
            assert_eq!(queue.load(Ordering::Acquire), 0);
        });
    }

    #[test]
    fn a_push_wakes_a_flusher_that_is_about_to_sleep() {
        every_item_is_taken(1);
    }

    #[test]
    fn a_wake_up_spent_on_a_busy_flusher_reaches_another() {
        every_item_is_taken(2);
    }
}
