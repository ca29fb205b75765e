//! NDJSON: an event a line, each judged for itself.
//!
//! A line that is not JSON is a verdict like any other, because the next one begins at the next line feed whatever it
//! holds. So lines need not be there at once: whoever reads a body hands them over as they come.

use super::event::EventScanner;
use super::reject::Shape;
use super::scan::source::Source;
use super::scan::walk::{SyntaxFault, SyntaxKind, Walker};
use super::{Member, Reason, Reject, ScanLimits, Scratch};
use crate::limits::BODY_BYTES_MAX;

/// Scans `line`, without its line feed: event `index` of its body, as blank lines do not count. Afterwards `scratch` holds its event, or the verdict
/// on it; neither when the line is blank.
///
/// # Panics
/// When the line is longer than [`BODY_BYTES_MAX`].
pub fn scan_line(line: &[u8], index: usize, limits: &ScanLimits, scratch: &mut Scratch) {
    assert!(line.len() <= BODY_BYTES_MAX);
    scratch.clear();
    if line.trim_ascii().is_empty() {
        return;
    }
    scratch.shape = Shape::Alone;
    scratch.first = index as u32;
    if let Err(fault) = scan(line, index, limits, scratch) {
        scratch.events.clear();
        scratch.rejects.clear();
        scratch.rejects.push(Reject {
            index: index as u32,
            reason: Reason::Syntax(fault.kind),
            event_id: None,
            shape: Shape::Alone,
            service: Member::ServiceName,
            event_at: 0,
            at: fault.offset,
        });
    }
}

fn scan(line: &[u8], index: usize, limits: &ScanLimits, scratch: &mut Scratch) -> Result<(), SyntaxFault> {
    scratch.stops.build(line)?;
    let mut scanner = EventScanner {
        walker: Walker::new(Source::new(line, scratch.stops.bits()), &mut scratch.spill),
        limits,
        shape: Shape::Alone,
        events: &mut scratch.events,
        rejects: &mut scratch.rejects,
        decoded: &mut scratch.decoded,
        made: &mut scratch.made,
    };
    let at = scanner.walker.source.blank(0);
    if line.starts_with("\u{feff}".as_bytes()) {
        return Err(SyntaxFault::new(0, SyntaxKind::ByteOrderMark));
    }
    let end = scanner.event(at, index)?;
    let end = scanner.walker.source.blank(end);
    if end < line.len() {
        return Err(SyntaxFault::new(end, SyntaxKind::Trailing));
    }
    Ok(())
}
