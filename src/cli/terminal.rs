//! What a terminal may be sent, if there is one.

use std::env;
use std::io::{IsTerminal, stderr};

use clap::ColorChoice;

/// Lines on stderr may be coloured: a terminal reads them, and nobody asked for none (<https://no-color.org>).
pub(super) fn takes_colours() -> bool {
    takes_cursor_movements() && !wants_no_colour()
}

/// Lines on stderr may be written over: a terminal reads them, and one that can.
pub(super) fn takes_cursor_movements() -> bool {
    stderr().is_terminal() && is_able()
}

/// Colours of help and errors. Left to itself clap takes `CI` for a reason to colour whatever `TERM` says.
pub(super) fn colours_of_help() -> ColorChoice {
    if is_able() && !wants_no_colour() { ColorChoice::Auto } else { ColorChoice::Never }
}

fn is_able() -> bool {
    env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb")
}

fn wants_no_colour() -> bool {
    env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
