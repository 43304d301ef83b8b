//! Messages that the NATS client itself cannot receive. The server stores whatever bytes a publisher
//! calls subject and headers; a client that cannot read them ends its connection. So no worker ever
//! sees such a message, and without this it would come back for ever and hold up others with it.
//!
//! It shows in one way: the consumer's floor stands still. Then what stands there is read through the
//! API, where headers are only bytes, and what cannot be received is handed to the worker without
//! them.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{RawMessage, Stream};
use async_nats::jetstream::{self, ErrorCode, Message};
use async_nats::{HeaderMap, HeaderName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::command::UNRECEIVABLE;

/// How many messages above the floor are looked at, at a time.
const WINDOW: u64 = 512;

/// The search for messages of one consumer that cannot be received.
#[derive(Debug)]
pub struct Quarantine {
    jetstream: jetstream::Context,
    stream: String,
    consumer: String,
    floor: Option<u64>,
    checked: u64,
}

impl Quarantine {
    /// A search in `stream`, for its `consumer`.
    pub fn new(jetstream: jetstream::Context, stream: String, consumer: String) -> Self {
        Self { jetstream, stream, consumer, floor: None, checked: 0 }
    }

    /// The consumer as it is now, and its stream.
    pub async fn consumer(&self) -> anyhow::Result<(Stream<()>, Info)> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await?;
        let info = stream.consumer_info(&self.consumer).await?;
        Ok((stream, info))
    }

    /// If the floor stands where it stood the last time: the messages above it that cannot be
    /// received, in a form that can be handled and acked.
    pub async fn look(&mut self, info: &Info) -> anyhow::Result<Vec<Message>> {
        let floor = info.ack_floor.stream_sequence;
        if info.num_ack_pending == 0 || self.floor.replace(floor) != Some(floor) {
            return Ok(Vec::new());
        }
        let last = info.delivered.stream_sequence.min(floor + WINDOW);
        let mut found = Vec::new();
        for sequence in floor.max(self.checked) + 1..=last {
            if let Some(raw) = self.read(sequence).await?
                && let Some(reason) = unreceivable(&raw)?
            {
                found.push(self.message(&raw, reason)?);
            }
            self.checked = sequence;
        }
        Ok(found)
    }

    /// A message as the server has it; nothing if it is not there.
    async fn read(&self, sequence: u64) -> anyhow::Result<Option<RawMessage>> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let request = serde_json::json!({ "seq": sequence });
        match self.jetstream.request(subject, &request).await? {
            Response::Ok(Answer { message }) => Ok(Some(message)),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Response::Err { error } => Err(error.into()),
        }
    }

    /// The message as a delivery: the server settles by the stream sequence in the reply subject.
    fn message(&self, raw: &RawMessage, reason: &str) -> anyhow::Result<Message> {
        let (stream, consumer, sequence) = (&self.stream, &self.consumer, raw.sequence);
        let at = raw.time.unix_timestamp_nanos();
        let reply = format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{sequence}.{at}.0");
        let mut headers = HeaderMap::new();
        headers.insert(UNRECEIVABLE, reason);
        let payload = STANDARD.decode(&raw.payload)?;
        let message = async_nats::Message {
            subject: raw.subject.as_str().into(),
            reply: Some(reply.into()),
            length: payload.len(),
            payload: payload.into(),
            headers: Some(headers),
            status: None,
            description: None,
        };
        Ok(Message { message, context: self.jetstream.clone() })
    }
}

/// Why a client cannot receive a message, if it cannot.
pub fn unreceivable(message: &RawMessage) -> anyhow::Result<Option<&'static str>> {
    // In the API's JSON the server replaces what is no UTF-8.
    if message.subject.contains(char::REPLACEMENT_CHARACTER) {
        return Ok(Some("the subject is no UTF-8"));
    }
    let Some(headers) = &message.headers else { return Ok(None) };
    Ok(check(&STANDARD.decode(headers)?).err())
}

/// Whether a client can receive these headers as those of a message (NATS ADR-4).
fn check(headers: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(headers).map_err(|_| "they are no UTF-8")?;
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.starts_with("NATS/1.0")) {
        return Err("they do not begin with NATS/1.0");
    }
    let mut named = false;
    for line in lines.filter(|line| !line.is_empty()) {
        if named && line.starts_with(char::is_whitespace) {
            continue;
        }
        let (name, _) = line.split_once(':').ok_or("a line has no colon")?;
        name.parse::<HeaderName>().map_err(|_| "a name has characters that none may have")?;
        named = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn headers_that_a_client_can_receive_are_let_through_and_no_others() {
        for good in
            ["NATS/1.0\r\n\r\n", "NATS/1.0\r\nA: b\r\nC:\r\n\r\n", "NATS/1.0\r\nA: b\r\n c\r\n\r\n"]
        {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good:?}");
        }
        for bad in ["", "NATS/1.0\r\nno colon\r\n\r\n", "NATS/1.0\r\nA B: c\r\n", "HTTP/1.1\r\n"] {
            assert!(check(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(check(b"NATS/1.0\r\nA: \xff\r\n\r\n").is_err());
    }
}
