//! Requests that wait for another request's batch, and how they hear that it has moved on.
//!
//! ```text
//!  waiter:  lock: hang up a bell, or share the one there, and listen ▸ look ─ not yet ─▶ sleep
//!  station: store what is new ▸ lock: take the bell down ▸ ring it, if there was one
//! ```
//!
//! A waiter listens *before* it looks, and a station stores *before* it takes the bell down. So either the look finds what
//! is new, or the bell that rings has this listener: no wake-up is lost. A model under loom goes through the interleavings
//! (`make loom`).
//!
//! A batch has a bell only while somebody waits for it. One that nobody waits for costs a lock that nobody else wants, and no
//! memory but a pointer; the last waiter that leaves takes the bell with it.

#[cfg(not(ingestd_loom))]
use std::sync::Arc;

#[cfg(ingestd_loom)]
use loom::sync::Arc;
#[cfg(not(ingestd_loom))]
use parking_lot::Mutex;
#[cfg(not(ingestd_loom))]
use tokio::sync::Notify;

#[cfg(ingestd_loom)]
use self::model::{Mutex, Notify};

/// Those who wait for one batch.
#[derive(Debug, Default)]
pub struct Waiters {
    bell: Mutex<Option<Arc<Notify>>>,
}

impl Waiters {
    /// Waits until `look` finds something. It looks at once, and again whenever [`Self::ring`] is called.
    pub async fn until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            // Dropped in the reverse order, also when the client leaves: a bell that nobody holds any more goes.
            let _place = Place { waiters: self };
            let (bell, rung);
            {
                // Listened to before it can be taken down: nobody rings it twice.
                let mut hanging = self.bell.lock();
                bell = Arc::clone(hanging.get_or_insert_with(Default::default));
                rung = bell.notified();
            }
            if let Some(found) = look() {
                return found;
            }
            rung.await;
        }
    }

    /// Wakes everybody who waits. What they are to find is stored before the call.
    pub fn ring(&self) {
        let bell = self.bell.lock().take();
        if let Some(bell) = bell {
            bell.notify_waiters();
        }
    }
}

/// A waiter's hold on the bell.
struct Place<'a> {
    waiters: &'a Waiters,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Whoever joins takes its share under the lock.
        let mut bell = self.waiters.bell.lock();
        if bell.as_mut().is_some_and(|bell| Arc::get_mut(bell).is_some()) {
            *bell = None;
        }
    }
}

/// tokio's `Notify` and a lock, made of what loom can follow, and the model.
#[cfg(ingestd_loom)]
mod model {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use loom::sync::MutexGuard;

    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no panic holds it")
        }
    }

    /// How often it has rung, and who listens.
    #[derive(Debug, Default)]
    pub struct Notify(Mutex<(u64, Vec<Waker>)>);

    impl Notify {
        /// Ends with the first call of [`Self::notify_waiters`] from now on, polled before or not.
        pub fn notified(&self) -> impl Future<Output = ()> + '_ {
            let heard = self.0.lock().0;
            poll_fn(move |context| {
                let mut state = self.0.lock();
                if state.0 != heard {
                    return Poll::Ready(());
                }
                state.1.push(context.waker().clone());
                Poll::Pending
            })
        }

        pub fn notify_waiters(&self) {
            let mut state = self.0.lock();
            state.0 += 1;
            let listeners = std::mem::take(&mut state.1);
            drop(state);
            listeners.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(all(test, ingestd_loom))]
mod loom_tests {
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};

    use loom::sync::atomic::{AtomicU8, Ordering};
    use loom::sync::{Arc, Condvar};

    use super::*;

    /// Where a thread sleeps until its future is worth another look.
    #[derive(Default)]
    struct Bed {
        is_woken: Mutex<bool>,
        changed: Condvar,
    }

    impl Wake for Bed {
        fn wake(self: std::sync::Arc<Self>) {
            *self.is_woken.lock() = true;
            self.changed.notify_one();
        }
    }

    fn block_on(future: impl Future<Output = ()>) {
        let bed = std::sync::Arc::new(Bed::default());
        let waker = Waker::from(std::sync::Arc::clone(&bed));
        let mut future = pin!(future);
        while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            let mut is_woken = bed.is_woken.lock();
            while !*is_woken {
                is_woken = bed.changed.wait(is_woken).expect("no panic holds it");
            }
            *is_woken = false;
        }
    }

    /// `loom` reports a waiter that sleeps for ever as a deadlock.
    fn everybody_hears_of_the_end(waiters: usize, steps: u8) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let batch = Arc::new((AtomicU8::new(0), Waiters::default()));
            let wait = || {
                let batch = Arc::clone(&batch);
                loom::thread::spawn(move || {
                    let look = || (batch.0.load(Ordering::Acquire) == steps).then_some(());
                    block_on(batch.1.until(look));
                })
            };
            let threads: Vec<_> = (0..waiters).map(|_| wait()).collect();
            for step in 1..=steps {
                batch.0.store(step, Ordering::Release);
                batch.1.ring();
            }
            threads.into_iter().for_each(|thread| thread.join().expect("it ended"));
            assert!(batch.1.bell.lock().is_none(), "nobody waits, and no bell is left");
        });
    }

    #[test]
    fn a_waiter_hears_of_an_end_that_comes_while_it_sits_down() {
        everybody_hears_of_the_end(1, 1);
        everybody_hears_of_the_end(1, 2);
    }

    #[test]
    fn two_waiters_of_one_bell_hear_of_the_end() {
        everybody_hears_of_the_end(2, 1);
    }
}

#[cfg(all(test, not(ingestd_loom)))]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::status::woken::Woken;

    #[test]
    fn a_waiter_is_woken_once_per_ring_and_never_in_between() {
        let (waiters, state) = (Waiters::default(), Cell::new(0));
        let woken: [Arc<Woken>; 2] = Default::default();
        let wakers = woken.each_ref().map(|woken| Waker::from(Arc::clone(woken)));
        let mut contexts = wakers.each_ref().map(Context::from_waker);
        let looks = Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            (state.get() == 2).then_some("over")
        };
        let (mut one, mut other) = (pin!(waiters.until(look)), pin!(waiters.until(look)));
        assert_eq!(one.as_mut().poll(&mut contexts[0]), Poll::Pending);
        assert_eq!(other.as_mut().poll(&mut contexts[1]), Poll::Pending);
        for ring in 1..=2 {
            state.set(ring);
            waiters.ring();
            assert_eq!(woken.each_ref().map(|woken| woken.times()), [ring; 2]);
            let expected = if ring == 2 { Poll::Ready("over") } else { Poll::Pending };
            assert_eq!(one.as_mut().poll(&mut contexts[0]), expected);
            assert_eq!(other.as_mut().poll(&mut contexts[1]), expected);
        }
        assert_eq!(looks.get(), 6, "two at the start, two per ring");
        assert!(waiters.bell.lock().is_none());
    }

    #[test]
    fn who_leaves_frees_its_place_and_the_last_one_the_bell() {
        let waiters = Waiters::default();
        let mut context = Context::from_waker(Waker::noop());
        let wait = || Box::pin(waiters.until(|| None::<()>));
        let (mut one, mut other) = (wait(), wait());
        assert!(one.as_mut().poll(&mut context).is_pending() && other.as_mut().poll(&mut context).is_pending());
        drop(one);
        assert!(waiters.bell.lock().is_some(), "one still waits");
        drop(other);
        assert!(waiters.bell.lock().is_none());
        waiters.ring();
    }
}
