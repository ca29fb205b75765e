//! The log on stderr: a line an event, whatever text is in it.
//!
//! Clients choose some of what gets told (ids of events in PostgreSQL's messages, paths, headers). So every value is
//! written without control characters: none may begin a line of its own, or tell a terminal what to do. What the
//! formatters write themselves (colours) stays.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write, stderr};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_log::{AsLog as _, LogTracer};
use tracing_subscriber::fmt::format::debug_fn;

use super::{progress, terminal};
use crate::config::{Config, LogFormat};

/// From now on events of interest go to stderr, as `LOG_FORMAT` and `LOG_LEVEL` say.
pub(super) fn start(config: &Config) {
    let log = tracing_subscriber::fmt().with_max_level(config.log_level).with_target(false);
    match config.log_format {
        LogFormat::Json => {
            install(log.json().flatten_event(true).with_writer(|| Printable(BesideBars(stderr()))).finish(), config)
        }
        LogFormat::Text => {
            let fields = debug_fn(|line, field, value| {
                let value = format!("{value:?}");
                match field.name() {
                    // Macros put it first.
                    "message" => write!(line, "{}", printable(&value)),
                    // What the `log` crate's events carry beside their message.
                    name if name.starts_with("log.") => Ok(()),
                    // As the default formatter has it: the name in italics, the sign dim.
                    name if line.has_ansi_escapes() => {
                        write!(line, " \u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{}", printable(&value))
                    }
                    name => write!(line, " {name}={}", printable(&value)),
                }
            });
            let log = log.with_ansi(terminal::takes_colours()).with_writer(|| BesideBars(stderr()));
            install(log.fmt_fields(fields).finish(), config);
        }
    }
}

/// Has `subscriber` told of all events, those of the `log` crate among them. But not of those that the client of the
/// collector tells: at the lowest level they show its requests whole, with the tokens in them.
fn install(subscriber: impl Subscriber + Send + Sync, config: &Config) {
    let level = LevelFilter::from_level(config.log_level).as_log();
    let told = LogTracer::builder().ignore_crate("ureq").with_max_level(level).init();
    // Nobody else in this process installs one.
    let installed = tracing::subscriber::set_global_default(subscriber);
    debug_assert!(told.is_ok() && installed.is_ok(), "the log is started once");
}

/// `text` in one line: what would break or steer it is escaped, as JSON does it.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // Four digits are enough: all of them lie in the first plane. Writing to a String does not fail.
            _ if is_unprintable(character) => drop(write!(shown, "\\u{:04x}", u32::from(character))),
            _ => shown.push(character),
        }
    }
    shown.into()
}

/// Control characters, both line breaks of Unicode, and what turns the direction of text round.
fn is_unprintable(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Lines that have the terminal to themselves: a progress bar makes room for them.
struct BesideBars<W>(W);

impl<W: Write> Write for BesideBars<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::aside(|| self.0.write(line))
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        progress::aside(|| self.0.write_all(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lines of JSON, each written at once: JSON itself leaves DEL and the upper control characters as they are.
struct Printable<W>(W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        self.0.write_all(format!("{}{end}", printable(text)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_a_line_or_steers_a_terminal_is_escaped_and_the_rest_stays() {
        assert_eq!(printable("batch ü \"x\" \\n"), "batch ü \"x\" \\n");
        assert_eq!(printable("a\nb\r\t\u{1b}[2J\u{7f}\u{9b}\0"), "a\\nb\\r\\t\\u001b[2J\\u007f\\u009b\\u0000");
        assert_eq!(printable("\u{2028}\u{202e}\u{2066}"), "\\u2028\\u202e\\u2066");
    }

    #[test]
    fn a_line_of_json_stays_json() {
        let mut written = Printable(Vec::new());
        let line = serde_json::json!({ "reason": "a\n\u{1b}\u{7f}\u{9b}" }).to_string() + "\n";
        written.write_all(line.as_bytes()).expect("a Vec takes all");
        let text = String::from_utf8(written.0).expect("UTF-8");
        assert_eq!(text, "{\"reason\":\"a\\n\\u001b\\u007f\\u009b\"}\n");
    }
}
