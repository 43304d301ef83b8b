//! The contract of the streams: an `AsyncAPI` 3.0 document of all commands and events, made from the
//! types that are read and written, and the JSON Schema of each message by itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, schema::Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::command::{
    DefineProduct, DeliverOrder, OrderStep, PlaceOrder, RegisterCustomer, RestockProduct,
    RetireProduct, SetCreditLimit, ShipOrder,
};
use crate::customer::{Customer, CustomerEvent};
use crate::ids::CommandId;
use crate::message::{Event, OutcomeFields, SCHEMA, Subject};
use crate::order::{Order, OrderEvent};
use crate::product::{Product, ProductEvent};
use crate::topology::Topology;

/// Where schemas stand in the document.
const SCHEMAS: &str = "#/components/schemas/";

/// A message that goes over a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its name: `order.place` for a command, `order.paid` for an event.
    pub name: String,
    /// The subject that it is published on, ids as `{orderId}`.
    pub address: String,
    /// Its JSON Schema (2020-12); references point into [`Messages::schemas`].
    pub schema: Value,
}

/// All messages and the schemas that they refer to.
#[derive(Debug, Clone, PartialEq)]
pub struct Messages {
    /// What is asked for.
    pub commands: Vec<Message>,
    /// What has happened.
    pub events: Vec<Message>,
    /// By name.
    pub schemas: BTreeMap<String, Value>,
}

impl Messages {
    /// The messages on the streams of a topology.
    pub fn new(topology: &Topology) -> Self {
        let mut messages =
            Self { commands: Vec::new(), events: Vec::new(), schemas: BTreeMap::new() };
        messages.command::<PlaceOrder>(topology, "order.place");
        messages.command::<OrderStep>(topology, "order.cancel");
        messages.command::<ShipOrder>(topology, "order.ship");
        messages.command::<DeliverOrder>(topology, "order.deliver");
        messages.command::<OrderStep>(topology, "order.refund");
        messages.command::<RegisterCustomer>(topology, "customer.register");
        messages.command::<SetCreditLimit>(topology, "customer.set-credit-limit");
        messages.command::<DefineProduct>(topology, "product.define");
        messages.command::<RestockProduct>(topology, "product.restock");
        messages.command::<RetireProduct>(topology, "product.retire");
        messages.add::<Event>();
        messages.events::<OrderEvent, Order>(topology, Subject::Order);
        messages.events::<CustomerEvent, Customer>(topology, Subject::Customer);
        messages.events::<ProductEvent, Product>(topology, Subject::Product);
        messages.add::<OutcomeFields>();
        let outcome = json!({ "$ref": format!("{SCHEMAS}CommandOutcome") });
        for kind in ["accepted", "rejected"] {
            messages.event(topology, Subject::Command, kind, &outcome, &outcome);
        }
        messages
    }

    /// Adds the schema of a type, and those that it refers to.
    fn add<T: ToSchema>(&mut self) {
        let mut found = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut found);
        self.schemas.extend(found.into_iter().map(|(name, schema)| (name, plain(&schema))));
    }

    /// A command as a NATS client publishes it: its ids may stand in the body.
    fn command<T: ToSchema>(&mut self, topology: &Topology, kind: &str) {
        let mut found = Vec::new();
        T::schemas(&mut found);
        self.schemas.extend(found.into_iter().map(|(name, schema)| (name, plain(&schema))));
        let mut schema = plain(&T::schema());
        schema["properties"]["commandId"] = plain(&CommandId::schema());
        schema["properties"]["commandId"]["description"] =
            "Follows from the idempotency key, or from the stream sequence, if left out.".into();
        schema["properties"]["idempotencyKey"] = json!({
            "type": "string", "pattern": "^[!-~]{1,255}$",
            "description": "The same key with the same body has one effect, for ever.",
        });
        let address = topology.command(kind);
        self.commands.push(Message { name: kind.to_owned(), address, schema });
    }

    /// The events of an aggregate: each variant's data, and the state after it.
    fn events<E: ToSchema, S: ToSchema>(&mut self, topology: &Topology, subject: Subject) {
        let mut found = Vec::new();
        E::schemas(&mut found);
        self.schemas.extend(found.into_iter().map(|(name, schema)| (name, plain(&schema))));
        self.add::<S>();
        let state = json!({ "$ref": format!("{SCHEMAS}{}", S::name()) });
        let variants = plain(&E::schema());
        for variant in variants["oneOf"].as_array().into_iter().flatten() {
            let properties = &variant["properties"];
            let Some(kind) = properties["type"]["enum"][0].as_str() else { continue };
            self.event(topology, subject, kind, &properties["data"], &state);
        }
    }

    fn event(
        &mut self,
        topology: &Topology,
        subject: Subject,
        kind: &str,
        data: &Value,
        state: &Value,
    ) {
        let schema = json!({
            "allOf": [
                { "$ref": format!("{SCHEMAS}Event") },
                { "properties": {
                    "subject": { "const": subject }, "type": { "const": kind },
                    "schema": { "const": SCHEMA }, "data": data, "state": state,
                } },
            ],
        });
        let address = topology.event(subject, &format!("{{{subject}Id}}"), kind);
        self.events.push(Message { name: format!("{subject}.{kind}"), address, schema });
    }

    /// The `AsyncAPI` document, as of the program that receives the commands and sends the events.
    pub fn document(&self) -> Value {
        let (mut channels, mut operations) = (Map::new(), Map::new());
        let mut components = Map::new();
        let all = self.commands.iter().map(|message| (message, "receive", "command"));
        for (message, action, sort) in
            all.chain(self.events.iter().map(|message| (message, "send", "event")))
        {
            let name = format!("{sort}.{}", message.name);
            let parameters: Map<String, Value> = message
                .address
                .split('.')
                .filter_map(|token| token.strip_prefix('{')?.strip_suffix('}'))
                .map(|id| (id.to_owned(), json!({ "description": "Which." })))
                .collect();
            let of = json!({ "$ref": format!("#/components/messages/{name}") });
            channels.insert(
                name.clone(),
                json!({
                    "address": message.address, "messages": { &name: of }, "parameters": parameters,
                }),
            );
            operations.insert(
                format!("{action}.{name}"),
                json!({ "action": action, "channel": { "$ref": format!("#/channels/{name}") } }),
            );
            components.insert(
                name,
                json!({ "name": message.name, "contentType": "application/json",
                        "payload": message.schema }),
            );
        }
        json!({
            "asyncapi": "3.0.0",
            "info": {
                "title": "Millrace", "version": env!("CARGO_PKG_VERSION"),
                "description": "Commands and events on NATS JetStream. A command may be published \
                    by any NATS client: a request is answered by JetStream's publish ack, whose \
                    sequence names the command. Events carry what happened and the state after it.",
            },
            "defaultContentType": "application/json",
            "channels": channels, "operations": operations,
            "components": { "messages": components, "schemas": self.schemas },
        })
    }

    /// The JSON Schema of one message with all that it refers to.
    pub fn alone(&self, message: &Message) -> Value {
        let mut schema = message.schema.clone();
        let mut defs = Map::new();
        let mut open = references(&schema);
        while let Some(name) = open.pop() {
            if let Some(referred) = self.schemas.get(&name)
                && !defs.contains_key(&name)
            {
                open.extend(references(referred));
                defs.insert(name, moved(referred.clone()));
            }
        }
        schema = moved(schema);
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        schema["$defs"] = defs.into();
        schema
    }
}

fn plain(schema: &RefOr<Schema>) -> Value {
    // A schema is made of maps and texts: it is always JSON.
    serde_json::to_value(schema).unwrap_or_default()
}

/// The names that a schema refers to.
fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(object) => {
            let own = object.get("$ref").and_then(Value::as_str);
            let own = own.and_then(|target| target.strip_prefix(SCHEMAS)).map(str::to_owned);
            own.into_iter().chain(object.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// With references to `$defs`.
fn moved(schema: Value) -> Value {
    match schema {
        Value::String(text) => text.replace(SCHEMAS, "#/$defs/").into(),
        Value::Array(items) => items.into_iter().map(moved).collect(),
        Value::Object(object) => {
            object.into_iter().map(|(name, value)| (name, moved(value))).collect()
        }
        other => other,
    }
}
