//! What the terminal on stderr may be sent, if there is one.

use std::env;
use std::io::{IsTerminal, stderr};

/// Lines on stderr may be coloured: a terminal reads them, and nobody asked for none (<https://no-color.org>).
pub(super) fn takes_colours() -> bool {
    takes_cursor_movements() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Lines on stderr may be written over: a terminal reads them, and one that can.
pub(super) fn takes_cursor_movements() -> bool {
    stderr().is_terminal() && env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb")
}
