//! A body and its index, as the walker reads them: a few words that are copied into registers.

use super::index;
use super::walk::{SyntaxFault, SyntaxKind};

/// A body with its index.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub body: &'a [u8],
    stops: &'a [u8],
}

/// A punctuation mark between tokens, and what surrounds it.
pub(crate) struct Mark {
    pub byte: u8,
    pub at: usize,
    /// The first byte after it that is not whitespace.
    pub next: usize,
}

impl<'a> Source<'a> {
    /// `stops` is the index of `body` ([`index::Stops::build`]).
    pub fn new(body: &'a [u8], stops: &'a [u8]) -> Self {
        debug_assert!(stops.len() == (body.len() / 64 + 2) * 8);
        Self { body, stops }
    }

    /// The byte at `pos`, NUL past the end.
    #[inline(always)]
    pub fn byte(self, pos: usize) -> u8 {
        self.body.get(pos).copied().unwrap_or(0)
    }

    /// The first byte at or after `pos` that is not whitespace.
    #[inline(always)]
    pub fn blank(self, pos: usize) -> usize {
        if self.byte(pos) > b' ' { pos } else { self.blank_run(pos) }
    }

    #[inline]
    fn blank_run(self, mut pos: usize) -> usize {
        while let b' ' | b'\t' | b'\n' | b'\r' = self.byte(pos) {
            pos += 1;
        }
        pos
    }

    /// The mark that is expected at or after `pos`.
    #[inline(always)]
    pub fn mark(self, pos: usize) -> Mark {
        // Without whitespace one look at two bytes tells all.
        if let Some(&[byte, after]) = self.body.get(pos..).and_then(|rest| rest.first_chunk())
            && byte > b' '
            && after > b' '
        {
            return Mark { byte, at: pos, next: pos + 1 };
        }
        let at = self.blank(pos);
        Mark { byte: self.byte(at), at, next: self.blank(at + 1) }
    }

    /// The first stop at or after `pos`, which is at most the body's length; that length when there is none.
    #[inline(always)]
    pub fn next_stop(self, pos: usize) -> usize {
        index::next(self.stops, pos).unwrap_or_else(|| index::next_far(self.stops, pos, self.body.len()))
    }

    /// The fault of meeting the byte at `pos`: `kind`, or [`SyntaxKind::End`] when there is no byte.
    #[cold]
    pub fn unexpected(self, pos: usize, kind: SyntaxKind) -> SyntaxFault {
        if pos < self.body.len() {
            SyntaxFault::new(pos, kind)
        } else {
            SyntaxFault::new(self.body.len(), SyntaxKind::End)
        }
    }
}
