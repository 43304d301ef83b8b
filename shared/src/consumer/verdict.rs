//! What a worker says about a message, and how errors are judged.

use crate::log::{AppendError, ReadError};
use crate::message::EventError;
use crate::views::ViewError;

/// What is to become of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that follows from it is stored.
    Done,
    /// Something must happen first that is under way: try again soon, for as long as it takes.
    Later(String),
    /// Somebody else must do something, and asking hastens nothing: try again, each time after a
    /// longer while.
    Waits(String),
    /// A server is away: try again, for as long as it takes.
    Unavailable(String),
    /// It failed: try again, and park it if it keeps failing.
    Failed(String),
    /// It will never work: park it.
    Park(String),
}

impl Verdict {
    /// The verdict on an error: by its kind, a reason to wait, to try again or to park.
    pub fn of(error: &anyhow::Error) -> Self {
        let text = format!("{error:#}");
        for cause in error.chain() {
            if let Some(error) = cause.downcast_ref::<sqlx::Error>() {
                return Self::of_sql(error, text);
            }
            if cause.is::<EventError>() {
                return Self::Park(text);
            }
            // Of the answers of a Redis that is there, only this one does not pass by itself.
            if let Some(ViewError::Redis(error)) = cause.downcast_ref()
                && !error.details().starts_with("WRONGTYPE")
            {
                return Self::Unavailable(text);
            }
            if let Some(ReadError::Unavailable(_)) = cause.downcast_ref() {
                return Self::Unavailable(text);
            }
            match cause.downcast_ref::<AppendError>() {
                Some(AppendError::Refused(_)) => return Self::Park(text),
                Some(AppendError::Conflict) => return Self::Later(text),
                Some(_) => return Self::Unavailable(text),
                None => {}
            }
        }
        Self::Failed(text)
    }

    /// What stands in the way, if it is not done.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Later(reason)
            | Self::Waits(reason)
            | Self::Unavailable(reason)
            | Self::Failed(reason)
            | Self::Park(reason) => Some(reason),
        }
    }

    fn of_sql(error: &sqlx::Error, text: String) -> Self {
        match error {
            sqlx::Error::Database(error) => match error.code().as_deref() {
                // Deadlock, serialization failure, lock time-out.
                Some("40P01" | "40001" | "55P03") => Self::Later(text),
                // Connection, resource (disk full, too many clients) and operator classes.
                Some(code) if ["08", "53", "57", "58"].iter().any(|c| code.starts_with(c)) => {
                    Self::Unavailable(text)
                }
                // A role, table or database that is not there yet: `millrace migrate` brings it.
                Some("28P01" | "28000" | "3D000" | "42P01" | "3F000") => Self::Unavailable(text),
                _ => Self::Failed(text),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(text),
            _ => Self::Failed(text),
        }
    }
}
