//! The catalogue search. It is made from the log, in memory, by every edge for itself, and kept live:
//! see [`feed`]. Searching needs neither Redis nor NATS; while the log cannot be read, what is known
//! is still found, and the answer says since when it may be old.

pub mod asked;
pub mod catalogue;
pub mod cursor;
pub mod feed;
pub mod find;
pub mod text;

#[cfg(test)]
mod bench;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use millrace_shared::message::now;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::catalogue::{Catalogue, Slot};
use self::find::{Criteria, Found, find};
use self::text::{Text, Writer};
use crate::error::Problem;

/// How long a search waits for its turn before it is refused.
const PATIENCE: Duration = Duration::from_secs(1);

/// The search of one edge.
#[derive(Debug)]
pub struct Search {
    catalogue: RwLock<Catalogue>,
    text: Text,
    standing: RwLock<Standing>,
    /// As many searches at a time as there are processors: more would only wait for each other.
    turns: Arc<Semaphore>,
}

/// How the catalogue stands to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is being filled for the first time.
    Filling,
    /// It follows the log.
    Live,
    /// It has followed the log until then.
    Lost(DateTime<Utc>),
}

/// A page, and whether it may be old.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    #[serde(flatten)]
    found: Found,
    /// Since when the log cannot be followed: changes after it may be missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_since: Option<DateTime<Utc>>,
}

impl Search {
    /// An empty catalogue, and what writes its index.
    pub fn new() -> tantivy::Result<(Self, Writer)> {
        let (text, writer) = text::index()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let search = Self {
            catalogue: RwLock::default(),
            text,
            standing: RwLock::new(Standing::Filling),
            turns: Arc::new(Semaphore::new(processors)),
        };
        Ok((search, writer))
    }

    /// Whether everything that was in the log at the start is in the catalogue.
    pub fn is_filled(&self) -> bool {
        self.standing() != Standing::Filling
    }

    /// Whether the log is being followed now.
    pub fn is_live(&self) -> bool {
        self.standing() == Standing::Live
    }

    fn standing(&self) -> Standing {
        *self.standing.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn follows(&self) {
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = Standing::Live;
    }

    fn lost(&self) {
        let mut standing = self.standing.write().unwrap_or_else(PoisonError::into_inner);
        if *standing == Standing::Live {
            *standing = Standing::Lost(now());
        }
    }

    /// Looks into the catalogue.
    pub fn look<T>(&self, look: impl FnOnce(&Catalogue) -> T) -> T {
        look(&self.catalogue.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the catalogue.
    fn change<T>(&self, change: impl FnOnce(&mut Catalogue) -> T) -> T {
        change(&mut self.catalogue.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The products that fit.
    pub async fn search(
        self: &Arc<Self>,
        words: Vec<String>,
        criteria: Criteria,
    ) -> Result<Answer, Problem> {
        let stale_since = match self.standing() {
            Standing::Filling => {
                return Err(Problem::unavailable("the catalogue is being read; come back soon"));
            }
            Standing::Live => None,
            Standing::Lost(since) => Some(since),
        };
        let turn = timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Problem::overloaded("too many searches are under way"));
        };
        let search = Arc::clone(self);
        let searched = spawn_blocking(move || {
            let found = search.find(&words, &criteria);
            drop(turn);
            found
        });
        let damaged = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "the catalogue cannot be searched");
            Problem::internal()
        };
        let found =
            searched.await.map_err(|error| damaged(&error))?.map_err(|error| damaged(&error))?;
        Ok(Answer { found, stale_since })
    }

    /// Searches at once, whatever the standing. Without words everything fits.
    pub fn find(&self, words: &[String], criteria: &Criteria) -> tantivy::Result<Found> {
        let matches = if words.is_empty() { None } else { Some(self.text.matches(words)?) };
        let catalogue = self.catalogue.read().unwrap_or_else(PoisonError::into_inner);
        Ok(if let Some(matches) = matches {
            find(&catalogue, matches.into_iter(), criteria)
        } else {
            let all = Slot::try_from(catalogue.len()).unwrap_or(Slot::MAX);
            find(&catalogue, (0..all).map(|slot| (slot, 0)), criteria)
        })
    }
}
