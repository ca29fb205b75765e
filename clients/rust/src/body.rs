//! A batch as bytes: made once, sent as often as it takes.

use bytes::Bytes;
use serde::Serialize;

use crate::error::Error;
use crate::event::Event;

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// `Content-Encoding: gzip`.
    #[cfg(feature = "gzip")]
    Gzip,
    /// `Content-Encoding: zstd`: faster than gzip, and smaller.
    #[cfg(feature = "zstd")]
    Zstd,
}

impl Compression {
    /// The value of `Content-Encoding`.
    pub(crate) const fn encoding(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            #[cfg(feature = "gzip")]
            Self::Gzip => Some("gzip"),
            #[cfg(feature = "zstd")]
            Self::Zstd => Some("zstd"),
        }
    }

    fn apply(self, plain: Vec<u8>) -> Bytes {
        match self {
            Self::None => plain.into(),
            #[cfg(feature = "gzip")]
            Self::Gzip => {
                use std::io::Write;
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                let written = encoder.write_all(&plain).and_then(|()| encoder.finish());
                written.expect("a Vec takes all").into()
            }
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::encode_all(&*plain, ZSTD_LEVEL).expect("a Vec takes all").into(),
        }
    }
}

#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

/// The body of a batch. The priority stands first: a server that is overloaded then looks at nothing else.
pub(crate) fn encode(events: &[Event], batch_id: &str, priority: u8, compression: Compression) -> Result<Bytes, Error> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        priority: u8,
        batch_id: &'a str,
        events: &'a [Event],
    }
    Ok(compression.apply(serde_json::to_vec(&Envelope { priority, batch_id, events })?))
}
