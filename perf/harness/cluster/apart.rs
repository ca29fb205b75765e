//! Two machines out of one: PostgreSQL on the first half of the cores, everything that is started afterwards on the others.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Failure, deployed};

/// Cores for PostgreSQL and for all others; given back when dropped.
pub struct Apart {
    postmaster: u32,
    all: CpuSet,
    /// Numbers of PostgreSQL's cores.
    pub database_cores: Vec<usize>,
    /// Those of nodes, nginx and the load.
    pub other_cores: Vec<usize>,
}

impl Apart {
    /// `None` where there is one core only. Must be called on the thread that starts the others.
    pub fn set(postmaster: u32) -> Result<Option<Self>, Failure> {
        let all = sched_getaffinity(None)?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
        let (first, second) = cores.split_at(cores.len() / 2);
        if first.is_empty() {
            return Ok(None);
        }
        let apart = Self { postmaster, all, database_cores: first.to_vec(), other_cores: second.to_vec() };
        apart.confine_database(&set_of(first))?;
        sched_setaffinity(None, &set_of(second))?;
        Ok(Some(apart))
    }

    /// Its sessions to come have it from the postmaster.
    fn confine_database(&self, cores: &CpuSet) -> Result<(), Failure> {
        for pid in std::iter::once(self.postmaster).chain(deployed::children(self.postmaster)) {
            match sched_setaffinity(Pid::from_raw(pid.cast_signed()), cores) {
                // A session may just have ended.
                Err(rustix::io::Errno::SRCH) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // What ends has no cores to be given back.
        let _ = self.confine_database(&self.all);
        let _ = sched_setaffinity(None, &self.all);
    }
}

fn set_of(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    set
}
