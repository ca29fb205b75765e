//! Instants as RFC 3339 text: read as PostgreSQL reads them, written in UTC.
//!
//! Read: `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)`, with `T`, `t` or a space between date and time. A fraction may
//! have any length and is rounded to microseconds the way PostgreSQL's `ParseFractionalSecond` does (a double, ties
//! to even); second 60 counts as the next minute's second 0, as there. Hour 24 is refused: RFC 3339 has none.
//!
//! Absent on purpose: time zone names, and everything of ISO 8601 that RFC 3339 leaves out.

use std::fmt::Write;

use crate::types::UnixMicros;

/// Microseconds of a second.
const SECOND_MICROS: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;

/// Why a text is not an RFC 3339 instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// Not of the form `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)`.
    #[error("not of the form YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)")]
    Malformed,
    /// Of that form, but there is no such month, day, hour, minute, second or offset.
    #[error("no such date, time or offset")]
    OutOfRange,
}

/// The instant that `text` names.
///
/// # Errors
/// [`TimestampError`] when it names none.
pub fn parse_rfc3339(text: &[u8]) -> Result<UnixMicros, TimestampError> {
    let (fixed, rest) = text.split_first_chunk::<19>().ok_or(TimestampError::Malformed)?;
    let separators = [fixed[4], fixed[7], fixed[13], fixed[16]];
    if separators != *b"--::" || !matches!(fixed[10], b'T' | b't' | b' ') {
        return Err(TimestampError::Malformed);
    }
    let mut digits = Digits { valid: true };
    let year = digits.pair(fixed[0], fixed[1]) * 100 + digits.pair(fixed[2], fixed[3]);
    let month = digits.pair(fixed[5], fixed[6]);
    let day = digits.pair(fixed[8], fixed[9]);
    let hour = digits.pair(fixed[11], fixed[12]);
    let minute = digits.pair(fixed[14], fixed[15]);
    let second = digits.pair(fixed[17], fixed[18]);
    let (micros, zone) = fraction_micros(rest)?;
    let offset_minutes = offset_minutes(zone, &mut digits)?;
    if !digits.valid {
        return Err(TimestampError::Malformed);
    }
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return Err(TimestampError::OutOfRange);
    }
    let offset_minutes = offset_minutes.ok_or(TimestampError::OutOfRange)?;
    if hour > 23 || minute > 59 || second > 60 {
        return Err(TimestampError::OutOfRange);
    }
    let second_of_day = i64::from((hour * 60 + minute) * 60 + second);
    let seconds = days_from_civil(year, month, day) * DAY_SECONDS + second_of_day - i64::from(offset_minutes) * 60;
    Ok(UnixMicros(seconds * SECOND_MICROS + micros))
}

/// Reads digits first and judges them once, so that the common case has one branch.
struct Digits {
    valid: bool,
}

impl Digits {
    #[inline(always)]
    fn pair(&mut self, tens: u8, ones: u8) -> u32 {
        self.valid &= tens.is_ascii_digit() & ones.is_ascii_digit();
        u32::from(tens.wrapping_sub(b'0')) * 10 + u32::from(ones.wrapping_sub(b'0'))
    }
}

/// The fraction at the start of `rest`, in microseconds up to a whole second, and what follows it.
fn fraction_micros(rest: &[u8]) -> Result<(i64, &[u8]), TimestampError> {
    let Some(after_point) = rest.strip_prefix(b".") else { return Ok((0, rest)) };
    let digits = after_point.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, zone) = after_point.split_at(digits);
    match digits {
        0 => Err(TimestampError::Malformed),
        1..=6 => {
            let value = fraction.iter().fold(0, |value, &digit| value * 10 + i64::from(digit - b'0'));
            Ok((value * 10_i64.pow(6 - digits as u32), zone))
        }
        _ => {
            let text = std::str::from_utf8(&rest[..=digits]).map_err(|_| TimestampError::Malformed)?;
            let fraction: f64 = text.parse().map_err(|_| TimestampError::Malformed)?;
            Ok(((fraction * SECOND_MICROS as f64).round_ties_even() as i64, zone))
        }
    }
}

/// Minutes east of UTC; `None` when there is no such offset.
fn offset_minutes(zone: &[u8], digits: &mut Digits) -> Result<Option<i32>, TimestampError> {
    match *zone {
        [b'Z' | b'z'] => Ok(Some(0)),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits.pair(h1, h2), digits.pair(m1, m2));
            let east = (hours * 60 + minutes) as i32;
            Ok((hours <= 23 && minutes <= 59).then_some(if sign == b'-' { -east } else { east }))
        }
        _ => Err(TimestampError::Malformed),
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 => 28 + u32::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a proleptic Gregorian date from year 0 on. Howard Hinnant, "chrono-compatible low-level
/// date algorithms", `days_from_civil`.
fn days_from_civil(year: u32, month: u32, day: u32) -> i64 {
    // Years begin in March, and 400 years early, so that January of year 0 is not negative.
    let year = year + 400 - u32::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    i64::from(days) - 719_468 - 146_097
}

/// The date, as (year, month, day), that is `days` after 1970-01-01: `civil_from_days` of the same source.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// An instant by the calendar and the clock, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Proleptic Gregorian; 0 is 1 BC.
    pub year: i64,
    /// 1–12.
    pub month: u8,
    /// 1–31.
    pub day: u8,
    /// 0–23.
    pub hour: u8,
    /// 0–59.
    pub minute: u8,
    /// 0–59.
    pub second: u8,
    /// Below a million.
    pub micros: u32,
}

/// What calendar and clock show at `instant`.
pub fn civil_of(instant: UnixMicros) -> Civil {
    let seconds = instant.0.div_euclid(SECOND_MICROS);
    let (year, month, day) = civil_from_days(seconds.div_euclid(DAY_SECONDS));
    let second_of_day = seconds.rem_euclid(DAY_SECONDS);
    Civil {
        year,
        month: month as u8,
        day: day as u8,
        hour: (second_of_day / 3600) as u8,
        minute: (second_of_day / 60 % 60) as u8,
        second: (second_of_day % 60) as u8,
        micros: instant.0.rem_euclid(SECOND_MICROS) as u32,
    }
}

/// Appends `YYYY-MM-DDThh:mm:ss[.ffffff]Z`. Years outside 0–9999, which no accepted event has, get a sign.
pub fn append_rfc3339(out: &mut String, instant: UnixMicros) {
    let Civil { year, month, day, hour, minute, second, micros } = civil_of(instant);
    let written = match year {
        0..=9999 => write!(out, "{year:04}"),
        _ => write!(out, "{year:+05}"),
    }
    .and_then(|()| write!(out, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"))
    .and_then(|()| if micros == 0 { Ok(()) } else { write!(out, ".{micros:06}") });
    written.expect("a String takes any text");
    out.push('Z');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(text: &str) -> Result<i64, TimestampError> {
        parse_rfc3339(text.as_bytes()).map(|instant| instant.0)
    }

    fn written(instant: i64) -> String {
        let mut out = String::new();
        append_rfc3339(&mut out, UnixMicros(instant));
        out
    }

    #[test]
    fn known_instants_are_read() {
        assert_eq!(micros("1970-01-01T00:00:00Z"), Ok(0));
        assert_eq!(micros("2000-01-01T00:00:00Z"), Ok(946_684_800_000_000));
        assert_eq!(micros("2026-11-01t01:30:00.5+01:30"), Ok(1_793_491_200_500_000));
        assert_eq!(micros("2026-10-31 23:59:59.999999z"), Ok(1_793_491_199_999_999));
        assert_eq!(micros("1969-12-31T23:59:59.25-00:00"), Ok(-750_000));
        assert_eq!(micros("0000-02-29T00:00:00+23:59"), micros("0000-02-28T00:01:00Z"));
    }

    #[test]
    fn fractions_round_to_the_nearest_microsecond_as_postgresql_does() {
        for (fraction, expected) in [
            (".0000004", 0),
            (".0000005", 0),
            (".00000050000001", 1),
            (".0000015", 2),
            (".0000025", 2),
            (".1234564999", 123_456),
            (".123456789123456789123456789", 123_457),
            (".9999994", 999_999),
            (".9999999", 1_000_000),
            (".999999999999999999999", 1_000_000),
        ] {
            assert_eq!(micros(&format!("1970-01-01T00:00:00{fraction}Z")), Ok(expected), "{fraction}");
        }
        let long = "1".repeat(100_000);
        assert_eq!(micros(&format!("1970-01-01T00:00:00.{long}Z")), Ok(111_111));
    }

    #[test]
    fn second_60_is_the_next_minute() {
        assert_eq!(micros("2016-12-31T23:59:60Z"), micros("2017-01-01T00:00:00Z"));
        assert_eq!(micros("2016-12-31T23:59:60.5Z"), micros("2017-01-01T00:00:00.5Z"));
    }

    #[test]
    fn what_is_no_date_time_or_offset_is_out_of_range() {
        for text in [
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00-00:60",
        ] {
            assert_eq!(micros(text), Err(TimestampError::OutOfRange), "{text}");
        }
        assert!(micros("2000-02-29T00:00:00Z").is_ok() && micros("2024-02-29T00:00:00Z").is_ok());
    }

    #[test]
    fn what_is_not_rfc_3339_is_malformed() {
        for text in [
            "",
            "now",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00,5Z",
            "2026-01-01T00:00:00+01",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T00:00:00+01:0",
            "2026-01-01T00:00:00 Z",
            "2026-01-01T00:00:00ZZ",
            "2026-01-01T00:00:00Z ",
            " 2026-01-01T00:00:00Z",
            "2026-1-01T00:00:00Z",
            "2026-01-01_00:00:00Z",
            "2026/01/01T00:00:00Z",
            "+2026-01-01T00:00:0Z",
            "20a6-01-01T00:00:00Z",
            "2026-01-01T00:00:00+0x:00",
            "2026-01-01T00:00:00.1e3Z",
            "2026-01-01T00:00:00.-1Z",
            "２026-01-01T00:00:00Z",
        ] {
            assert_eq!(micros(text), Err(TimestampError::Malformed), "{text}");
        }
    }

    #[test]
    fn instants_far_outside_four_digit_years_are_still_written() {
        assert_eq!(written(0), "1970-01-01T00:00:00Z");
        assert_eq!(written(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(written(i64::MAX), "+294247-01-10T04:00:54.775807Z");
        assert_eq!(written(i64::MIN), "-290308-12-21T19:59:05.224192Z");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_back(instant in -62_167_219_200_000_000i64..253_402_300_800_000_000) {
            prop_assert_eq!(micros(&written(instant)), Ok(instant));
        }

        #[test]
        fn jiff_writes_and_reads_the_same(instant in -62_135_596_800_000_000i64..253_402_207_200_000_000) {
            let theirs = jiff::Timestamp::from_microsecond(instant).expect("in jiff's range");
            prop_assert_eq!(micros(&theirs.to_string()), Ok(instant));
            prop_assert_eq!(written(instant).parse::<jiff::Timestamp>().expect("jiff reads it"), theirs);
        }

        #[test]
        fn jiff_reads_any_field_values_the_same(
            (year, month, day) in (1i64..9999, 0u8..14, 0u8..33),
            (hour, minute, second) in (0u8..25, 0u8..61, 0u8..60),
            fraction in "(\\.[0-9]{1,9})?",
            zone in "Z|z|[+-]([01][0-9]|2[0-3]):[0-6][0-9]",
        ) {
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}");
            let ours = micros(&text);
            match text.parse::<jiff::Timestamp>() {
                // Ties may fall either way: jiff keeps nanoseconds, PostgreSQL (and so we) a double.
                Ok(theirs) => {
                    let nanos = ours.map(|micros| i128::from(micros) * 1000 - theirs.as_nanosecond());
                    prop_assert!(nanos.is_ok_and(|distance| distance.abs() <= 500), "{} {:?}", text, nanos);
                }
                // jiff bounds offsets and years by itself; only what is in both ranges must agree.
                Err(_) => prop_assert!(
                    ours.is_err() || !(2..9998).contains(&year), "{} {:?}", text, ours
                ),
            }
        }

        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_rfc3339(&text);
        }
    }
}
