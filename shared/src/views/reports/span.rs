//! Spans of time in UTC: minutes, hours and days, and ranges of them.

use std::fmt;

use chrono::{DateTime, Datelike as _, TimeDelta, Timelike as _, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a bucket is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day, from midnight to midnight in UTC.
    #[default]
    Day,
}

impl By {
    fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// The length of a bucket.
    pub fn length(self) -> TimeDelta {
        TimeDelta::seconds(self.seconds())
    }

    /// The beginning of the bucket that `at` is in.
    pub fn floor(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let seconds = at.timestamp() - at.timestamp().rem_euclid(self.seconds());
        DateTime::from_timestamp(seconds, 0).unwrap_or_default()
    }

    /// The beginning of the first bucket that does not begin before `at`.
    pub fn ceiling(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let floor = self.floor(at);
        if floor == at { floor } else { floor + self.length() }
    }

    /// Minutes of the same hour, hours of the same day and days of the same month have one page.
    pub(super) fn page(self, at: DateTime<Utc>) -> Page {
        let page = Page { year: at.year(), month: at.month(), day: None, hour: None };
        match self {
            Self::Minute => Page { day: Some(at.day()), hour: Some(at.hour()), ..page },
            Self::Hour => Page { day: Some(at.day()), ..page },
            Self::Day => page,
        }
    }

    /// The number of the bucket on its page.
    pub(super) fn place(self, at: DateTime<Utc>) -> u32 {
        match self {
            Self::Minute => at.minute(),
            Self::Hour => at.hour(),
            Self::Day => at.day(),
        }
    }
}

/// A month, a day or an hour, as it stands in a key: `2026-11`, `2026-11-21`, `2026-11-21T13`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Page {
    year: i32,
    month: u32,
    day: Option<u32>,
    hour: Option<u32>,
}

impl Page {
    /// The hour or day that begins at `at`.
    pub(super) fn of(by: By, at: DateTime<Utc>) -> Self {
        match by {
            By::Minute | By::Hour => By::Minute.page(at),
            By::Day => By::Hour.page(at),
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)?;
        if let Some(day) = self.day {
            write!(f, "-{day:02}")?;
        }
        self.hour.map_or(Ok(()), |hour| write!(f, "T{hour:02}"))
    }
}

/// Whole buckets one after another: from the beginning of the first to the end of the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// How long each is.
    pub by: By,
    /// Where the first begins.
    pub from: DateTime<Utc>,
    /// Where the last ends.
    pub to: DateTime<Utc>,
}

impl Range {
    /// The buckets that have a part between `from` and `to`.
    pub fn covering(by: By, from: DateTime<Utc>, to: DateTime<Utc>) -> Self {
        Self { by, from: by.floor(from), to: by.ceiling(to) }
    }

    /// How many buckets there are.
    pub fn buckets(self) -> u64 {
        let seconds = (self.to - self.from).num_seconds().max(0);
        (seconds / self.by.seconds()).unsigned_abs()
    }

    /// Where they begin.
    pub fn starts(self) -> impl Iterator<Item = DateTime<Utc>> {
        std::iter::successors(Some(self.from), move |at| Some(*at + self.by.length()))
            .take_while(move |at| *at < self.to)
    }

    /// The pages that hold hours and days of the range: a whole day in one, what is left by the
    /// hour.
    pub(super) fn hours_and_days(self) -> Vec<Page> {
        let mut pages = Vec::new();
        let mut at = By::Hour.floor(self.from);
        while at < self.to {
            let whole = By::Day.floor(at) == at && at + By::Day.length() <= self.to;
            let by = if whole { By::Day } else { By::Hour };
            pages.push(Page::of(by, at));
            at += by.length();
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_is_widened_to_whole_buckets_and_they_follow_one_another() {
        let range =
            Range::covering(By::Hour, at("2026-02-28T22:59:59.9Z"), at("2026-03-01T00:00:00.1Z"));
        assert_eq!(
            (range.from, range.to),
            (at("2026-02-28T22:00:00Z"), at("2026-03-01T01:00:00Z"))
        );
        assert_eq!(range.buckets(), 3);
        let pages: Vec<(String, u32)> =
            range.starts().map(|at| (By::Hour.page(at).to_string(), By::Hour.place(at))).collect();
        let expected = [("2026-02-28", 22), ("2026-02-28", 23), ("2026-03-01", 0)];
        assert_eq!(pages, expected.map(|(page, place)| (page.to_owned(), place)));
    }

    #[test]
    fn what_is_aligned_stays_as_it_is() {
        for by in [By::Minute, By::Hour, By::Day] {
            let (from, to) = (at("2026-11-21T00:00:00Z"), at("2026-11-22T00:00:00Z"));
            let range = Range::covering(by, from, to);
            assert_eq!((range.from, range.to), (from, to));
            assert_eq!(range.starts().count() as u64, range.buckets());
        }
        assert_eq!(
            Range::covering(By::Day, at("2026-11-21T00:00:00Z"), at("2026-11-21T00:00:00Z"))
                .buckets(),
            0
        );
    }

    #[test]
    fn whole_days_are_read_as_days_and_the_rest_by_the_hour() {
        let range =
            Range::covering(By::Hour, at("2026-11-20T22:00:00Z"), at("2026-11-22T01:00:00Z"));
        let pages: Vec<String> = range.hours_and_days().iter().map(Page::to_string).collect();
        assert_eq!(pages, ["2026-11-20T22", "2026-11-20T23", "2026-11-21", "2026-11-22T00"]);
    }
}
