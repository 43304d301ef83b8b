//! Messages that the NATS client itself cannot receive. The server stores whatever bytes a publisher
//! calls headers; a client that cannot read them ends its connection, or takes the message for one of
//! the server's own. So no worker ever sees such a message, and without this it would come back for
//! ever and take others with it.
//!
//! It shows in one way: the consumer's floor stands still. Then what stands there is read through the
//! API, where headers are only bytes; what cannot be received is parked, and removed from the stream.

use std::time::Duration;

use async_nats::HeaderName;
use async_nats::jetstream;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::log::timestamp;
use crate::parking::{Parking, Unprocessable};

/// How often the floor is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How many messages above the floor are looked at.
const WINDOW: u64 = 512;

/// Watches a worker's consumer until the shutdown.
pub async fn watch(jetstream: jetstream::Context, parking: Parking, shutdown: CancellationToken) {
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = look(&jetstream, &parking, &mut seen).await {
            tracing::debug!(worker = parking.worker, "the consumer cannot be looked at: {error:#}");
        }
    }
}

/// What was seen before.
#[derive(Default)]
struct Seen {
    floor: Option<u64>,
    checked: u64,
}

async fn look(
    jetstream: &jetstream::Context,
    parking: &Parking,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let stream = jetstream.get_stream_no_info(&parking.stream).await?;
    let info = stream.consumer_info(parking.worker).await?;
    let floor = info.ack_floor.stream_sequence;
    if info.num_ack_pending == 0 || seen.floor.replace(floor) != Some(floor) {
        return Ok(());
    }
    let last = info.delivered.stream_sequence.min(floor + WINDOW);
    for sequence in floor.max(seen.checked) + 1..=last {
        if let Some(message) = read(jetstream, &parking.stream, sequence).await?
            && let Some(headers) = &message.headers
            && let Err(reason) = check(&STANDARD.decode(headers)?)
        {
            let payload = STANDARD.decode(&message.payload)?;
            let found = Unprocessable {
                subject: &message.subject,
                sequence,
                at: timestamp(message.time.unix_timestamp_nanos()),
                headers: None,
                payload: &payload,
                size: payload.len(),
            };
            let reason = format!("its headers cannot be received: {reason}");
            parking.park(found, 1, &reason).await?;
            stream.delete_message(sequence).await?;
            let (worker, subject) = (parking.worker, &message.subject);
            tracing::error!(worker, subject, sequence, reason, "parked, and removed");
        }
        seen.checked = sequence;
    }
    Ok(())
}

/// A message as the server has it; nothing if it is not there.
async fn read(
    jetstream: &jetstream::Context,
    stream: &str,
    sequence: u64,
) -> anyhow::Result<Option<RawMessage>> {
    #[derive(Deserialize)]
    struct Answer {
        message: RawMessage,
    }
    let request = serde_json::json!({ "seq": sequence });
    match jetstream.request(format!("STREAM.MSG.GET.{stream}"), &request).await? {
        Response::Ok(Answer { message }) => Ok(Some(message)),
        Response::Err { error } if error.error_code() == jetstream::ErrorCode::NO_MESSAGE_FOUND => {
            Ok(None)
        }
        Response::Err { error } => Err(error.into()),
    }
}

/// Whether a client can receive these headers as those of a message (NATS ADR-4).
fn check(headers: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(headers).map_err(|_| "they are no UTF-8")?;
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("NATS/1.0") {
        return Err("the first line must be NATS/1.0, without a status");
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
        for bad in [
            "",
            "NATS/1.0 503\r\n\r\n",
            "NATS/1.0\r\nno colon\r\n\r\n",
            "NATS/1.0\r\nA B: c\r\n",
            "HTTP/1.1\r\n",
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(check(b"NATS/1.0\r\nA: \xff\r\n\r\n").is_err());
    }
}
