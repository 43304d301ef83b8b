//! The ids of a command, and how one is read from a message.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    ACTOR_HEADER, COMMAND_ID_HEADER, Command, FieldError, KEY_HEADER, KINDS, Malformed,
    ON_BEHALF_HEADER, UNRECEIVABLE, printable, read_object,
};
use crate::ids::{self, CommandId, CustomerId, InvalidId, OrderId};

/// Characters of a name that are kept of who gave a command.
const MOST_OF_ACTOR: usize = 200;

/// Checks an idempotency key: 1 to 255 visible ASCII characters.
pub fn check_key(key: &str) -> Result<(), FieldError> {
    if (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        let detail = "must be 1 to 255 visible ASCII characters";
        Err(FieldError::new("idempotencyKey", "invalid", detail))
    }
}

/// The ids that a client gave to a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// Its command id.
    pub command_id: Option<CommandId>,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The customer in whose name it is given, if it is not given in the shop's own.
    pub on_behalf_of: Option<CustomerId>,
}

/// Where ids come from that neither the client nor an idempotency key gave.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The message's place in a stream: the same at every redelivery.
    Stream(&'a str, u64),
    /// Drawn anew, by whoever stores them with the command.
    New,
}

/// A command with all its ids settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// By this the outcome is asked for.
    pub command_id: CommandId,
    /// What the idempotency key names once, if there is a key.
    pub key_id: Option<Uuid>,
    /// The customer in whose name it is given: nobody else's order is known to it.
    pub on_behalf_of: Option<CustomerId>,
    /// Of the canonical body: tells a repeated command from another one under the same id.
    pub fingerprint: Uuid,
    /// The command; a placement has its order id, a registration its customer id.
    pub command: Command,
}

impl Identified {
    /// Settles the ids of a command.
    pub fn new(mut command: Command, given: &Given, source: Source<'_>) -> Result<Self, Malformed> {
        let on_behalf_of = given.on_behalf_of.clone();
        if let Some(customer) = &on_behalf_of {
            command.check_customer(customer)?;
        }
        if let Command::PlaceOrder(order) = &mut command {
            let by_key = given.key.as_ref().map(|key| OrderId::from_key(&order.customer_id, key));
            if by_key.is_some() && order.order_id.is_some() && by_key != order.order_id {
                let detail = "is not the order id of this customer and idempotency key";
                return Err(FieldError::new("orderId", "invalid", detail).into());
            }
            order.order_id = by_key.or(order.order_id);
        }
        let kind = command.kind();
        let body = serde_json::to_vec(&command).map_err(|error| {
            Malformed::from(FieldError::new("body", "invalid", error.to_string()))
        })?;
        let fingerprint = ids::fingerprint(kind, &body);
        let mut scope = format!("{kind} {}", command.scope());
        // The same key on the same order is another one for each customer who tries it: none is
        // answered with what became of somebody else's. A placement's scope is its customer already.
        if let (Some(customer), false) = (&on_behalf_of, matches!(command, Command::PlaceOrder(_)))
        {
            scope = format!("{scope} {customer}");
        }
        let key_id = given.key.as_ref().map(|key| ids::key_id(&scope, key));
        let command_id = match (given.command_id, &given.key, source) {
            (Some(id), _, _) => id,
            (None, Some(key), _) => CommandId::from_key(&scope, key, fingerprint),
            (None, None, Source::Stream(stream, sequence)) => {
                CommandId::from_sequence(stream, sequence)
            }
            (None, None, Source::New) => CommandId::new(),
        };
        match &mut command {
            Command::PlaceOrder(order) if order.order_id.is_none() => {
                order.order_id = Some(match source {
                    Source::Stream(stream, sequence) => OrderId::from_sequence(stream, sequence),
                    Source::New => OrderId::new(),
                });
            }
            Command::RegisterCustomer(customer) if customer.customer_id.is_none() => {
                customer.customer_id = Some(CustomerId::from_command(command_id));
            }
            _ => {}
        }
        Ok(Self { command_id, key_id, on_behalf_of, fingerprint, command })
    }
}

/// A message of the COMMANDS stream, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// By this its outcome is asked for.
    pub command_id: CommandId,
    /// The id that follows from its place in the stream alone.
    pub fallback_id: CommandId,
    /// The customer in whose name it is given.
    pub on_behalf_of: Option<CustomerId>,
    /// Who has signed in to give it.
    pub actor: Option<String>,
    /// Tells the message from another one under the same command id.
    pub fingerprint: Uuid,
    /// The command, or what is wrong with it.
    pub command: Result<Identified, Malformed>,
    /// Whether it is not even a JSON object on a known subject.
    pub garbage: bool,
}

impl Received {
    /// Reads the message with the stream sequence `sequence`. Its ids may stand in headers or in
    /// the payload; what is left out is derived.
    pub fn read<'h>(
        kind: &str,
        payload: &[u8],
        header: impl Fn(&str) -> Option<&'h str>,
        (stream, sequence): (&str, u64),
    ) -> Self {
        let mut given = Given::default();
        let read = match header(UNRECEIVABLE) {
            Some(reason) => Err(FieldError::new("headers", "invalid", reason).into()),
            None => read_object(payload),
        };
        let (command, garbage) = match read {
            Err(malformed) => (Err(malformed), true),
            Ok(mut body) => {
                let command = take_ids(&mut body, &header, &mut given)
                    .and_then(|()| Command::read(kind, body))
                    .and_then(|command| {
                        Identified::new(command, &given, Source::Stream(stream, sequence))
                    });
                (command, !KINDS.contains(&kind))
            }
        };
        let fallback_id = CommandId::from_sequence(stream, sequence);
        let actor = header(ACTOR_HEADER).map(|actor| printable(actor, MOST_OF_ACTOR));
        let (command_id, fingerprint) = match &command {
            Ok(command) => (command.command_id, command.fingerprint),
            Err(_) => (given.command_id.unwrap_or(fallback_id), ids::fingerprint(kind, payload)),
        };
        let on_behalf_of = given.on_behalf_of;
        Self { command_id, fallback_id, on_behalf_of, actor, fingerprint, command, garbage }
    }
}

fn take_ids<'h>(
    body: &mut Map<String, Value>,
    header: impl Fn(&str) -> Option<&'h str>,
    given: &mut Given,
) -> Result<(), Malformed> {
    let mut take = |field: &str, name: &str| -> Result<Option<String>, FieldError> {
        let in_body = match body.remove(field) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => return Err(FieldError::new(field, "invalid", "must be a string")),
        };
        let in_header = header(name).map(str::to_owned);
        if in_body.is_some() && in_header.is_some() && in_body != in_header {
            let detail = format!("differs from the header {name}");
            return Err(FieldError::new(field, "invalid", detail));
        }
        Ok(in_body.or(in_header))
    };
    // The id first: the outcome is kept under it, whatever else is wrong.
    if let Some(id) = take("commandId", COMMAND_ID_HEADER)? {
        let id =
            id.parse().map_err(|_| FieldError::new("commandId", "invalid", "must be a UUID"))?;
        given.command_id = Some(id);
    }
    if let Some(customer) = header(ON_BEHALF_HEADER) {
        let wrong =
            |error: InvalidId| FieldError::new(ON_BEHALF_HEADER, "invalid", error.to_string());
        given.on_behalf_of = Some(customer.parse().map_err(wrong)?);
    }
    if let Some(key) = take("idempotencyKey", KEY_HEADER)? {
        check_key(&key)?;
        given.key = Some(key);
    }
    Ok(())
}
