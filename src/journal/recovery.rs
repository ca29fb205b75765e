//! Opening a journal: what the last process left becomes outstanding blocks and a new segment.
//!
//! ```text
//!  lock ─▶ survey (reads and judges, `survey` has the decision tables) ─▶ hand out the uncommitted blocks
//!       ─▶ cut the torn tail, sync ─▶ remove leftovers ─▶ begin a segment ─▶ let drained segments go
//! ```
//!
//! Nothing on disk changes before every block is handed out; a crash anywhere after that finds the same blocks again.
//! A damaged segment keeps its name while blocks in it are outstanding, so that another crash finds them again too;
//! when they are committed it is renamed to `….quarantined`, not removed.
//!
//! Writing never goes on in an old segment: its end is judged once, and the hole that a torn tail leaves is recorded,
//! so that it is not taken for loss at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::damage::{Damage, TornTail};
use super::frame::framed_bytes;
use super::outstanding::Outstanding;
use super::reader::{JournalReader, OpenFiles, ReadError};
use super::segment::{node_id_cut, segment_name};
use super::segments::{Segment, Segments};
use super::space::{JournalSpace, SEGMENT_BYTES_FLOOR, bytes_max_floor};
use super::storage::{Access, Storage};
use super::survey::{Survey, SurveyedSegment, survey};
use super::writer::{Journal, Recovered};
use super::{JournalOptions, Location, OnFrame, OnRead, WriteError};
use crate::limits::JOURNAL_SPARES_MAX;
use crate::types::Sequence;

/// Why a journal cannot be opened. Nothing on disk has been changed, but for [`OpenError::Write`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the journal in {} is in use ({holder}); stop that server, or give this one a separate \
        JOURNAL_DIR", dir.display())]
    Locked {
        /// The journal's directory.
        dir: PathBuf,
        /// What is known of the holder.
        holder: String,
    },
    /// The directory, or the file system that it is on, may not be written.
    #[error(
        "cannot write to the journal directory {}: {source}; make it writable for this user, or set JOURNAL_DIR to \
         another",
        dir.display()
    )]
    NotWritable {
        /// The journal's directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cap is too small for segments of this size.
    #[error("a journal limit of {bytes_max} bytes is too small; at least {bytes_min} bytes are required")]
    CapTooSmall {
        /// The cap given.
        bytes_max: u64,
        /// The smallest that works.
        bytes_min: u64,
    },
    /// A newer ingestd wrote it.
    #[error(
        "{} has journal format version {version}; this ingestd reads up to {version_max}. Start the newer ingestd. To \
         go back, first empty the journal with 'ingestd journal drain' of the newer version, then remove the journal \
         directory",
        file.display()
    )]
    Newer {
        /// The segment.
        file: PathBuf,
        /// Its version.
        version: u32,
        /// The newest that this code reads.
        version_max: u32,
    },
    /// A file was renamed or copied by hand.
    #[error(
        "{} holds segment {segment}: it was renamed or copied. Rename it back to {}, or move it out of the directory \
         if that segment is there too",
        file.display(), segment_name(*segment)
    )]
    Misnamed {
        /// The file.
        file: PathBuf,
        /// The segment that its header names.
        segment: u64,
    },
    /// The file system failed.
    #[error("reading the journal, {}: {source}", file.display())]
    Io {
        /// File or directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A block that was sound a moment ago could not be read again.
    #[error("recovering the journal: {0}")]
    ReadBack(#[from] ReadError),
    /// The receiver did not take a block.
    #[error("recovering block {} of journal segment {}: {source}", location.sequence.0, location.segment)]
    Rejected {
        /// Which block.
        location: Location,
        /// The receiver's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Cutting, removing, or beginning a segment failed.
    #[error(
        "opening the journal in {}: {source}; make room there, or set JOURNAL_DIR to another directory",
        dir.display()
    )]
    Write {
        /// The journal's directory.
        dir: PathBuf,
        /// What failed.
        source: WriteError,
    },
}

impl OpenError {
    pub(super) fn io(storage: &dyn Storage, file: &str, source: io::Error) -> Self {
        Self::Io { file: storage.dir().join(file), source }
    }
}

/// What was found at open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segments read.
    pub segments: usize,
    /// Blocks handed out.
    pub frames_recovered: u64,
    /// Bytes of their payloads.
    pub bytes_recovered: u64,
    /// Sequence of the next block.
    pub next_sequence: Sequence,
    /// The end of the last segment, if a crash tore it.
    pub torn_tail: Option<TornTail>,
    /// Everything that is not as it was written; see [`Damage::is_harmful`].
    pub damage: Vec<Damage>,
    /// Files of damaged segments that earlier starts put aside, still to be looked at by a person.
    pub quarantined: Vec<String>,
    /// Other nodes that wrote segments found here (a renamed host, a new container): accepted, and told.
    pub foreign_nodes: Vec<String>,
}

impl Recovery {
    /// True when uncommitted blocks are, or may be, lost, now or earlier: for health, and for a person to look at.
    pub fn is_degraded(&self) -> bool {
        self.damage.iter().any(Damage::is_harmful) || !self.quarantined.is_empty()
    }

    /// Says all of it in the log, loudly where blocks may be lost.
    fn log(&self) {
        for damage in &self.damage {
            if damage.is_harmful() {
                tracing::error!(%damage, "journal damaged: all readable blocks were recovered, the segment is kept");
            } else {
                tracing::info!(%damage, "journal damaged, but only where everything was already committed");
            }
        }
        if let Some(TornTail { segment, offset, frames_torn, frames_salvaged, torn_bytes }) = self.torn_tail {
            let message = "journal ends in a torn write, as after a crash: it contained no acknowledged block";
            tracing::warn!(segment, offset, torn_bytes, frames_torn, frames_salvaged, "{message}");
        }
        for file in &self.quarantined {
            tracing::warn!(
                file,
                "damaged journal segment is still in the journal directory; inspect it, then remove it"
            );
        }
        for node in &self.foreign_nodes {
            tracing::warn!(node, "journal contains segments of another node; this node commits them");
        }
        let Self { segments, frames_recovered, bytes_recovered, next_sequence, .. } = self;
        let next_sequence = next_sequence.0;
        tracing::info!(segments, frames_recovered, bytes_recovered, next_sequence, "journal opened");
    }
}

pub(super) fn open(
    storage: Arc<dyn Storage>,
    options: &JournalOptions,
    on_frame: &mut OnFrame<'_>,
    on_read: &mut OnRead<'_>,
) -> Result<(Journal, Recovery), OpenError> {
    let bytes_min = bytes_max_floor(options.segment_bytes.max(SEGMENT_BYTES_FLOOR));
    if options.bytes_max < bytes_min || options.segment_bytes < SEGMENT_BYTES_FLOOR {
        return Err(OpenError::CapTooSmall { bytes_max: options.bytes_max, bytes_min });
    }
    let lock = storage.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { dir: storage.dir().to_owned(), holder: error.to_string() },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::NotWritable { dir: storage.dir().to_owned(), source: error }
        }
        _ => OpenError::io(&*storage, super::storage::LOCK_NAME, error),
    })?;
    let mut survey = survey(&*storage, on_read)?;
    let mut recovery = report(&survey, options);
    let files = Arc::new(OpenFiles::default());
    for segment in &survey.segments {
        files.insert(segment.id, Arc::clone(&segment.file));
    }
    hand_out(&survey, &files, on_frame, on_read, &mut recovery)?;

    let Survey { uncommitted, next_sequence, committed_below, .. } = &survey;
    let mut outstanding = Outstanding::new(Sequence(1));
    for location in uncommitted {
        outstanding.push(location.sequence);
    }
    outstanding.skip_to(*next_sequence);
    let live_bytes = uncommitted.iter().map(|location| framed_bytes(location.payload_bytes as usize)).sum();
    let committed_durable = *committed_below;
    let torn = std::mem::take(&mut survey.torn);
    let mut segments = clean_up(&storage, options, survey, files)?;
    let journal = record_torn(&mut segments, &torn, outstanding.low(), committed_durable)
        .and_then(|()| Journal::begin(Recovered { segments, outstanding, live_bytes, lock }));
    let dir = || storage.dir().to_owned();
    let journal = journal.map_err(|source| OpenError::Write { dir: dir(), source })?;
    recovery.log();
    Ok((journal, recovery))
}

fn report(survey: &Survey, options: &JournalOptions) -> Recovery {
    let nodes = survey.segments.iter().filter_map(|segment| segment.header.as_ref().ok()).map(|header| &header.node_id);
    let foreign: BTreeSet<&String> = nodes.filter(|node| *node != node_id_cut(&options.node_id)).collect();
    Recovery {
        segments: survey.segments.len(),
        frames_recovered: 0,
        bytes_recovered: 0,
        next_sequence: survey.next_sequence,
        torn_tail: survey.torn_tail,
        damage: survey.damage.clone(),
        quarantined: survey.quarantined.iter().map(|entry| entry.name.clone()).collect(),
        foreign_nodes: foreign.into_iter().cloned().collect(),
    }
}

fn hand_out(
    survey: &Survey,
    files: &Arc<OpenFiles>,
    on_frame: &mut OnFrame<'_>,
    on_read: &mut OnRead<'_>,
    recovery: &mut Recovery,
) -> Result<(), OpenError> {
    let bytes_uncommitted: u64 = survey.uncommitted.iter().map(|location| u64::from(location.payload_bytes)).sum();
    let bytes_all = survey.bytes_read + bytes_uncommitted;
    let mut reader = JournalReader::new(Arc::clone(files));
    let mut payload = Vec::new();
    for &location in &survey.uncommitted {
        on_read(survey.bytes_read + recovery.bytes_recovered, bytes_all);
        reader.read(&location, &mut payload)?;
        on_frame(location, &payload).map_err(|source| OpenError::Rejected { location, source })?;
        recovery.frames_recovered += 1;
        recovery.bytes_recovered += payload.len() as u64;
    }
    on_read(bytes_all, bytes_all);
    Ok(())
}

/// Brings the directory into the state that the writer keeps: whole segments, spares, nothing else.
fn clean_up(
    storage: &Arc<dyn Storage>,
    options: &JournalOptions,
    survey: Survey,
    files: Arc<OpenFiles>,
) -> Result<Segments, OpenError> {
    let remove = |name: &str| storage.remove(name).map_err(|error| OpenError::io(&**storage, name, error));
    for entry in &survey.unfinished {
        remove(&entry.name)?;
    }
    let (mut spares, odd): (Vec<_>, Vec<_>) =
        survey.spares.into_iter().partition(|spare| spare.bytes == options.segment_bytes);
    let too_many = spares.split_off(spares.len().min(JOURNAL_SPARES_MAX));
    for entry in odd.iter().chain(&too_many) {
        remove(&entry.name)?;
    }

    let mut waiting: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for location in &survey.uncommitted {
        let (blocks, bytes) = waiting.entry(location.segment).or_default();
        *blocks += 1;
        *bytes += framed_bytes(location.payload_bytes as usize);
    }
    let damaged: BTreeSet<u64> = survey.damage.iter().filter(|d| d.is_harmful()).map(|d| d.segment).collect();
    let mut segments = Segments {
        storage: Arc::clone(storage),
        space: Arc::new(JournalSpace::new(options.bytes_max, options.segment_bytes)),
        files,
        node_id: options.node_id.clone(),
        segment_bytes: options.segment_bytes,
        bytes_max: options.bytes_max,
        sealed: BTreeMap::new(),
        drained: Vec::new(),
        files_bytes: spares.iter().chain(&survey.quarantined).map(|entry| entry.bytes).sum(),
        spares,
        absent: survey.absent,
        next_id: survey.segment_id_max + 1,
        leftovers: Vec::new(),
        are_names_unsynced: false,
        is_a_name_in_doubt: false,
    };
    segments.space.charge_file(survey.quarantined.iter().map(|entry| entry.bytes).sum());
    // The last process may have named a spare and not synced the name: it must not come back under the old one, behind
    // the header of the segment that it becomes next.
    storage.sync_dir().map_err(|error| OpenError::io(&**storage, "", error))?;
    let last = survey.segments.iter().rposition(|segment| !segment.is_blank);
    for (index, surveyed) in survey.segments.into_iter().enumerate() {
        if surveyed.is_blank {
            remove(&segment_name(surveyed.id))?;
            segments.files.remove(surveyed.id);
            continue;
        }
        let waiting = waiting.get(&surveyed.id).copied().unwrap_or_default();
        let mut segment = taken_over(surveyed, waiting, &damaged);
        if Some(index) == last {
            end_last(&**storage, &mut segment)?;
        }
        segments.files_bytes += segment.bytes;
        segments.seal(segment);
    }
    Ok(segments)
}

fn taken_over(surveyed: SurveyedSegment, (outstanding, live_bytes): (u64, u64), damaged: &BTreeSet<u64>) -> Segment {
    Segment {
        id: surveyed.id,
        file: surveyed.file,
        bytes: surveyed.bytes,
        end: surveyed.end,
        first: surveyed.first,
        last: surveyed.last,
        outstanding,
        live_bytes,
        changed_at: Instant::now(),
        charged_bytes: 0,
        is_damaged: damaged.contains(&surveyed.id),
    }
}

/// Records torn sequences as no loss, unless the next segment's header will: it says that all below `low` is done.
/// The hole must be on record before that segment exists, after which it could not be told from loss.
fn record_torn(
    segments: &mut Segments,
    torn: &[Range<u64>],
    low: Sequence,
    committed_durable: Sequence,
) -> Result<(), WriteError> {
    let mut is_new = false;
    for range in torn.iter().filter(|range| range.end > low.0) {
        segments.absent.insert(Sequence(range.start), Sequence(range.end - 1));
        is_new = true;
    }
    if is_new { segments.save_absent(committed_durable) } else { Ok(()) }
}

/// Cuts what is behind the last sound frame of the last segment, unless a person should see it, and syncs: after a
/// process crash the recovered blocks may be in the page cache only.
fn end_last(storage: &dyn Storage, segment: &mut Segment) -> Result<(), OpenError> {
    let name = segment_name(segment.id);
    let io = |error| OpenError::io(storage, &name, error);
    let file = storage.open(&name, Access::Write).map_err(io)?;
    if segment.bytes > segment.end && !segment.is_damaged {
        file.set_bytes(segment.end).map_err(io)?;
        segment.bytes = segment.end;
    }
    file.sync_data().map_err(io)
}
