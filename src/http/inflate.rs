//! Compressed bodies: which content coding a request names, and its bytes decompressed within the limits of plain ones.
//!
//! A worker decompresses one body at a time, in steps, and serves its other requests in between: so the memory of a
//! decoder, 8 MiB of window with zstd, is needed once a worker. What comes out is counted as it comes out; nothing that
//! the compressed bytes promise is believed.
//! Absent on purpose: several codings on top of each other, and dictionaries.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, HeaderMap};
use tokio::sync::Mutex;
use tokio::task::yield_now;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation};

use crate::http::body::BodyBytes;
use crate::http::problem::Problem;
use crate::limits::{
    INFLATE_MEMBERS_MAX, INFLATE_STEP_BYTES, INFLATE_STEPS_PER_TURN, RETRY_AFTER_BUSY_SECONDS, ZSTD_WINDOW_LOG_MAX,
};

/// What `Accept-Encoding` of a 415 says.
const ACCEPTED: &str = "gzip, zstd";
/// zlib's name for the largest window of deflate, 32 KiB.
const DEFLATE_WINDOW_BITS: u8 = 15;

/// A content coding (RFC 9110, 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames, with windows as RFC 9659 has them.
    Zstd,
}

impl Coding {
    /// The coding that `headers` name; `None` for a plain body.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let mut found = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            let text = value.to_str().map_err(|_| unsupported(format!("{value:?}")))?;
            for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                let coding = match name.to_ascii_lowercase().as_str() {
                    "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(unsupported(format!("{name:?}"))),
                };
                if found.replace(coding).is_some() {
                    return Err(unsupported("with several codings".to_owned()));
                }
            }
        }
        Ok(found)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

fn unsupported(what: String) -> Problem {
    let detail =
        format!("Content-Encoding {what} is not supported; compress with gzip or zstd, or send the body uncompressed");
    Problem::unsupported_encoding(ACCEPTED, detail)
}

/// Decompresses the bodies of one worker, in the order in which they come.
#[derive(Default)]
pub struct Inflater {
    memory: Mutex<Memory>,
}

/// What is kept from body to body.
#[derive(Default)]
struct Memory {
    /// What one step gives.
    output: Vec<u8>,
    zstd: Option<ZstdDecoder<'static>>,
}

impl Inflater {
    /// Adds what `compressed` holds to `body`, which may become `bytes_max` bytes long. Stops at the first byte over it.
    pub async fn inflate<'a>(
        &self,
        coding: Coding,
        compressed: &[u8],
        mut body: BodyBytes<'a>,
        bytes_max: usize,
    ) -> Result<BodyBytes<'a>, Problem> {
        if compressed.is_empty() {
            return Ok(body);
        }
        let Memory { output, zstd } = &mut *self.memory.lock().await;
        output.resize(INFLATE_STEP_BYTES, 0);
        let mut decoder = Decoder::begin(coding, zstd).map_err(|_| no_memory())?;
        let (mut rest, mut members, mut steps) = (compressed, 0, 0_usize);
        loop {
            let input = &rest[..rest.len().min(INFLATE_STEP_BYTES)];
            // One byte more than may come tells a body of just the limit from a longer one.
            let room = output.len().min(bytes_max - body.as_slice().len() + 1);
            let step = decoder.step(input, &mut output[..room]).ok_or_else(|| damaged(coding))?;
            rest = &rest[step.read..];
            body.append(&output[..step.written], bytes_max)?;
            if step.ends {
                members += 1;
                if rest.is_empty() {
                    return Ok(body);
                }
                if members == INFLATE_MEMBERS_MAX {
                    return Err(too_many_members(coding));
                }
                decoder.next_member();
            } else if step.read == 0 && step.written == 0 {
                return Err(truncated(coding));
            }
            steps += 1;
            if steps.is_multiple_of(INFLATE_STEPS_PER_TURN) {
                yield_now().await;
            }
        }
    }
}

/// What one call did.
struct Step {
    read: usize,
    written: usize,
    /// A gzip member or zstd frame is complete.
    ends: bool,
}

enum Decoder<'a> {
    Gzip(Decompress),
    Zstd(&'a mut ZstdDecoder<'static>),
}

impl<'a> Decoder<'a> {
    fn begin(coding: Coding, zstd: &'a mut Option<ZstdDecoder<'static>>) -> io::Result<Self> {
        if coding == Coding::Gzip {
            return Ok(Self::Gzip(Decompress::new_gzip(DEFLATE_WINDOW_BITS)));
        }
        let decoder = match zstd {
            Some(decoder) => decoder,
            None => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
                zstd.insert(decoder)
            }
        };
        // The body before may have been left in the middle of a frame.
        decoder.reinit()?;
        Ok(Self::Zstd(decoder))
    }

    /// Decompresses some of `input`; `None` when that cannot be.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Option<Step> {
        match self {
            Self::Gzip(gzip) => {
                let (read, written) = (gzip.total_in(), gzip.total_out());
                let status = gzip.decompress(input, output, FlushDecompress::None).ok()?;
                let (read, written) = ((gzip.total_in() - read) as usize, (gzip.total_out() - written) as usize);
                Some(Step { read, written, ends: status == Status::StreamEnd })
            }
            Self::Zstd(zstd) => {
                let status = zstd.run_on_buffers(input, output).ok()?;
                Some(Step { read: status.bytes_read, written: status.bytes_written, ends: status.remaining == 0 })
            }
        }
    }

    /// Goes on to what follows a complete member.
    fn next_member(&mut self) {
        match self {
            Self::Gzip(gzip) => gzip.reset(true),
            // The library begins the next frame by itself.
            Self::Zstd(_) => {}
        }
    }
}

fn damaged(coding: Coding) -> Problem {
    let name = coding.name();
    let window = match coding {
        Coding::Gzip => "",
        Coding::Zstd => " needs a window of more than 8 MiB,",
    };
    invalid(format!(
        "invalid {name} data: corrupt,{window} or trailing bytes after the end of the stream; compress the body again"
    ))
}

fn truncated(coding: Coding) -> Problem {
    invalid(format!("truncated {} data: the body ends before the end of the stream; send all of it", coding.name()))
}

fn too_many_members(coding: Coding) -> Problem {
    let name = coding.name();
    invalid(format!("the body consists of more than {INFLATE_MEMBERS_MAX} {name} streams; compress it as one"))
}

fn invalid(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "encoding_invalid", detail)
}

fn no_memory() -> Problem {
    let detail = "not enough memory to decompress the body; retry later";
    Problem::unavailable("busy", detail, RETRY_AFTER_BUSY_SECONDS)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::Write;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use hyper::header::HeaderValue;

    use super::*;
    use crate::http::body::BufferPool;
    use crate::limits::{KIB, MIB};
    use crate::ring::budget::Budget;

    const CODINGS: [Coding; 2] = [Coding::Gzip, Coding::Zstd];

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn compress(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => gzip(bytes),
            Coding::Zstd => zstd::encode_all(bytes, 1).expect("memory"),
        }
    }

    /// Bytes of which little repeats.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    /// An inflater, and the budget that its bodies are counted in.
    struct Setup {
        inflater: Inflater,
        pool: BufferPool,
        budget: Arc<Budget>,
    }

    impl Setup {
        fn new(budget_bytes: usize) -> Self {
            let budget = Arc::new(Budget::new(budget_bytes as u64));
            Self { inflater: Inflater::default(), pool: BufferPool::default(), budget }
        }

        /// The result, and how often the worker was let go meanwhile.
        fn run(&self, coding: Coding, compressed: &[u8], bytes_max: usize) -> (Result<Vec<u8>, &'static str>, usize) {
            let body = BodyBytes::empty(&self.pool, &self.budget);
            let mut future = pin!(self.inflater.inflate(coding, compressed, body, bytes_max));
            let mut turns = 0;
            let result = loop {
                match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(result) => break result,
                    Poll::Pending => turns += 1,
                }
            };
            let result = result.map_err(|problem| problem.code()).map(|body| {
                assert!(self.budget.used() >= body.as_slice().len() as u64, "what is held is counted");
                body.as_slice().to_vec()
            });
            assert_eq!(self.budget.used(), 0, "everything is given back");
            (result, turns)
        }

        fn inflate(&self, coding: Coding, compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, &'static str> {
            self.run(coding, compressed, bytes_max).0
        }
    }

    #[test]
    fn bodies_of_all_sizes_come_back_as_they_were() {
        let setup = Setup::new(64 * MIB);
        for bytes in [0, 1, INFLATE_STEP_BYTES - 1, INFLATE_STEP_BYTES, INFLATE_STEP_BYTES + 1, 3 * MIB] {
            let plain = noise(bytes);
            for coding in CODINGS {
                let result = setup.inflate(coding, &compress(coding, &plain), bytes);
                assert!(result == Ok(plain.clone()), "{coding:?} of {bytes} bytes");
            }
        }
    }

    #[test]
    fn members_and_frames_in_a_row_are_one_body() {
        let setup = Setup::new(MIB);
        for coding in CODINGS {
            let all = [compress(coding, b"one "), compress(coding, b""), compress(coding, b"two")].concat();
            assert_eq!(setup.inflate(coding, &all, MIB), Ok(b"one two".to_vec()));
        }
    }

    #[test]
    fn members_without_end_are_refused() {
        let setup = Setup::new(MIB);
        for coding in CODINGS {
            let empty = compress(coding, b"");
            assert_eq!(setup.inflate(coding, &empty.repeat(INFLATE_MEMBERS_MAX), MIB), Ok(Vec::new()));
            let (result, turns) = setup.run(coding, &empty.repeat(INFLATE_MEMBERS_MAX + 1), MIB);
            assert_eq!(result, Err("encoding_invalid"));
            assert!(turns >= INFLATE_MEMBERS_MAX / INFLATE_STEPS_PER_TURN - 1, "{turns} turns");
        }
    }

    #[test]
    fn the_limit_is_a_byte_exact_one() {
        let setup = Setup::new(MIB);
        for coding in CODINGS {
            for limit in [1, 100, INFLATE_STEP_BYTES - 1, INFLATE_STEP_BYTES, INFLATE_STEP_BYTES + 1] {
                let over = compress(coding, &vec![b' '; limit + 1]);
                assert_eq!(setup.inflate(coding, &over, limit), Err("body_too_large"), "{coding:?} {limit}");
                assert_eq!(setup.inflate(coding, &over, limit + 1).map(|body| body.len()), Ok(limit + 1));
            }
        }
    }

    #[test]
    fn a_body_over_the_budget_is_told_to_come_again() {
        let setup = Setup::new(256 * KIB);
        for coding in CODINGS {
            assert_eq!(setup.inflate(coding, &compress(coding, &vec![b' '; 256 * KIB + 1]), MIB), Err("busy"));
            assert_eq!(
                setup.inflate(coding, &compress(coding, &vec![b' '; 256 * KIB]), MIB).map(|b| b.len()),
                Ok(256 * KIB)
            );
        }
    }

    #[test]
    fn no_end_and_no_byte_can_be_taken_away() {
        let setup = Setup::new(MIB);
        for coding in CODINGS {
            let whole = compress(coding, &noise(500));
            for bytes in 1..whole.len() {
                assert_eq!(setup.inflate(coding, &whole[..bytes], MIB), Err("encoding_invalid"), "{coding:?} {bytes}");
            }
            for garbage in [&b"\0"[..], b"x", b"\x1f", b"\x28\xb5\x2f", b"garbage garbage garbage"] {
                let longer = [&whole, garbage].concat();
                assert_eq!(setup.inflate(coding, &longer, MIB), Err("encoding_invalid"), "{coding:?} {garbage:?}");
            }
        }
    }

    #[test]
    fn damaged_gzip_is_refused_wherever_a_checksum_covers_it() {
        let setup = Setup::new(MIB);
        let plain = noise(300);
        let whole = gzip(&plain);
        // Bytes 4 to 9 of the header are time, flags of the compressor and system: nothing depends on them.
        for at in (0..4).chain(10..whole.len()) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let result = setup.inflate(Coding::Gzip, &damaged, MIB);
            assert!(result.is_err() || result == Ok(plain.clone()), "byte {at}: {result:?}");
        }
        let mut checksum = whole.clone();
        checksum[whole.len() - 5] ^= 1;
        assert_eq!(setup.inflate(Coding::Gzip, &checksum, MIB), Err("encoding_invalid"));
        let mut length = whole;
        *length.last_mut().expect("it is not empty") ^= 1;
        assert_eq!(setup.inflate(Coding::Gzip, &length, MIB), Err("encoding_invalid"));
    }

    #[test]
    fn a_zstd_window_of_8_mib_is_taken_and_a_larger_one_refused() {
        let setup = Setup::new(MIB);
        // Magic, a header with nothing but the window's exponent over 10, and one last raw block of no bytes (RFC 8878).
        let frame = |window_log: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3, 1, 0, 0];
        assert_eq!(setup.inflate(Coding::Zstd, &frame(23), MIB), Ok(Vec::new()));
        assert_eq!(setup.inflate(Coding::Zstd, &frame(24), MIB), Err("encoding_invalid"));
    }

    #[test]
    fn a_large_body_lets_other_requests_in_and_may_be_given_up_in_the_middle() {
        let setup = Setup::new(16 * MIB);
        let plain = vec![b' '; 8 * MIB];
        for coding in CODINGS {
            let compressed = compress(coding, &plain);
            {
                let body = BodyBytes::empty(&setup.pool, &setup.budget);
                let mut future = pin!(setup.inflater.inflate(coding, &compressed, body, 16 * MIB));
                assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                assert!((1..=MIB as u64).contains(&setup.budget.used()), "{} bytes in one turn", setup.budget.used());
            }
            assert_eq!(setup.budget.used(), 0, "a client that went leaves nothing behind");
            let (result, turns) = setup.run(coding, &compressed, 16 * MIB);
            assert!(result == Ok(plain.clone()), "{coding:?}");
            assert!(turns >= 7, "{turns} turns");
        }
    }

    #[test]
    fn codings_are_named_in_any_case_and_one_at_a_time() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Coding::of(&headers).map_err(|problem| problem.code())
        };
        for plain in [&[][..], &["identity"], &["Identity"], &[""], &["identity", "identity"]] {
            assert_eq!(of(plain), Ok(None), "{plain:?}");
        }
        for gzip in [&["gzip"][..], &["GZip"], &["x-gzip"], &["X-GZIP"], &[" gzip "], &["identity", "gzip"], &["gzip,"]]
        {
            assert_eq!(of(gzip), Ok(Some(Coding::Gzip)), "{gzip:?}");
        }
        assert_eq!(of(&["ZSTD"]), Ok(Some(Coding::Zstd)));
        for other in [&["br"][..], &["gzip, gzip"], &["gzip", "gzip"], &["zstd", "gzip"], &["gzip, br"], &["gzip;q=1"]]
        {
            assert_eq!(of(other), Err("unsupported_encoding"), "{other:?}");
        }
    }
}
