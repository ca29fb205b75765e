//! Promise: every acknowledged batch lands once, whatever is interrupted between journal and ledger. The real journal
//! on a storage that fails, its real recovery, and a ledger of one line, over random histories; the whole server does
//! the same against PostgreSQL in `crash_exactly_once` and `soak`.

#[path = "support/faulty_storage.rs"]
mod faulty_storage;
#[path = "support/journal_driver.rs"]
mod journal_driver;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use faulty_storage::{Call, FaultyStorage};
use ingestd::journal::{Journal, Location};
use journal_driver::{append, try_open};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// Clients send batches; acknowledged once synced.
    Accept {
        batches: usize,
        bytes: usize,
    },
    /// A client sends a batch again that was acknowledged.
    Retry {
        pick: prop::sample::Index,
    },
    /// A COPY of the oldest batches is committed; `heard`: and its answer arrives.
    Commit {
        batches: usize,
        heard: bool,
    },
    /// What was committed and heard of is released, and the journal told so.
    Reclaim,
    /// Waiting batches are written again, as relocation does; `released`: and their old places are let go.
    Relocate {
        batches: usize,
        released: bool,
    },
    /// kill -9.
    Kill,
    LosePower {
        seed: u64,
    },
    /// The next write or fsync fails; the process is then restarted by its operator.
    FailWrite {
        successes: u64,
        sync: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1usize..6, 0usize..20_000).prop_map(|(batches, bytes)| Step::Accept { batches, bytes }),
        2 => any::<prop::sample::Index>().prop_map(|pick| Step::Retry { pick }),
        6 => (1usize..10, prop::bool::weighted(0.7)).prop_map(|(batches, heard)| Step::Commit { batches, heard }),
        2 => Just(Step::Reclaim),
        2 => (1usize..5, prop::bool::weighted(0.7)).prop_map(|(batches, released)| Step::Relocate { batches, released }),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(|seed| Step::LosePower { seed }),
        1 => (0u64..3, any::<bool>()).prop_map(|(successes, sync)| Step::FailWrite { successes, sync }),
    ];
    prop::collection::vec(step, 1..80)
}

/// A batch is its id, in the first bytes of its payload.
fn payload(id: u64, bytes: usize) -> Vec<u8> {
    let mut payload = id.to_le_bytes().to_vec();
    payload.resize(8 + bytes, id as u8);
    payload
}

fn id_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(*payload.first_chunk().expect("eight bytes"))
}

struct World {
    storage: FaultyStorage,
    journal: Option<Journal>,
    /// The lanes of the process.
    queued: VecDeque<(u64, Location)>,
    next_id: u64,
    acknowledged: BTreeSet<u64>,
    /// PostgreSQL: the ledger, and how often each batch's rows are in the table.
    ledger: BTreeSet<u64>,
    rows: BTreeMap<u64, u32>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            storage: FaultyStorage::default(),
            journal: None,
            queued: VecDeque::new(),
            next_id: 0,
            acknowledged: BTreeSet::new(),
            ledger: BTreeSet::new(),
            rows: BTreeMap::new(),
        };
        world.start();
        world
    }

    /// A start: everything that the journal hands out is queued again.
    fn start(&mut self) {
        self.journal = None;
        let opened = try_open(self.storage.clone()).unwrap_or_else(|error| panic!("opens: {error}"));
        assert!(!opened.recovery.is_degraded(), "{:?}", opened.recovery.damage);
        self.queued = opened.handed.iter().map(|handed| (id_of(&handed.payload), handed.location)).collect();
        self.journal = Some(opened.journal);
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().expect("it runs between steps")
    }

    /// Offers batches to the journal; true when they were acknowledged.
    fn accept(&mut self, ids: &[u64], bytes: usize) -> bool {
        let payloads: Vec<_> = ids.iter().map(|&id| payload(id, bytes)).collect();
        let Ok(locations) = append(self.journal(), &payloads, true) else { return false };
        self.acknowledged.extend(ids);
        self.queued.extend(ids.iter().copied().zip(locations));
        true
    }

    /// The transaction of a COPY: whoever's ledger row is free is copied.
    fn commit(&mut self, batches: usize, heard: bool) {
        let taken: Vec<_> = (0..batches).map_while(|_| self.queued.pop_front()).collect();
        for (id, _) in &taken {
            if self.ledger.insert(*id) {
                *self.rows.entry(*id).or_default() += 1;
            }
        }
        if heard {
            let releaser = self.journal().releaser();
            taken.iter().for_each(|&(_, location)| releaser.release(location));
        } else {
            // Put back in front: the outcome is not known.
            taken.into_iter().rev().for_each(|batch| self.queued.push_front(batch));
        }
    }

    /// The oldest batches go to the journal's head. A crash before the old places are released leaves both.
    fn relocate(&mut self, batches: usize, released: bool) {
        let oldest: Vec<_> = self.queued.iter().take(batches).copied().collect();
        let payloads: Vec<_> = oldest.iter().map(|&(id, _)| payload(id, 100)).collect();
        let Ok(locations) = append(self.journal(), &payloads, true) else { return };
        if !released {
            return self.start();
        }
        let releaser = self.journal().releaser();
        for ((queued, &(_, old)), new) in self.queued.iter_mut().zip(&oldest).zip(locations) {
            queued.1 = new;
            releaser.release(old);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Accept { batches, bytes } => {
                let ids: Vec<u64> = (self.next_id..).take(batches).collect();
                self.next_id += batches as u64;
                self.accept(&ids, bytes);
            }
            Step::Retry { pick } => {
                let known: Vec<u64> = self.acknowledged.iter().copied().collect();
                if !known.is_empty() {
                    // As on a node that does not know it: the ledger alone finds out.
                    self.accept(&[*pick.get(&known)], 10);
                }
            }
            Step::Commit { batches, heard } => self.commit(batches, heard),
            Step::Reclaim => drop(self.journal().reclaim().expect("reclaims")),
            Step::Relocate { batches, released } => self.relocate(batches, released),
            Step::Kill => self.start(),
            Step::LosePower { seed } => {
                self.journal = None;
                self.storage.lose_power(seed);
                self.start();
            }
            Step::FailWrite { successes, sync } => {
                let call = if sync { Call::Sync } else { Call::Write };
                self.storage.fail(call, successes, io::ErrorKind::Other);
                while self.accept(&[self.next_id], 100) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.storage.heal();
                self.start();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_acknowledged_batch_lands_once_whatever_is_interrupted(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.start();
        world.commit(usize::MAX, true);
        world.step(&Step::Reclaim);
        for id in &world.acknowledged {
            prop_assert_eq!(world.rows.get(id), Some(&1), "batch {}", id);
        }
        // A batch that was never acknowledged may be there, too: once.
        prop_assert!(world.rows.values().all(|&times| times == 1));
        prop_assert_eq!(world.journal().stats().live_frames, 0);
    }
}
