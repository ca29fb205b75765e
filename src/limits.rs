//! What follows from the settings: every queue, loop, retry and buffer has its limit here, by name.
//!
//! Settings as given live in [`crate::config`]; numbers that only the code needs live here, and
//! related ones are tied by `const` asserts.

use std::time::Duration;

/// One kibibyte.
pub const KIB: usize = 1024;
/// One mebibyte; settings in MB mean this.
pub const MIB: usize = 1024 * KIB;

// --- Settings ------------------------------------------------------------------------------------

/// Longest file with a URL (`DATABASE_URL_FILE`): room for the longest password, not for a device that never ends.
pub const SECRET_FILE_BYTES_MAX: u64 = 64 * KIB as u64;

// --- Events: docs/api.md#send-a-batch ------------------------------------------------------------

/// Longest `event_id`, in bytes after unescaping.
pub const EVENT_ID_BYTES_MAX: usize = 256;
/// Longest `service_name` and `event_type`, in bytes after unescaping.
pub const NAME_BYTES_MAX: usize = 128;
/// Deepest nesting of `payload` and `metadata`; the outermost object counts as one.
pub const JSON_DEPTH_MAX: usize = 128;
/// Most digits of one JSON number in `payload` and `metadata`.
pub const NUMBER_DIGITS_MAX: usize = 400;
/// Largest |exponent| of one JSON number in `payload` and `metadata`.
pub const NUMBER_EXPONENT_MAX: u32 = 400;
/// Most verdicts listed in a 422.
pub const ERRORS_LISTED_MAX: usize = 100;
/// Largest body that the scanner takes: spans are 32-bit byte offsets. `MAX_BODY_MB` stays below it.
pub const BODY_BYTES_MAX: usize = u32::MAX as usize;
/// Longest JSON pointer put into a verdict; a deeper place is named by its nearest ancestor that fits.
pub const POINTER_BYTES_MAX: usize = 512;

const _: () = assert!(EVENT_ID_BYTES_MAX <= i32::MAX as usize && NAME_BYTES_MAX <= EVENT_ID_BYTES_MAX);

// --- HTTP ----------------------------------------------------------------------------------------

/// Connections that may wait to be accepted.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Client addresses that rates and failed attempts are counted for at once; beyond, counting begins anew.
pub const CLIENTS_REMEMBERED_MAX: usize = 100_000;
/// How long an idle address is remembered at least.
pub const CLIENT_KEPT: Duration = Duration::from_secs(300);
/// Wrong keys from one address that are answered at once.
pub const FAILED_ATTEMPTS_AT_ONCE: u32 = 10;
/// Wrong keys a second and address that go on being so.
pub const FAILED_ATTEMPTS_PER_SECOND: u32 = 1;
/// How long the answer to a wrong key beyond that takes.
pub const FAILED_ATTEMPT_DELAY: Duration = Duration::from_secs(1);
/// Waiting batches that `GET /v1/batches` lists unless it is asked for more or fewer.
pub const WAITING_LISTED_DEFAULT: usize = 100;
/// The most that it lists at once: some 500 KB with long reasons.
pub const WAITING_LISTED_MAX: usize = 1000;
/// Owners whose batches an admin's question for a status looks through, when it names none.
pub const STATUS_OWNERS_MAX: usize = 1000;
/// How long a body may take beside what its size allows at `BODY_MIN_KB_PER_SECOND`.
pub const BODY_GRACE: Duration = Duration::from_secs(10);
/// How often it is told that connections are refused.
pub const REFUSED_CONNECTIONS_TOLD_EVERY: Duration = Duration::from_secs(1);
/// How long a worker that cannot accept waits before it tries again.
pub const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(100);
/// A body's memory is taken from what `MAX_REQUESTS_MB` allows in steps of this size.
pub const BODY_RESERVE_STEP_BYTES: u64 = 64 * KIB as u64;
/// Body buffers that a worker keeps for reuse.
pub const BODY_BUFFERS_KEPT_MAX: usize = 32;
/// Largest body buffer that is kept.
pub const BODY_BUFFER_KEPT_BYTES_MAX: usize = 2 * MIB;
/// Longest rest of a body that is read to its end although its request is refused. Beyond, the connection is closed.
pub const BODY_DISCARDED_BYTES_MAX: u64 = MIB as u64;
/// Compressed bytes that one call of a decoder reads at most, and bytes that it gives.
pub const INFLATE_STEP_BYTES: usize = 64 * KIB;
/// Such calls in a row, before a worker turns to its other requests: 1 MiB, or as many gzip members or zstd frames.
pub const INFLATE_STEPS_PER_TURN: usize = 16;
/// Gzip members or zstd frames of one body at most: empty ones give nothing that another limit would count.
pub const INFLATE_MEMBERS_MAX: usize = 65_536;
/// Largest window of a zstd frame, as a power of two: 8 MiB, what RFC 9659 sets for HTTP. Each worker has one at most,
/// beside `MAX_REQUESTS_MB`.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// How long a client that was answered early may go on sending before its connection is cut.
pub const LINGER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes thrown away at once meanwhile.
pub const LINGER_READ_BYTES: usize = 16 * KIB;
/// Longest `X-Request-Id` that is taken from a client.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// A state that comes and goes is logged this often at most ([`crate::state_log`]).
pub const STATE_LOGGED_EVERY: Duration = Duration::from_secs(30);
/// Batches with refused events are told this often by each flusher.
pub const REFUSED_EVENTS_TOLD_EVERY: Duration = Duration::from_secs(1);
/// `Retry-After` of a 503 for a full ring or too many bytes in flight.
pub const RETRY_AFTER_BUSY_SECONDS: u32 = 1;
/// How long a request waits for room behind what PostgreSQL has to commit, before it is refused. It keeps clients that
/// come again at once from spinning; those that are accepted in the end have waited as long.
pub const OVERLOAD_WAIT_MAX: Duration = Duration::from_millis(100);
/// How often it looks.
pub const OVERLOAD_POLL: Duration = Duration::from_millis(20);
/// How long batches may wait for PostgreSQL while an overload goes on; bursts may wait for longer. Enough work for
/// COPYs of full size on all connections.
pub const STANDING_WAIT_MAX: Duration = Duration::from_secs(2);
/// An overload is over when nobody was turned away for as long.
pub const OVERLOAD_OVER_AFTER: Duration = Duration::from_secs(5);
/// Longest `Retry-After` of a 503 because PostgreSQL cannot keep up.
pub const RETRY_AFTER_OVERLOAD_SECONDS_MAX: u64 = 30;
/// `Retry-After` of a 503 for a full or failed journal, and while draining.
pub const RETRY_AFTER_JOURNAL_SECONDS: u32 = 5;
/// How long `ack=commit` waits for PostgreSQL before it answers 202 (the batch is safe in the journal).
pub const COMMIT_ACK_WAIT_MAX: Duration = Duration::from_secs(30);

// --- Open files: src/config/open_files.rs --------------------------------------------------------

/// Open files of a journal segment: one through the page cache, one past it.
pub const OPEN_FILES_PER_SEGMENT: u64 = 2;
/// Open files of an HTTP worker's runtime.
pub const OPEN_FILES_PER_WORKER: u64 = 8;
/// Open files of a worker for each address: the listener, and one to give up when there are no others.
pub const OPEN_FILES_PER_LISTENER: u64 = 2;
/// Open files of everything else, with some to spare: those who watch PostgreSQL, migrate and look up names, Redis, the
/// trace collector, an embedded PostgreSQL, standard streams, locks, keys, certificates, `/proc`, the journal's directory.
pub const OPEN_FILES_OTHER: u64 = 96;
/// Fewer connections than this are no service.
pub const OPEN_FILES_FOR_CONNECTIONS_MIN: u64 = 32;

// --- HTTP/2 --------------------------------------------------------------------------------------

/// Streams open at once on a connection: the least that RFC 9113, 6.5.2, recommends. A client keeps further requests
/// back, or they are refused and it may send them again.
pub const HTTP2_STREAMS_MAX: u32 = 100;
/// Bytes of one body that its client may send before they are read: what the protocol begins with. A body is read as it
/// comes, and counted by `MAX_REQUESTS_MB` then; what a window holds is counted nowhere else.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * KIB as u32 - 1;
/// The same of all bodies of a connection: two windows, so that one request that waits does not stop the others. It
/// bounds a sender to as much for each round trip.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 2 * HTTP2_STREAM_WINDOW_BYTES;
/// Largest frame taken: the least that the protocol allows.
pub const HTTP2_FRAME_BYTES_MAX: u32 = 16 * KIB as u32;
/// Memory of a connection's header compression: what the protocol begins with.
pub const HTTP2_HEADER_TABLE_BYTES: u32 = 4 * KIB as u32;
/// Requests that a client may take back before they are even begun; one more ends the connection (CVE-2023-44487).
pub const HTTP2_RESETS_PENDING_MAX: usize = 20;
/// Streams that a client may make us reset by its errors; one more ends the connection (CVE-2025-8671). A client whose
/// large bodies are refused while it sends them causes some.
pub const HTTP2_LOCAL_RESETS_MAX: usize = 1024;
/// Bytes of an answer that wait for its client's window.
pub const HTTP2_SEND_BUFFER_BYTES_MAX: usize = 64 * KIB;
/// How long a client that was told to go (GOAWAY) may take to say that it knows, before its connection is cut.
pub const HTTP2_GOAWAY_WAIT_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(HTTP2_STREAM_WINDOW_BYTES <= HTTP2_CONNECTION_WINDOW_BYTES);
const _: () = assert!(HTTP2_GOAWAY_WAIT_MAX.as_secs() < HTTP_DRAIN_WAIT_MAX.as_secs());

// --- Blocks and queues ---------------------------------------------------------------------------

/// Smallest block buffer that is kept for reuse; smaller blocks are left to the allocator.
pub const BLOCK_BUFFER_BYTES_MIN: usize = 16 * KIB;
/// Largest block buffer that is kept for reuse.
pub const BLOCK_BUFFER_BYTES_MAX: usize = 4 * MIB;
/// Bytes of all buffers kept, over all sizes.
pub const BLOCK_BUFFERS_KEPT_BYTES_MAX: usize = 128 * MIB;
/// Batches in one core's ring at most; beyond it the request is answered 503.
pub const RING_BATCHES_MAX: usize = 1024;
/// Bytes in one core's ring at most.
pub const RING_BYTES_MAX: usize = 64 * MIB;
/// What a queued batch costs besides its rows, wherever those are: handle, status, the map's entry. Measured with ids of
/// 36 bytes; part of `MEMORY_LIMIT_MB`.
pub const QUEUED_BATCH_BYTES: u64 = 400;
/// What queued batches may take beyond `MEMORY_LIMIT_MB` once none of their rows is in memory any more.
pub const QUEUE_OVER_LIMIT_BYTES: u64 = 64 * MIB as u64;
/// Batches queued over all lanes at most, with `memory_bytes_max` as the limit.
pub const fn queue_batches_max(memory_bytes_max: u64) -> u64 {
    (memory_bytes_max + QUEUE_OVER_LIMIT_BYTES) / QUEUED_BATCH_BYTES
}
/// When queued batches hold more than `MEMORY_LIMIT_MB`, rows leave memory until this share of it is free again.
pub const MEMORY_SHED_SHARE: u64 = 8;

// --- Journal -------------------------------------------------------------------------------------

/// Size of a journal segment; small caps use smaller ones, see [`segment_bytes`].
pub const SEGMENT_BYTES_MAX: u64 = 64 * MIB as u64;
/// Smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = MIB as u64;
/// Share of the cap that one segment takes at most.
pub const SEGMENTS_PER_CAP: u64 = 16;
/// Segment size for a journal capped at `journal_bytes_max`.
pub const fn segment_bytes(journal_bytes_max: u64) -> u64 {
    let share = journal_bytes_max / SEGMENTS_PER_CAP;
    if share > SEGMENT_BYTES_MAX {
        SEGMENT_BYTES_MAX
    } else if share < SEGMENT_BYTES_MIN {
        SEGMENT_BYTES_MIN
    } else {
        share
    }
}
/// Spare segment files kept for recycling at most.
pub const JOURNAL_SPARES_MAX: usize = 2;
/// Bytes of frames written and synced as one group at most.
pub const JOURNAL_GROUP_BYTES_MAX: usize = 8 * MIB;
/// Frames of one group at most: the kernel takes 1024 slices per vectored write (`IOV_MAX`), two a frame.
pub const JOURNAL_GROUP_FRAMES_MAX: usize = 512;
/// Blocks that are written and read past the page cache: what every common device takes.
pub const DIRECT_BLOCK_BYTES: usize = 4 * KIB;
/// Bytes of one such write or read at most; they go through a buffer of this size, which stays in the CPU's cache.
pub const DIRECT_IO_BYTES_MAX: usize = MIB;
/// Bytes read back at once at least: small blocks that were written together come together.
pub const READ_BACK_BYTES_MIN: usize = 128 * KIB;
/// The journal counts as full, for readiness and health, when less than this share of its room is left.
pub const JOURNAL_FULL_HEADROOM_SHARE: u64 = 64;
/// Share of its room that only batches of priority 8 and above may use; at least a segment, where that is no more than
/// twice this share.
pub const JOURNAL_URGENT_SHARE: u64 = 16;
/// Share of its room that only relocation may use, at most a segment: with it, a full journal can still make room.
pub const JOURNAL_RELOCATION_SHARE: u64 = 32;
/// Bytes of blocks that are written again at once at most, or a single block: acknowledgements wait for it.
pub const JOURNAL_RELOCATED_BYTES_MAX: usize = MIB;
/// Blocks of them at most: each may have to be read from another place of the disk.
pub const JOURNAL_RELOCATED_BLOCKS_MAX: usize = 128;
/// Bytes of blocks that are written again at a stop at most, so that a stop stays short.
pub const JOURNAL_RELOCATED_AT_STOP_BYTES_MAX: u64 = 64 * MIB as u64;
/// How often the journal looks whether there is anything to relocate.
pub const JOURNAL_RELOCATION_POLL: Duration = Duration::from_millis(50);
/// How often it wakes up for that while no batches come.
pub const JOURNAL_RELOCATION_IDLE_POLL: Duration = Duration::from_secs(1);
/// After a step, relocation pauses for this many times as long as the step took: a fifth of the journal thread's time.
pub const JOURNAL_RELOCATION_PAUSE: u32 = 4;
/// After a step that moved nothing (flushers have the batches in hand, or the disk is full) it pauses for longer.
pub const JOURNAL_RELOCATION_PAUSE_WITHOUT_GAIN: Duration = Duration::from_millis(100);
/// How often blocks of the active segment are relocated within it, so that a restart replays little.
pub const JOURNAL_ACTIVE_RELOCATION_INTERVAL: Duration = Duration::from_secs(60);
/// Only blocks of batches that have waited for so long: others are about to land.
pub const JOURNAL_ACTIVE_RELOCATION_WAITED: Duration = Duration::from_secs(10);
/// How long the journal waits before it tries again what failed and passes, such as to begin a segment on a full disk.
pub const JOURNAL_RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Quiet time after which the journal notes what is committed, so that a restart replays little.
pub const JOURNAL_IDLE_BEFORE_MARK: Duration = Duration::from_millis(200);

const _: () = assert!(JOURNAL_GROUP_FRAMES_MAX * 2 <= 1024);
const _: () = assert!(
    JOURNAL_RELOCATED_BYTES_MAX <= JOURNAL_GROUP_BYTES_MAX && JOURNAL_RELOCATED_BLOCKS_MAX <= JOURNAL_GROUP_FRAMES_MAX
);
const _: () = assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES_MAX);
const _: () =
    assert!(DIRECT_IO_BYTES_MAX.is_multiple_of(DIRECT_BLOCK_BYTES) && READ_BACK_BYTES_MIN <= DIRECT_IO_BYTES_MAX);

// --- Flushing ------------------------------------------------------------------------------------

/// A COPY should last about this long: the target of rows shrinks above it (`docs/design/0010-copy-size-adapts.md`).
pub const COPY_DURATION_TARGET: Duration = Duration::from_millis(250);
/// The same on a Citus cluster. There every COPY also pays for a two-phase commit, and many of them run at once, so that each
/// takes longer: held to the shorter time they stay at `BATCH_SIZE` rows however much waits, and that is what makes them slow.
pub const SHARDED_COPY_DURATION_TARGET: Duration = Duration::from_secs(1);
/// Rows of one COPY at most (or `BATCH_SIZE`, if that is more).
pub const COPY_ROWS_MAX: u32 = 50_000;
/// Bytes handed to the COPY writer at once: it copies each slice once and blocks once for it
/// (`docs/design/0017-blocking-connections-on-threads.md`).
pub const COPY_CHUNK_BYTES: usize = 256 * KIB;
/// Longest wait of a free flusher for `BATCH_SIZE` rows while another COPY runs.
pub const LINGER_ADAPTIVE_MAX: Duration = Duration::from_millis(10);
/// Longest time for which a commit stays unflushed (`SYNCHRONOUS_COMMIT=off`) while more COPYs follow: what a flush costs is
/// shared by several of them, and the status of a batch is not much later. That of `wal_writer_delay`.
pub const UNFLUSHED_FOR_MAX: Duration = Duration::from_millis(200);
/// First and longest wait of a flusher after a fault; it doubles in between.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
/// See [`RETRY_WAIT_MIN`].
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long nothing may have landed before a fault counts as PostgreSQL's, and not as one session's. Longer than
/// [`RETRY_WAIT_MAX`], so that a flusher has tried again in between.
pub const OUTAGE_AFTER: Duration = Duration::from_secs(3);
/// An outage that is over sooner has no line of the log: sessions that a restart of PostgreSQL left behind end like that.
pub const OUTAGE_SETTLES: Duration = Duration::from_millis(250);
/// Longest time for which a batch is put aside that cannot land while others can; the first time it is [`RETRY_WAIT_MIN`],
/// as a cancelled statement or a lost session looks the same, and it doubles.
pub const POSTPONE_MAX: Duration = Duration::from_secs(30);
/// A batch that was put aside so often, within about two seconds, is reported in the log.
pub const POSTPONED_REPORTED_AT: u32 = 5;
/// Collisions of one cut (deadlock, serialization) that are answered by sending the same batches again at once.
pub const COLLISIONS_MAX: u32 = 3;
/// Sessions that may break with the same batch alone in them before that is the batch's fault, if others land.
pub const SESSIONS_LOST_MAX: u32 = 3;
/// How long a COPY waits for a lock that another session has on a partition, and how long where it is a part of a cut, a
/// retry or urgent: others may be waiting behind it.
pub const COPY_LOCK_WAIT_MAX: Duration = Duration::from_millis(100);
/// See [`COPY_LOCK_WAIT_MAX`].
pub const COPY_LOCK_WAIT_SHORT: Duration = Duration::from_millis(30);
/// How long it waits for [`ROWS_LOCKED_FOR`] after somebody was found to hold rows and no table: with each batch that meets such a
/// row others are cut, and each half of the cut that has it waits again.
pub const COPY_LOCK_WAIT_BRIEF: Duration = Duration::from_millis(10);
/// See [`COPY_LOCK_WAIT_BRIEF`].
pub const ROWS_LOCKED_FOR: Duration = Duration::from_secs(10);
/// The same for making a partition on a Citus cluster, and how long each statement of that may take: it has to wait for the
/// COPYs under way, and is done on each worker.
pub const SHARDED_PARTITION_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long it waits when every COPY has to wait for the lock.
pub const COPY_LOCK_WAIT_LONG: Duration = Duration::from_secs(30);
/// How long a batch that is tried by itself waits for somebody's row, at most once in [`PATIENT_RETRY_EVERY`]: long enough for
/// the watch to find a session in the way that a dead node has left.
pub const COPY_LOCK_WAIT_PATIENT: Duration = Duration::from_secs(15);
/// See [`COPY_LOCK_WAIT_PATIENT`].
pub const PATIENT_RETRY_EVERY: Duration = Duration::from_secs(30);
/// A batch that was waited for in that way is tried so often again before it is next: others may wait for another session.
pub const TRIES_BETWEEN_LONG_TURNS: u32 = 10;
/// How long a COPY of several batches may take; a part of it as much as its share of the rows, but
/// [`COPY_TIME_PART_MIN`] at least. [`COPY_DURATION_TARGET`] is a small part of it.
pub const COPY_TIME_MAX: Duration = Duration::from_secs(2);
/// The first attempt of a COPY of several batches may take [`SLOW_COPY_FACTOR`] times what its rows let expect, and this at
/// least: if some of them are of another month than most, they are suspected to be slow, and put aside.
pub const HASTY_COPY_TIME_MIN: Duration = Duration::from_millis(250);
/// For so long a flusher allows [`COPY_TIME_MAX`] at once after a COPY took longer that had nothing to suspect: then
/// everything is slow.
pub const NOT_HASTY_FOR: Duration = Duration::from_secs(60);
/// See [`COPY_TIME_MAX`].
pub const COPY_TIME_PART_MIN: Duration = Duration::from_millis(100);
/// How long a COPY of a single batch may take while others wait; after that it is landed by itself, and may take as long as it
/// needs. Shorter than [`TCP_USER_TIMEOUT`]: PostgreSQL does not read what it is sent while it is busy with the rows.
pub const COPY_TIME_ALONE_MAX: Duration = Duration::from_secs(8);
/// For how much of one flusher's time batches are retried that do not land: after a failed one it rests so many times as long
/// as that took, up to [`RETRY_REST_MAX`].
pub const RETRY_REST_FACTOR: u32 = 9;
/// See [`RETRY_REST_FACTOR`].
pub const RETRY_REST_MAX: Duration = Duration::from_secs(2);
/// Batches of one month that are refused one after the other, none of it landing, before its batches are not tried with
/// others any more.
pub const REFUSED_IN_A_ROW_OF_A_MONTH: u32 = 3;
/// A COPY that takes so many times as long as one of its rows should, and [`SLOW_COPY_MIN`] at least, is slow.
pub const SLOW_COPY_FACTOR: u32 = 4;
/// See [`SLOW_COPY_FACTOR`].
pub const SLOW_COPY_MIN: Duration = Duration::from_millis(100);
/// After so long without a refusal a month or a partition is tried together with others again.
pub const HELD_FOR_MAX: Duration = Duration::from_secs(60);
/// How often a batch is tried row by row before all of its rows become dead letters.
pub const ROW_BY_ROW_ATTEMPTS_MAX: u32 = 3;
/// Such reports are at least so far apart.
pub const STUCK_TOLD_EVERY: Duration = Duration::from_secs(30);
/// How often a batch is put aside whose bytes do not come back from the journal as they were written, before it is left to
/// the next start: within about 13 seconds. A device, or the way to it, may have given wrong bytes once.
pub const READ_BACK_TRIES_MAX: u32 = 8;
/// Refused rows in a row after which a batch goes row by row: bisecting finds nothing that lands.
pub const REFUSALS_IN_A_ROW_MAX: u32 = 32;
/// Refused rows after which the staging table is emptied.
pub const REFUSED_BEFORE_CLEARED: u32 = 64;
/// Refused rows that one statement writes to the dead letters at most, and about how many bytes of them.
pub const DEAD_LETTERS_PER_STATEMENT_MAX: usize = 1000;
/// See [`DEAD_LETTERS_PER_STATEMENT_MAX`].
pub const DEAD_LETTERS_BYTES_MAX: usize = 4 * MIB;
/// After duplicates were seen the next COPYs go through the staging table at once: a unique violation costs a whole
/// COPY, staging costs about 1.6 of one (`docs/design/0004-ledger-makes-it-exactly-once.md`).
pub const STAGED_COPIES_AFTER_DUPLICATE: u32 = 8;
/// How often one COPY may find that partitions are missing before it counts as a fault.
pub const PARTITION_ATTEMPTS_MAX: u32 = 3;
/// How often one attempt meets an index that `ingestd migrate` builds beside the key: each time another transaction has just
/// committed the same event.
pub const DUPLICATE_RACES_MAX: u32 = 20;
/// How often one attempt prepares its statements again because the key of `events` was exchanged meanwhile.
pub const KEY_CHANGES_MAX: u32 = 2;
/// How often in one attempt what a Citus worker refuses without a reason is sent again as it is.
pub const REMOTE_FAULTS_MAX: u32 = 2;

const _: () = assert!(COPY_DURATION_TARGET.as_millis() * 5 < COPY_TIME_MAX.as_millis());
const _: () = assert!(COPY_TIME_ALONE_MAX.as_millis() < TCP_USER_TIMEOUT.as_millis());
const _: () = assert!(COPY_LOCK_WAIT_PATIENT.as_secs() > 2 * SILENCE_MIN.as_secs() + 2 * WATCH_INTERVAL.as_secs());
const _: () = assert!(RETRY_WAIT_MIN.as_millis() < RETRY_WAIT_MAX.as_millis());
const _: () = assert!(RETRY_WAIT_MAX.as_millis() < OUTAGE_AFTER.as_millis());

// --- PostgreSQL connections ----------------------------------------------------------------------

/// Oldest PostgreSQL that is served, as `server_version_num`.
pub const SERVER_VERSION_MIN: i32 = 15_00_00;
/// How long a flusher waits for a connection of the pool before it counts PostgreSQL as away.
pub const POOL_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a session may take to answer after an error before it is replaced.
pub const RENEW_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long connecting to one address may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command or the start waits until a connection answers, all addresses together.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(20);
/// Silence after which a connection's peer is probed.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Time between probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Probes without answer after which the peer is dead.
pub const KEEPALIVE_RETRIES: u32 = 2;
/// How long sent bytes may stay unacknowledged before the peer is dead.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often connections are looked at that somebody waits on.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a wait may take before PostgreSQL is asked about it, and how long its backend must then stand still, waiting
/// for us, before the connection is dead.
pub const SILENCE_MIN: Duration = Duration::from_secs(5);
/// How long a pooler may be silent that has no backend to lend. PgBouncer itself gives up after 120 s (query_wait_timeout).
pub const POOLER_WAIT_MAX: Duration = Duration::from_secs(180);

const _: () = assert!(KEEPALIVE_IDLE.as_secs() + KEEPALIVE_INTERVAL.as_secs() * KEEPALIVE_RETRIES as u64 <= 10);

// --- Schema --------------------------------------------------------------------------------------

/// How long a node waits for another one that applies migrations.
pub const MIGRATE_LOCK_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long `ingestd migrate` waits for another one that builds indexes. One that was killed leaves PostgreSQL at work on the
/// index in hand.
pub const ONLINE_TURN_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Pause between two looks whether it has ended.
pub const ONLINE_TURN_POLL: Duration = Duration::from_millis(200);
/// Bytes of rows that indexes are built for while `events` is locked, at most: 40,000 rows or so, a tenth of a second.
pub const LOCKED_BUILD_BYTES_MAX: i64 = 16 * MIB as i64;
/// A partition up to this size gets its index in that moment: `CREATE INDEX CONCURRENTLY` waits for every transaction that
/// runs, and most partitions are empty.
pub const SMALL_PARTITION_BYTES_MAX: i64 = 64 * KIB as i64;
/// How often indexes are built again because partitions grew or were added meanwhile.
pub const ONLINE_ROUNDS_MAX: u32 = 8;
/// How often an index is built again that lost a deadlock.
pub const INDEX_BUILDS_MAX: u32 = 5;
/// How long an exchange of indexes waits for vacuums and other changes of the tables, while COPYs go on. More than PostgreSQL's
/// `deadlock_timeout`, after which an automatic vacuum gives way.
pub const EXCHANGE_CALM_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long it then waits for COPYs under way, at first; others wait behind it. Twice as long each time, up to
/// [`EXCHANGE_LOCK_WAIT_MAX`].
pub const EXCHANGE_LOCK_WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest such wait.
pub const EXCHANGE_LOCK_WAIT_MAX: Duration = Duration::from_secs(4);
/// Pause between two attempts, in which COPYs catch up; and twice as long as they had to wait.
pub const EXCHANGE_PAUSE: Duration = Duration::from_secs(1);
/// Attempts of `ingestd migrate`, about six minutes.
pub const EXCHANGE_ATTEMPTS_MAX: u32 = 30;
/// Attempts of a server that starts.
pub const EXCHANGE_ATTEMPTS_AT_START_MAX: u32 = 3;
/// Pages (8 KiB) that one entry of the BRIN index on `"timestamp"` sums up, about 600 rows of 400 bytes. See
/// docs/design/0024-events-key-is-the-identity.md.
pub const TIME_INDEX_PAGES_PER_RANGE: u32 = 32;
/// Partitions made in one transaction at most: a batch may hold events of ten years, and each new table takes a handful
/// of PostgreSQL's shared locks until its transaction ends (`max_locks_per_transaction`, 64 for each connection).
pub const PARTITIONS_PER_TRANSACTION_MAX: usize = 12;
/// How long making partitions waits for a lock; a flusher may be waiting for the result.
pub const PARTITION_LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long detaching a partition waits for another one that is being detached: PostgreSQL does one at a time.
pub const PARTITION_DETACH_WAIT_MAX: Duration = Duration::from_secs(60);
/// Pause before it is tried again.
pub const PARTITION_DETACH_RETRY_PAUSE: Duration = Duration::from_millis(50);

// --- Citus ----------------------------------------------------------------------------------------

/// A transaction that a worker has prepared is decided within moments; after this long something is wrong.
pub const IN_DOUBT_AFTER: Duration = Duration::from_secs(30);
/// How often a coordinator should decide what a crash left undecided, at the longest.
pub const RECOVERY_INTERVAL_ADVISED: Duration = Duration::from_secs(10);
/// How often the coordinator is asked how its workers are.
pub const CLUSTER_LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// For how long a coordinator's backend must stand still to be taken for dead. While it waits for a worker it looks as if it
/// waited for its client, so this is longer than any statement may take there (`TRANSACTION_LIMITS`).
pub const SHARDED_STANDSTILL_MIN: Duration = Duration::from_secs(75);
/// How long dropping a partition may wait for COPYs under way: those that come meanwhile wait as well.
pub const SHARDED_DROP_WAIT_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(SHARDED_DROP_WAIT_MAX.as_millis() > SHARDED_COPY_DURATION_TARGET.as_millis());

// --- Embedded PostgreSQL -------------------------------------------------------------------------

/// Oldest major version of PostgreSQL that is served (`docs/settings.md#all-settings`).
pub const POSTGRES_MAJOR_MIN: u32 = 15;
/// Major version of PostgreSQL that is recommended (`docs/settings.md#all-settings`) and taken before older ones.
pub const POSTGRES_MAJOR_RECOMMENDED: u32 = 18;
/// How long `initdb` may take.
pub const POSTGRES_INIT_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long PostgreSQL may take until it answers on its socket at all.
pub const POSTGRES_ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// An embedded PostgreSQL that answers but takes no connection for longer than this is reported in the log: a plain start is
/// over by then, a recovery may take minutes.
pub const POSTGRES_START_REPORTED_AFTER: Duration = Duration::from_secs(2);
/// How long PostgreSQL may take to replay its WAL after a crash (`max_wal_size` is 4 GB).
pub const POSTGRES_RECOVERY_WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// How long the PostgreSQL of a killed ingestd may take to end.
pub const POSTGRES_PREVIOUS_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a fast shutdown may take before it is made an immediate one.
pub const POSTGRES_FAST_STOP_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long an immediate shutdown may take before the process is killed; and how long that may take.
pub const POSTGRES_IMMEDIATE_STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// First and longest pause before PostgreSQL is started again after it ended by itself.
pub const POSTGRES_RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// PostgreSQL that ran this long starts again after the first pause.
pub const POSTGRES_STEADY_AFTER: Duration = Duration::from_secs(60);
/// PostgreSQL's log is put aside at start when it is larger.
pub const POSTGRES_LOG_BYTES_MAX: u64 = 16 * MIB as u64;
/// How much of PostgreSQL's log an error quotes at most.
pub const POSTGRES_LOG_QUOTE_BYTES_MAX: usize = 300;
/// How often a process or a socket is looked at while it is waited for.
pub const POSTGRES_POLL_PAUSE: Duration = Duration::from_millis(20);

// --- Status and look-ups -------------------------------------------------------------------------

/// Finished batches kept in process at most (~300 bytes each); the ledger answers for the rest.
pub const STATUS_BATCHES_MAX: usize = 200_000;
/// How long ingestion waits to learn whether a client's batch id was used before this process knew it.
/// Without an answer the batch is taken: the ledger decides at the commit.
pub const LOOKUP_INGEST_WAIT_MAX: Duration = Duration::from_millis(250);
/// How long a status request waits for Redis and the ledger.
pub const LOOKUP_STATUS_WAIT_MAX: Duration = Duration::from_secs(2);
/// Look-ups waiting at most.
pub const LOOKUPS_WAITING_MAX: usize = 4096;
/// Look-ups answered by one query.
pub const LOOKUPS_GROUP_MAX: usize = 256;
/// How long a look-up waits for one node of a Citus cluster: half of [`LOOKUP_STATUS_WAIT_MAX`], so that those on the others
/// are answered in time.
pub const LOOKUP_NODE_LIMITS: &str =
    "SET LOCAL statement_timeout = '1s'; SET LOCAL citus.node_connection_timeout = '1s'";
/// For how long a node that has not answered is not asked.
pub const LOOKUP_NODE_REST: Duration = Duration::from_secs(5);
/// Threads that look up.
pub const LOOKUP_THREADS: usize = 2;

// --- Redis ---------------------------------------------------------------------------------------

/// Status changes that wait for Redis at most; beyond it the oldest are dropped.
pub const REDIS_QUEUE_MAX: usize = 65_536;
/// Status changes written in one pipeline.
pub const REDIS_GROUP_MAX: usize = 512;
/// Bound on connecting, reading and writing.
pub const REDIS_IO_WAIT_MAX: Duration = Duration::from_secs(1);
/// Pause before Redis is tried again.
pub const REDIS_RETRY_WAIT: Duration = Duration::from_millis(500);
/// How long the last status changes may take to be written at the end.
pub const REDIS_STOP_WAIT_MAX: Duration = Duration::from_secs(2);

// --- Upkeep --------------------------------------------------------------------------------------

/// How often the upkeep thread looks around.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// PostgreSQL is asked whether it works this often while no COPY tells.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// What the database and the role must have is checked this often; every [`PROBE_INTERVAL`] while something is missing.
pub const REQUIREMENTS_LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Partitions ahead are made, and old ones dropped, this often.
pub const PARTITION_UPKEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Maintenance that PostgreSQL refused is tried again after this.
pub const MAINTENANCE_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Rows of the ledger that are forgotten at once (`LEDGER_RETENTION_DAYS`); while there are more, once an
/// [`UPKEEP_INTERVAL`].
pub const LEDGER_FORGET_ROWS_MAX: i64 = 20_000;
/// Finished batches are expired this often.
pub const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

// --- Shutdown ------------------------------------------------------------------------------------

/// How long requests under way may take to finish after SIGTERM.
pub const HTTP_DRAIN_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long what is queued may take to be committed after SIGTERM; the rest is in the journal.
pub const FLUSH_DRAIN_WAIT_MAX: Duration = Duration::from_secs(8);
/// How long a COPY under way, or the upkeep, may take after that before the server ends without waiting for it.
pub const FLUSH_STOP_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long blocks are written again at a stop at most, so that the next start replays little: no further one is begun.
pub const JOURNAL_STOP_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often a stopping server looks whether its queue is empty.
pub const STOP_POLL: Duration = Duration::from_millis(10);
/// How long a stop takes at most, without an embedded PostgreSQL: its steps in their order, each with its bound. Documents
/// and deployment files name this number (`tests/repository/stop_times.rs`).
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(
    HTTP_DRAIN_WAIT_MAX.as_secs()
        + FLUSH_DRAIN_WAIT_MAX.as_secs()
        + FLUSH_STOP_WAIT_MAX.as_secs() // flushers
        + JOURNAL_STOP_WAIT_MAX.as_secs()
        + FLUSH_STOP_WAIT_MAX.as_secs() // upkeep
        + REDIS_STOP_WAIT_MAX.as_secs()
        + TRACES_STOP_WAIT_MAX.as_secs(),
);
/// How long an embedded PostgreSQL takes after that at most: a fast shutdown, an immediate one, a kill.
pub const POSTGRES_STOP_WAIT_MAX: Duration =
    Duration::from_secs(POSTGRES_FAST_STOP_WAIT_MAX.as_secs() + 2 * POSTGRES_IMMEDIATE_STOP_WAIT_MAX.as_secs());
/// How long Kubernetes waits before it tells a pod to stop (`preStop`).
pub const PRE_STOP_WAIT: Duration = Duration::from_secs(5);
/// How long systemd, Compose, Docker and Kubernetes wait for the end before they kill, in the files of this repository.
pub const STOP_GRACE: Duration = Duration::from_secs(45);

/// How often `journal drain` looks whether all has landed, and lets go what has.
pub const JOURNAL_DRAIN_POLL: Duration = Duration::from_millis(100);
/// How long it waits before it tries to reach PostgreSQL again.
pub const JOURNAL_DRAIN_RETRY_WAIT: Duration = Duration::from_secs(1);

const _: () = assert!(LINGER_WAIT_MAX.as_secs() < HTTP_DRAIN_WAIT_MAX.as_secs());

/// How long after SIGTERM a container is usually killed (Kubernetes' default grace period).
const GRACE_USUAL: Duration = Duration::from_secs(30);
const _: () = assert!(STOP_WAIT_MAX.as_secs() < GRACE_USUAL.as_secs());
const _: () = assert!(PRE_STOP_WAIT.as_secs() + GRACE_USUAL.as_secs() < STOP_GRACE.as_secs());

// --- Traces --------------------------------------------------------------------------------------

/// Spans that wait for the collector, about a kilobyte each; further ones are dropped.
pub const TRACES_QUEUE_SPANS_MAX: usize = 2048;
/// Spans in one request to the collector.
pub const TRACES_EXPORT_SPANS_MAX: usize = 512;
/// How often spans are sent.
pub const TRACES_EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the collector may take to answer, retries included.
pub const TRACES_EXPORT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Largest answer that is read from it.
pub const TRACES_ANSWER_BYTES_MAX: u64 = 64 * KIB as u64;
/// How long the last spans may take when the server stops.
pub const TRACES_STOP_WAIT_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(TRACES_EXPORT_SPANS_MAX <= TRACES_QUEUE_SPANS_MAX);

// --- Metrics -------------------------------------------------------------------------------------

/// Windows over which events a second are told.
pub const THROUGHPUT_WINDOWS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];
/// Samples kept for the windows above: one a second, and the one at the beginning of the longest window.
pub const THROUGHPUT_SAMPLES_MAX: usize = 61;

const _: () = assert!(THROUGHPUT_SAMPLES_MAX as u64 == THROUGHPUT_WINDOWS[2].as_secs() + 1);

/// How often throughput and history are sampled.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Samples of history that the dashboard can look back on: ten minutes of about 300 bytes each.
pub const HISTORY_SAMPLES_MAX: usize = 600;
/// Latest batches that each worker remembers for the dashboard, and how many it shows.
pub const RECENT_BATCHES_MAX: usize = 25;
/// What the dashboard says of what is wrong looks back as far.
pub const CONCERN_WINDOW: Duration = Duration::from_secs(60);
/// It says that the journal is filling from this share on.
pub const CONCERN_JOURNAL_SHARE: f64 = 0.5;
/// It says that open files run short from this share on.
pub const CONCERN_OPEN_FILES_SHARE: f64 = 0.8;
/// Kinds of reasons for refused events that one transaction tells.
pub const REASONS_TOLD_MAX: usize = 8;
/// Latest batches with dead letters that are remembered, and kinds of reasons for them.
pub const RECENT_TROUBLE_MAX: usize = 20;
