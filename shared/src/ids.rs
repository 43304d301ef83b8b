//! Typed ids. Wherever a retry could happen an id is derived (UUID version 5, RFC 9562), never
//! drawn at random, so that doing a thing twice gives the same id twice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

/// The namespace of all derived ids. Never change it: ids already given out would change.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d69_6c6c_7261_4365_a001_0000_0000_0001);

fn derive(what: &str, parts: &[&[u8]]) -> Uuid {
    // Each part is preceded by its length, so that ("a", "bc") and ("ab", "c") differ.
    let mut name = Vec::with_capacity(128);
    for part in std::iter::once(&what.as_bytes()).chain(parts) {
        name.extend_from_slice(&(part.len() as u64).to_be_bytes());
        name.extend_from_slice(part);
    }
    Uuid::new_v5(&NAMESPACE, &name)
}

/// A text that is no UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a UUID")]
pub struct NotAUuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id that sorts by time (UUID version 7), for where nothing could derive it.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let uuid = SchemaFormat::KnownFormat(KnownFormat::Uuid);
                ObjectBuilder::new().schema_type(Type::String).format(Some(uuid)).into()
            }
        }

        impl ToSchema for $name {}

        impl FromStr for $name {
            type Err = NotAUuid;

            fn from_str(text: &str) -> Result<Self, NotAUuid> {
                text.parse().map(Self).map_err(|_| NotAUuid)
            }
        }
    };
}

uuid_id! {
    /// An order.
    OrderId
}
uuid_id! {
    /// A command: what a client asked for. Its outcome can be asked for by this id.
    CommandId
}
uuid_id! {
    /// An event in the log.
    EventId
}

impl OrderId {
    /// The one order of a customer's idempotency key, for ever.
    pub fn from_key(customer: &CustomerId, key: &str) -> Self {
        Self(derive("order", &[customer.as_str().as_bytes(), key.as_bytes()]))
    }

    /// The order of a command that named neither order nor key: the same at every redelivery.
    pub fn from_sequence(stream: &str, sequence: u64) -> Self {
        Self(derive("order-seq", &[stream.as_bytes(), &sequence.to_be_bytes()]))
    }
}

impl CommandId {
    /// The command of an idempotency key: `scope` is what the key is unique in (kind and
    /// subject), `fingerprint` tells the body, so the same key with another body is another
    /// command.
    pub fn from_key(scope: &str, key: &str, fingerprint: Uuid) -> Self {
        Self(derive("command", &[scope.as_bytes(), key.as_bytes(), fingerprint.as_bytes()]))
    }

    /// The command of a message that brought no id: derived from its place in the stream, which
    /// is in the publish ack that the client got.
    pub fn from_sequence(stream: &str, sequence: u64) -> Self {
        Self(derive("command-seq", &[stream.as_bytes(), &sequence.to_be_bytes()]))
    }
}

impl EventId {
    /// The id of one writer's event number `version` of a subject. The cause is part of it: two
    /// writers that race for a version must not take each other's event for their own.
    pub fn derive(subject: &str, version: u64, causation: Uuid) -> Self {
        Self(derive("event", &[subject.as_bytes(), &version.to_be_bytes(), causation.as_bytes()]))
    }
}

/// What an idempotency key names once: the same scope and key give the same value.
pub fn key_id(scope: &str, key: &str) -> Uuid {
    derive("key", &[scope.as_bytes(), key.as_bytes()])
}

/// A fingerprint of a command's canonical body.
pub fn fingerprint(kind: &str, body: &[u8]) -> Uuid {
    derive("body", &[kind.as_bytes(), body])
}

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 of the characters A-Z a-z 0-9 _ -")]
pub struct InvalidId;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text: a single token of a NATS subject, safe in a Redis key and a URL.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String);
                text.pattern(Some("^[A-Za-z0-9_-]{1,64}$")).into()
            }
        }

        impl ToSchema for $name {}

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                let fits = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                if fits { Ok(Self(text)) } else { Err(InvalidId) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A customer; the shop chooses it.
    CustomerId
}
text_id! {
    /// A product; the shop chooses it.
    ProductId
}

impl CustomerId {
    /// The customer that a registration without an id gets.
    pub fn from_command(command: CommandId) -> Self {
        Self(command.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_frozen() {
        // These values are in other people's databases: a change of the derivation is a defect.
        // They were computed by another program (UUID version 5 in Python).
        let customer: CustomerId = "ALFKI".parse().unwrap();
        let (stream, scope) = ("millrace_COMMANDS", "order.place ALFKI");
        let body = fingerprint("order.place", b"{}");
        let ids = [
            (CommandId::from_sequence(stream, 1).0, "961c713b-1a0f-5210-a207-a6fecf2a6a7e"),
            (OrderId::from_sequence(stream, 1).0, "1f814e11-58a2-5a82-83ad-52f2c2783bb6"),
            (OrderId::from_key(&customer, "cart-1").0, "458e6af9-7128-5dda-b6dc-8d9a342352d4"),
            (key_id(scope, "cart-1"), "9c0ed8f2-d7a8-5b14-bf9b-d9e369b64468"),
            (body, "6cd743da-73f4-5d1e-a424-08c358aa4237"),
            (CommandId::from_key(scope, "cart-1", body).0, "9d135599-5b12-5a57-bf05-b45cc0b5452d"),
            (EventId::derive("order/1", 1, body).0, "2fa5ae4b-8324-5b1b-adee-db3c20cb22cf"),
        ];
        for (id, frozen) in ids {
            assert_eq!(id.to_string(), frozen);
        }
    }

    #[test]
    fn another_input_gives_another_id() {
        let customer: CustomerId = "ALFKI".parse().unwrap();
        let order = |key: &str| OrderId::from_key(&customer, key);
        assert_eq!(order("cart-1"), order("cart-1"));
        assert_ne!(order("cart-1"), order("cart-2"));
        let (a, b) = (fingerprint("order.place", b"a"), fingerprint("order.place", b"b"));
        assert_ne!(CommandId::from_key("s", "k", a), CommandId::from_key("s", "k", b));
        assert_ne!(CommandId::from_sequence("S", 1), CommandId::from_sequence("S", 2));
        assert_ne!(CommandId::from_sequence("S", 1).0, OrderId::from_sequence("S", 1).0);
        assert_ne!(EventId::derive("order/1", 1, a), EventId::derive("order/1", 1, b));
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(key_id("ab", "c"), key_id("a", "bc"));
    }

    #[test]
    fn text_ids_refuse_what_a_subject_or_key_could_not_hold() {
        for bad in ["", "a.b", "a b", "*", ">", "ä", &"x".repeat(65), "a\n"] {
            assert!(bad.parse::<ProductId>().is_err(), "{bad:?}");
        }
        assert!("SKU_1-b".parse::<ProductId>().is_ok());
    }
}
