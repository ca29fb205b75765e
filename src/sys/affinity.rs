//! Which cores this process may use, how many workers that makes, and pinning a thread to one.
//!
//! Two limits count: the affinity mask (cpusets, `taskset`) says *which* cores, the CPU quota of the process's
//! control groups (container limits) says *how many at once*. The quota is rounded up: with 1.5 CPUs a second worker
//! still has work to do, where [`std::thread::available_parallelism`] would round down and leave a third unused.
//!
//! Under a quota below the mask, threads are not pinned: neighbours under the same kind of quota see the same mask,
//! and would all pin themselves to its first cores.
//!
//! Formats: `cgroups(7)`; Linux `admin-guide/cgroup-v2` (`cpu.max`) and `scheduler/sched-bwc` (`cpu.cfs_quota_us`).

use std::fs;
use std::path::Path;

pub use core_affinity::CoreId;

/// The cores in this thread's affinity mask, ascending. Ask before threads are pinned: a pinned one sees its own core.
/// Never empty: when the system does not tell, core 0.
pub fn usable_cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().filter(|cores| !cores.is_empty()).unwrap_or_else(|| vec![CoreId { id: 0 }])
}

/// How many cores' worth of time the control groups grant, rounded up; `None` without a quota.
pub fn quota_cores() -> Option<usize> {
    let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
    quota_cores_under(Path::new("/sys/fs/cgroup"), &memberships)
}

/// One worker a usable core, fewer under a lower quota; 1 at least.
pub fn default_workers() -> usize {
    let cores = usable_cores().len();
    quota_cores().map_or(cores, |quota| quota.min(cores))
}

/// The core for each of `workers` threads; `None` where the scheduler should place it: more workers than cores, or a
/// quota below the mask (see the module's page).
pub fn worker_cores(workers: usize) -> Vec<Option<CoreId>> {
    place(workers, &usable_cores(), quota_cores())
}

/// Pins the calling thread to `core`; without pinning everything works, only slower, so a refusal is logged and told
/// but is no error.
pub fn pin_current_thread(core: CoreId) -> bool {
    let pinned = core_affinity::set_for_current(core);
    if !pinned {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::warn!(core = core.id, thread = name, "could not pin thread to core; running unpinned");
    }
    pinned
}

fn place(workers: usize, cores: &[CoreId], quota: Option<usize>) -> Vec<Option<CoreId>> {
    let pin = workers <= cores.len() && quota.is_none_or(|quota| quota >= cores.len());
    (0..workers).map(|worker| if pin { cores.get(worker).copied() } else { None }).collect()
}

/// The lowest quota over the groups named in `memberships` (`/proc/self/cgroup`) and their ancestors, each of which
/// limits as well.
fn quota_cores_under(mount: &Path, memberships: &str) -> Option<usize> {
    let mut lowest = None;
    for line in memberships.lines() {
        // hierarchy:controllers:/path
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let roots: &[&str] = if controllers.is_empty() {
            &["", "unified"]
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            &["cpu", "cpu,cpuacct", "cpuacct,cpu"]
        } else {
            continue;
        };
        for root in roots {
            let group = mount.join(root).join(path.trim_start_matches('/'));
            let groups = group.ancestors().take_while(|group| group.starts_with(mount));
            // A group directory holds the files of its own version only.
            let quota = groups.filter_map(|group| quota_of_v2(group).or_else(|| quota_of_v1(group))).min();
            lowest = lowest.into_iter().chain(quota).min();
        }
    }
    lowest
}

/// `cpu.max`: "quota period" in microseconds, "max" for none.
fn quota_of_v2(group: &Path) -> Option<usize> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    cores_of(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us`, -1 for none, over `cpu.cfs_period_us`.
fn quota_of_v1(group: &Path) -> Option<usize> {
    let number = |file| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
    cores_of(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn cores_of(quota_micros: u64, period_micros: u64) -> Option<usize> {
    if period_micros == 0 {
        return None;
    }
    usize::try_from(quota_micros.div_ceil(period_micros).max(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(ids: impl IntoIterator<Item = usize>) -> Vec<CoreId> {
        ids.into_iter().map(|id| CoreId { id }).collect()
    }

    /// A cgroup file system with `files` (path below the mount, content).
    fn cgroups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().expect("a temporary directory");
        for (path, content) in files {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().expect("files lie in the mount")).expect("the directory can be made");
            fs::write(path, content).expect("the file can be written");
        }
        mount
    }

    #[test]
    fn a_v2_quota_is_rounded_up() {
        for (content, expected) in [("150000 100000\n", Some(2)), ("1000 100000\n", Some(1)), ("max 100000\n", None)] {
            let mount = cgroups(&[("pod/cpu.max", content)]);
            assert_eq!(quota_cores_under(mount.path(), "0::/pod\n"), expected, "{content:?}");
        }
    }

    #[test]
    fn the_lowest_quota_among_ancestors_counts() {
        let mount =
            cgroups(&[("cpu.max", "max 100000"), ("a/cpu.max", "200000 100000"), ("a/b/cpu.max", "800000 100000")]);
        assert_eq!(quota_cores_under(mount.path(), "0::/a/b\n"), Some(2));
    }

    #[test]
    fn a_group_that_this_container_does_not_see_falls_back_to_the_mount() {
        let mount = cgroups(&[("cpu.max", "300000 100000")]);
        assert_eq!(quota_cores_under(mount.path(), "0::/kubepods/unseen\n"), Some(3));
    }

    #[test]
    fn a_v1_quota_is_found_in_the_cpu_controllers_hierarchy() {
        let memberships = "9:memory:/job\n3:cpuset:/job\n1:cpu,cpuacct:/job\n0::/\n";
        for (quota, expected) in [("250000", Some(3)), ("-1", None)] {
            let mount = cgroups(&[
                ("cpu,cpuacct/job/cpu.cfs_quota_us", quota),
                ("cpu,cpuacct/job/cpu.cfs_period_us", "100000"),
                ("memory/job/cpu.cfs_quota_us", "1"),
            ]);
            assert_eq!(quota_cores_under(mount.path(), memberships), expected, "{quota}");
        }
    }

    #[test]
    fn nonsense_in_the_group_files_means_no_quota() {
        for content in ["", "100000", "x y", "100000 0", "-5 100000"] {
            let mount = cgroups(&[("cpu.max", content)]);
            assert_eq!(quota_cores_under(mount.path(), "0::/\nnonsense\n::\n"), None, "{content:?}");
        }
    }

    #[test]
    fn workers_are_pinned_only_where_each_has_a_core_to_itself() {
        let mask = cores([2, 5, 6]);
        let pinned = |count| mask.iter().copied().map(Some).take(count).collect::<Vec<_>>();
        assert_eq!(place(3, &mask, None), pinned(3));
        assert_eq!(place(2, &mask, Some(3)), pinned(2));
        assert_eq!(place(4, &mask, None), [None; 4]);
        assert_eq!(place(2, &mask, Some(2)), [None; 2]);
    }

    #[test]
    fn a_pinned_thread_may_run_on_its_core_only() {
        let core = *usable_cores().last().expect("there is a core");
        let seen = std::thread::spawn(move || pin_current_thread(core).then(usable_cores));
        let seen = seen.join().expect("pinning does not panic");
        assert!(seen.is_none_or(|seen| seen == [core]));
        assert!((1..=usable_cores().len()).contains(&default_workers()));
    }
}
