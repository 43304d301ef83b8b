//! Generations of the views. All views stand below a number in their keys, so that they can be made
//! anew beside those that are in use. One key, `NS:generation`, tells how things stand, and changes
//! in one step:
//!
//! | value | means |
//! |---|---|
//! | absent | there are no views: Redis is new, or was emptied. Reads are refused |
//! | `0 building 8` | the first views are being made. Reads are refused |
//! | `7` | the views of generation 7 are whole and kept |
//! | `7 building 8` | generation 7 is read; what changes is written into both |
//! | `8 sweeping` | generation 8 is read; the keys of all others are being removed |

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fred::interfaces::{
    ClientLike as _, KeysInterface as _, LuaInterface as _, PubsubInterface as _,
};
use futures_util::future::try_join_all;

use super::changes::ANEW;
use super::{ViewError, Views};

/// Sets the marker, or removes it, if it is as it was.
const REPLACE: &str = "
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
return 1";

/// For how long a writer trusts what it last saw of the marker. After that it looks before it
/// writes; within it, it looks while it writes, and writes again where something has changed.
pub const FRESH: Duration = Duration::from_secs(1);

/// How the views stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Generations {
    /// The generation that is read.
    pub current: Option<u64>,
    /// The generation that is being made.
    pub building: Option<u64>,
    /// Whether keys of older generations may be left.
    pub sweeping: bool,
}

impl Generations {
    /// These generations, and nothing else under way.
    pub fn only(current: u64) -> Self {
        Self { current: Some(current), building: None, sweeping: false }
    }

    /// Where changes are written, in this order: a reader that is switched over must never see an
    /// older version than before.
    pub fn targets(self) -> impl Iterator<Item = u64> {
        self.building.into_iter().chain(self.current)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let current: u64 = words.next()?.parse().ok()?;
        let (building, sweeping) = match (words.next(), words.next(), words.next()) {
            (None, None, None) => (None, false),
            (Some("building"), Some(building), None) => (Some(building.parse().ok()?), false),
            (Some("sweeping"), None, None) => (None, true),
            _ => return None,
        };
        Some(Self { current: Some(current).filter(|current| *current > 0), building, sweeping })
    }
}

/// The value of the marker; empty where it is absent.
impl fmt::Display for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.current, self.building) {
            (None, None) => Ok(()),
            (current, Some(building)) => {
                write!(f, "{} building {building}", current.unwrap_or(0))
            }
            (Some(current), None) if self.sweeping => write!(f, "{current} sweeping"),
            (Some(current), None) => write!(f, "{current}"),
        }
    }
}

/// What was last seen of the marker.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<(Generations, Option<Instant>)>);

impl Seen {
    fn get(&self) -> (Generations, Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, generations: Generations) {
        let seen = (generations, Some(Instant::now()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl Views {
    pub(super) fn marker(&self) -> String {
        format!("{}:generation", self.namespace)
    }

    /// How the views stand now.
    pub async fn generations(&self) -> Result<Generations, ViewError> {
        let marker: Option<String> = self.redis.get(self.marker()).await?;
        self.noted(marker.as_deref())
    }

    fn noted(&self, marker: Option<&str>) -> Result<Generations, ViewError> {
        let generations = match marker {
            Some(text) => Generations::parse(text).ok_or(ViewError::Damaged(self.marker()))?,
            None => Generations::default(),
        };
        self.seen.set(generations);
        Ok(generations)
    }

    /// How the views stand, as a writer may assume. That there are none is never assumed.
    pub(super) async fn recent(&self) -> Result<Generations, ViewError> {
        let (seen, at) = self.seen.get();
        let fresh = at.is_some_and(|at| at.elapsed() < FRESH);
        if fresh && seen.current.is_some() { Ok(seen) } else { self.generations().await }
    }

    /// Brings the marker from one value to another; false if it has another value by now.
    pub async fn replace(&self, from: Generations, to: Generations) -> Result<bool, ViewError> {
        let values = vec![from.to_string(), to.to_string()];
        let replaced = self.redis.eval(REPLACE, vec![self.marker()], values).await?;
        if replaced && from.current != to.current {
            // Who follows the views looks again; whom this does not reach looks again sometime.
            let told = self.redis.publish::<(), _, _>(self.changes_channel(), ANEW).await;
            told.unwrap_or_else(|error| tracing::debug!(%error, "a new generation is not told"));
        }
        Ok(replaced)
    }

    /// Reads what belongs to one generation. `read` ends with the marker: if that names the same
    /// generation still, nothing of it was removed before.
    pub(super) async fn read<T, F>(&self, read: impl Fn(u64) -> F) -> Result<T, ViewError>
    where
        F: Future<Output = Result<(T, Generations), ViewError>>,
    {
        let mut generations = self.seen.get().0;
        loop {
            let Some(current) = generations.current else {
                generations = self.generations().await?;
                if generations.current.is_none() {
                    return Err(ViewError::Absent);
                }
                continue;
            };
            let (found, now) = read(current).await?;
            if now.current == Some(current) {
                return Ok(found);
            }
            generations = now;
        }
    }

    /// What one round trip reads, and the marker behind it.
    pub(super) async fn and_marker<T>(
        &self,
        read: impl Future<Output = Result<T, ViewError>>,
    ) -> Result<(T, Generations), ViewError> {
        tokio::try_join!(biased; read, self.generations())
    }

    /// The texts of keys, and the marker.
    pub(super) async fn texts(
        &self,
        keys: &[String],
    ) -> Result<(Vec<Option<String>>, Generations), ViewError> {
        if self.redis.is_clustered() {
            // The keys lie in different slots.
            let texts =
                async { Ok(try_join_all(keys.iter().map(|key| self.redis.get(key))).await?) };
            return Box::pin(self.and_marker(texts)).await;
        }
        let keys: Vec<String> = keys.iter().cloned().chain([self.marker()]).collect();
        // Boxed: what the client holds meanwhile would be copied with everything that waits for it.
        let mut texts: Vec<Option<String>> = Box::pin(self.redis.mget(keys)).await?;
        let marker = texts.pop().flatten();
        Ok((texts, self.noted(marker.as_deref())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_the_views_has_one_marker_and_nothing_else_is_read_as_one() {
        let states = [
            ("", None, None, false),
            ("0 building 8", None, Some(8), false),
            ("7", Some(7), None, false),
            ("7 building 8", Some(7), Some(8), false),
            ("8 sweeping", Some(8), None, true),
        ];
        for (text, current, building, sweeping) in states {
            let generations = Generations { current, building, sweeping };
            assert_eq!(generations.to_string(), text);
            if !text.is_empty() {
                assert_eq!(Generations::parse(text), Some(generations));
            }
        }
        for bad in ["", "x", "7 building", "7 building 8 9", "7 8", " 7", "-1"] {
            assert_eq!(Generations::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_being_made_is_written_before_what_is_read() {
        let generations = Generations { current: Some(7), building: Some(8), sweeping: false };
        assert_eq!(generations.targets().collect::<Vec<_>>(), [8, 7]);
    }
}
