//! Which operating system user PostgreSQL runs as: PostgreSQL refuses to run as root.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Users that root hands PostgreSQL to, the first that exists.
const UNPRIVILEGED_NAMES: [&str; 2] = ["postgres", "nobody"];
/// The number of `nobody` where the user list names neither.
const NOBODY: u32 = 65534;

/// The user that PostgreSQL's programs run as and that owns its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// The user that ingestd runs as, who is not root.
    Own {
        /// User number.
        uid: u32,
    },
    /// ingestd runs as root and hands PostgreSQL to this user.
    Handed {
        /// User number, not 0.
        uid: u32,
        /// Group number.
        gid: u32,
    },
}

impl Account {
    /// The account for the data in `data_dir`: its owner where it exists already, so that data made by an
    /// ordinary user stay that user's when root starts the server later.
    pub(super) fn for_data(data_dir: &Path) -> Self {
        let effective = rustix::process::geteuid();
        if !effective.is_root() {
            return Self::Own { uid: effective.as_raw() };
        }
        match fs::metadata(data_dir) {
            Ok(found) if found.uid() != 0 => Self::Handed { uid: found.uid(), gid: found.gid() },
            _ => {
                let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
                let (uid, gid) = unprivileged_in(&users).unwrap_or((NOBODY, NOBODY));
                Self::Handed { uid, gid }
            }
        }
    }

    pub(super) fn uid(&self) -> u32 {
        match *self {
            Self::Own { uid } | Self::Handed { uid, .. } => uid,
        }
    }

    /// Makes `command` run as this user, with no group but its own.
    pub(super) fn apply(&self, command: &mut Command) {
        if let Self::Handed { uid, gid } = *self {
            // Set by root, `uid` also clears the supplementary groups.
            command.gid(gid).uid(uid);
        }
    }

    /// Gives `path` itself to this user.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        match *self {
            Self::Own { .. } => Ok(()),
            Self::Handed { uid, gid } => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
        }
    }

    /// True when this user may pass through `folder` and every folder above it. Judged by the permission
    /// bits alone: what access control lists add is not seen, which at worst moves the data needlessly.
    pub(super) fn may_enter(&self, folder: &Path) -> bool {
        match self {
            Self::Own { .. } => true,
            Self::Handed { .. } => {
                folder.ancestors().all(|above| fs::metadata(above).is_ok_and(|found| self.is_granted(&found, 0o1)))
            }
        }
    }

    /// True when this user may read and run the program at `path`, in folders that it may enter.
    pub(super) fn may_run(&self, path: &Path) -> bool {
        match self {
            Self::Own { .. } => true,
            Self::Handed { .. } => {
                path.parent().is_some_and(|folder| self.may_enter(folder))
                    && fs::metadata(path).is_ok_and(|found| self.is_granted(&found, 0o5))
            }
        }
    }

    /// True when all of `bits` (of `rwx`, as for "others") are granted to this user.
    fn is_granted(&self, found: &Metadata, bits: u32) -> bool {
        let Self::Handed { uid, gid } = *self else { return true };
        let shift = if found.uid() == uid {
            6
        } else if found.gid() == gid {
            3
        } else {
            0
        };
        (found.mode() >> shift) & bits == bits
    }
}

/// The numbers of the first of [`UNPRIVILEGED_NAMES`] in `users`, a text in the format of `/etc/passwd`.
fn unprivileged_in(users: &str) -> Option<(u32, u32)> {
    UNPRIVILEGED_NAMES.iter().find_map(|name| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == *name;
            let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
            let gid = fields.next()?.parse().ok()?;
            found.then_some((uid, gid))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_user_postgres_comes_before_nobody() {
        let users = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\npostgres:x:101:104::/:/bin/sh\n";
        assert_eq!(unprivileged_in(users), Some((101, 104)));
        assert_eq!(unprivileged_in("root:x:0:0:::\nnobody:x:65534:65533:::\n"), Some((65534, 65533)));
        assert_eq!(unprivileged_in("postgres:x:0:0:::\nbroken\n"), None);
    }

    #[test]
    fn a_closed_folder_stops_other_users_but_not_its_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).expect("a folder inside");
        let owner = fs::metadata(folder.path()).expect("it exists").uid();
        let other = Account::Handed { uid: owner + 7, gid: u32::MAX - 1 };
        let set = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("it is ours");
        set(0o700);
        assert!(!other.may_enter(&inner));
        set(0o711);
        assert!(other.may_enter(&inner));
        set(0o700);
        assert!(Account::Own { uid: owner }.may_enter(&inner));
        assert!(Account::Handed { uid: owner, gid: 1 }.may_enter(&inner));
    }
}
