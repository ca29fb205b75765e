//! A calendar month in UTC, the unit of partitioning. Pure.

use std::fmt;

use crate::types::UnixMicros;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// A month of a year, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    /// Months since January of the year 0.
    ordinal: i32,
}

impl Month {
    /// `None` unless `year` is 1–9999 and `month` 1–12.
    pub fn new(year: i32, month: u32) -> Option<Self> {
        let valid = (1..=9999).contains(&year) && (1..=12).contains(&month);
        valid.then(|| Self { ordinal: year * 12 + month as i32 - 1 })
    }

    /// Reads `2026-12`.
    pub fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return None;
        }
        Self::new(year.parse().ok()?, month.parse().ok()?)
    }

    /// The month that holds `instant`.
    pub fn of(instant: UnixMicros) -> Self {
        let (year, month) = civil_month(instant.0.div_euclid(MICROS_PER_DAY));
        Self { ordinal: year * 12 + month - 1 }
    }

    /// The month `months` later, or earlier when negative.
    pub fn plus(self, months: i32) -> Self {
        Self { ordinal: self.ordinal + months }
    }

    /// The year.
    pub fn year(self) -> i32 {
        self.ordinal.div_euclid(12)
    }

    /// 1–12.
    pub fn month(self) -> u32 {
        self.ordinal.rem_euclid(12) as u32 + 1
    }

    /// Its first instant.
    pub fn start(self) -> UnixMicros {
        UnixMicros(days_to_month(self.year(), self.month() as i32) * MICROS_PER_DAY)
    }

    /// The first instant after it.
    pub fn end(self) -> UnixMicros {
        self.plus(1).start()
    }

    /// The name of its partition.
    pub fn partition_name(self) -> String {
        format!("events_{:04}_{:02}", self.year(), self.month())
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year(), self.month())
    }
}

/// Year and month (1–12) of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_month(days: i64) -> (i32, i32) {
    let days = days + 719_468; // from 0000-03-01
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as i32, month as i32)
}

/// Days from 1970-01-01 to the first of a month; the inverse of [`civil_month`] (`days_from_civil`).
fn days_to_month(year: i32, month: i32) -> i64 {
    let (year, month) = (i64::from(year) - i64::from(month <= 2), i64::from(month));
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn month(text: &str) -> Month {
        Month::parse(text).expect("a month")
    }

    #[test]
    fn months_follow_each_other_over_year_ends() {
        assert_eq!(month("2026-12").plus(1), month("2027-01"));
        assert_eq!(month("2026-01").plus(-1), month("2025-12"));
        assert_eq!(month("2026-11").plus(-24), month("2024-11"));
        assert_eq!(month("2026-12").end(), month("2027-01").start());
        assert_eq!((month("2026-12").year(), month("2026-12").month()), (2026, 12));
        assert_eq!(month("2026-01").partition_name(), "events_2026_01");
    }

    #[test]
    fn only_year_dash_month_is_a_month() {
        for text in ["2026-00", "2026-13", "2026-1", "26-01", "0000-01", "2026-011", "2026/01", "+026-01", ""] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
        assert_eq!(month("2026-07").to_string(), "2026-07");
    }

    #[test]
    fn an_instant_belongs_to_its_month_in_utc() {
        assert_eq!(Month::of(UnixMicros(0)), month("1970-01"));
        assert_eq!(Month::of(UnixMicros(-1)), month("1969-12"));
        assert_eq!(month("2026-11").start(), UnixMicros(1_793_491_200_000_000));
        assert_eq!(Month::of(UnixMicros(1_793_491_199_999_999)), month("2026-10"));
    }

    #[test]
    fn every_month_of_four_centuries_holds_its_own_bounds() {
        let mut at = month("1800-01");
        while at < month("2201-01") {
            let (start, end) = (at.start(), at.end());
            assert_eq!(Month::of(start), at);
            assert_eq!(Month::of(UnixMicros(end.0 - 1)), at);
            let days = (end.0 - start.0) / MICROS_PER_DAY;
            let leap = at.year() % 4 == 0 && (at.year() % 100 != 0 || at.year() % 400 == 0);
            let expected = match at.month() {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            assert_eq!(days, expected, "{at}");
            at = at.plus(1);
        }
    }
}
