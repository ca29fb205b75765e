//! Bytes from a damaged journal: headers of frames and blocks, and tuples, are refused or read, without a panic.
#![no_main]

use ingestd::encode::block::BlockHeader;
use ingestd::encode::tuple::tuples;
use ingestd::journal::frame::{FRAME_HEADER_BYTES, FrameHeader, MAGIC};
use libfuzzer_sys::fuzz_target;

/// Where the checksum of a frame's header is.
const CHECKSUM_AT: usize = 60;

fuzz_target!(|data: &[u8]| {
    if let Some((header, _)) = data.split_first_chunk::<FRAME_HEADER_BYTES>() {
        read_frame(*header);
    }
    read_tuples(data);
    if let Ok((_, bytes)) = BlockHeader::parse(data) {
        read_tuples(&data[bytes..]);
    }
});

/// With a right checksum: the wrong ones end early.
fn read_frame(mut header: [u8; FRAME_HEADER_BYTES]) {
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    let checksum = crc32c::crc32c(&header[..CHECKSUM_AT]);
    header[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    let segment = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
    if let Ok(decoded) = FrameHeader::decode(&header, segment) {
        assert_eq!(FrameHeader::decode(&decoded.encode(), segment), Ok(decoded));
    }
}

fn read_tuples(bytes: &[u8]) {
    for tuple in tuples(bytes) {
        let Ok((tuple, view)) = tuple else { break };
        assert!(tuple.len() <= bytes.len());
        view.to_json(&mut String::new());
    }
}
