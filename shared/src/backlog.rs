//! How old the work is that waits for a worker.

use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use chrono::{DateTime, Utc};

use crate::log::timestamp;

/// The oldest message that a consumer has not settled, as it was when last read: it is read again
/// only when it is done.
#[derive(Debug, Default)]
pub struct Oldest(Option<(u64, DateTime<Utc>)>);

impl Oldest {
    /// When the stream took the first message behind what the consumer has settled; nothing, if none
    /// waits or it cannot be read.
    pub async fn look(
        &mut self,
        stream: &Stream<()>,
        info: &consumer::Info,
    ) -> Option<DateTime<Utc>> {
        if info.num_pending == 0 && info.num_ack_pending == 0 {
            return None;
        }
        let from = info.ack_floor.stream_sequence + 1;
        if let Some((sequence, at)) = self.0
            && sequence >= from
        {
            return Some(at);
        }
        let one = std::slice::from_ref(&info.config.filter_subject);
        let subjects = match info.config.filter_subjects.as_slice() {
            [] => one,
            several => several,
        };
        let mut first: Option<(u64, DateTime<Utc>)> = None;
        for subject in subjects {
            // Who has no filter asks for everything.
            let subject = if subject.is_empty() { ">" } else { subject };
            let message = match stream.get_first_raw_message_by_subject(subject, from).await {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
                Err(_) => return None,
            };
            let found = (message.sequence, timestamp(message.time.unix_timestamp_nanos()));
            first = Some(first.map_or(found, |first| first.min(found)));
        }
        self.0 = first;
        first.map(|(_, at)| at)
    }
}
