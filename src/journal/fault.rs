//! What a failed call of the file system means for the journal. This table is the only place that decides it:
//!
//! | operation | error | the journal |
//! |---|---|---|
//! | making the next segment: its file and room, its header, its name; opening a spare | any | goes on: the group is refused, no byte of it is written |
//! | letting segments go: `absent`, recycling, removing, setting aside, cutting, the directory | any | goes on: the room comes back later |
//! | writing a mark | no room, descriptors or memory | goes on: the mark only spares a restart work |
//! | writing a mark | any other | has failed: the device did not take what it was given |
//! | writing or syncing blocks | any | has failed: what of them the next start finds is unknown |
//!
//! What goes on is tried again: by the next group that needs it, and by the journal thread, until it works.
//!
//! After a failed fsync nobody knows what is on disk, and to try it again would lie (the kernel drops the dirty pages). The
//! same holds for a write, also where the device is full: a part of the group, with whole blocks, may be there.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

/// What the journal was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Making the file of the next segment and reserving its room.
    Create,
    /// Opening a spare file that is to be the next segment.
    OpenSpare,
    /// Writing and syncing the next segment's header, before it has its name.
    WriteHeader,
    /// Giving the next segment its name for good.
    Name,
    /// Keeping a segment that is done with as a spare.
    Recycle,
    /// Removing a file.
    Remove,
    /// Putting a damaged segment aside.
    SetAside,
    /// Replacing the `absent` file.
    WriteAbsent,
    /// Cutting a segment to what is written of it.
    Cut,
    /// Making changed names survive power loss.
    SyncNames,
    /// Writing a mark.
    WriteMark,
    /// Writing blocks.
    WriteBlocks,
    /// Syncing blocks.
    SyncBlocks,
}

impl Operation {
    #[cfg(test)]
    const ALL: [Self; 13] = [
        Self::Create,
        Self::OpenSpare,
        Self::WriteHeader,
        Self::Name,
        Self::Recycle,
        Self::Remove,
        Self::SetAside,
        Self::WriteAbsent,
        Self::Cut,
        Self::SyncNames,
        Self::WriteMark,
        Self::WriteBlocks,
        Self::SyncBlocks,
    ];

    /// The table of the module.
    fn passes(self, error: &io::Error) -> bool {
        match self {
            Self::Create | Self::OpenSpare | Self::WriteHeader | Self::Name => true,
            Self::Recycle | Self::Remove | Self::SetAside | Self::WriteAbsent | Self::Cut | Self::SyncNames => true,
            Self::WriteMark => is_shortage(error),
            Self::WriteBlocks | Self::SyncBlocks => false,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "creating",
            Self::OpenSpare => "opening",
            Self::WriteHeader => "writing the header of",
            Self::Name => "naming",
            Self::Recycle => "recycling",
            Self::Remove => "removing",
            Self::SetAside => "setting aside",
            Self::WriteMark => "writing a mark to",
            Self::WriteAbsent | Self::WriteBlocks => "writing",
            Self::Cut => "cutting",
            Self::SyncNames | Self::SyncBlocks => "syncing",
        })
    }
}

/// An operation that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {file}: {source}")]
pub struct Failure {
    /// What was tried.
    pub operation: Operation,
    /// On which file of the journal's directory.
    pub file: String,
    /// What the system said.
    pub source: Arc<io::Error>,
}

/// Why something was not done that may be done later.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The device is full.
    #[error("no space on the device for a journal segment of {segment_bytes} bytes: {source}")]
    NoSpace {
        /// Length of the file that did not fit.
        segment_bytes: u64,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The cap is reached. Cannot happen to blocks that hold a reservation while what is done with can be removed.
    #[error("the journal has reached its limit: {files_bytes} of {bytes_max} bytes are on disk")]
    CapReached {
        /// Bytes on disk.
        files_bytes: u64,
        /// The cap.
        bytes_max: u64,
    },
    /// Anything else.
    #[error("{0}")]
    Operation(Failure),
}

/// Why a group, or the rest of it, was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// It passes, and no byte of what is refused was written. Later groups may succeed.
    #[error("{0}")]
    Refused(Refusal),
    /// The journal has failed while it wrote: blocks of this group may be found by the next start, or not.
    #[error("the journal has failed: {0}")]
    Failed(Failure),
    /// The journal had failed before a byte of this group was written.
    #[error("the journal has failed: {0}")]
    Latched(Failure),
}

impl WriteError {
    /// True where a later attempt may succeed.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// What follows from `source`, which `operation` met on `file`.
pub(super) fn of(operation: Operation, file: &str, source: io::Error) -> WriteError {
    let passes = operation.passes(&source);
    let failure = Failure { operation, file: file.to_owned(), source: Arc::new(source) };
    if passes { WriteError::Refused(Refusal::Operation(failure)) } else { WriteError::Failed(failure) }
}

/// True when `error` says that there is no more of something that others use as well, and give back.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    is_no_space(error)
        || error.kind() == io::ErrorKind::OutOfMemory
        || matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// True when `error` says that the device or a quota is full.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_changed_blocks_is_final() {
        let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOSPC, Errno::DQUOT];
        let others = [Errno::IO, Errno::ROFS, Errno::ACCESS, Errno::NOENT];
        for operation in Operation::ALL {
            let passes = |errno: Errno| of(operation, "file", errno.into()).is_passing();
            let expected = match operation {
                Operation::WriteBlocks | Operation::SyncBlocks => (false, false),
                Operation::WriteMark => (true, false),
                _ => (true, true),
            };
            for shortage in shortages {
                assert_eq!(passes(shortage), expected.0, "{operation} {shortage}");
            }
            for other in others {
                assert_eq!(passes(other), expected.1, "{operation} {other}");
            }
        }
    }
}
