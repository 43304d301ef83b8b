//! Commands: what clients ask for, in one form for HTTP and for NATS.

use std::collections::HashSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::ids::{self, CommandId, CustomerId, OrderId, ProductId};
use crate::message::Subject;
use crate::money::{MAX_AMOUNT, Money};
use crate::order::{PaymentKind, Shipment};

/// The most lines of one order.
pub const MAX_LINES: usize = 200;
/// The most pieces in one line, or in one restock.
pub const MAX_QUANTITY: u32 = 1_000_000;
/// The most bytes of a command.
pub const MAX_BYTES: usize = 64 * 1024;
/// The header that names a command's id, instead of the field `commandId`.
pub const COMMAND_ID_HEADER: &str = "Millrace-Command-Id";
/// The header of a command that no client could receive as it was published; says why.
pub const UNRECEIVABLE: &str = "Millrace-Unreceivable";
/// The header that names an idempotency key, instead of the field `idempotencyKey`.
pub const KEY_HEADER: &str = "Idempotency-Key";

/// Places an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlaceOrder {
    /// Follows from the idempotency key where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    /// Who orders.
    pub customer_id: CustomerId,
    /// What is ordered: one line a product.
    pub lines: Vec<RequestedLine>,
    /// How it is paid.
    pub payment: PaymentMethod,
}

/// A line of an order as the client sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestedLine {
    /// The product.
    pub product_id: ProductId,
    /// Pieces.
    pub quantity: u32,
    /// The price that the client has seen. It is never used as the price: if it differs from
    /// the catalogue's, the order is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Money>,
}

/// How an order is paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", try_from = "PaymentFields")]
pub enum PaymentMethod {
    /// By a card, known to the gateway under a token.
    Card {
        /// The gateway's token.
        token: String,
    },
    /// On account, within the customer's credit limit.
    Account {},
}

/// A payment's fields before they are known to fit together. Read this way and not as a tagged
/// enum, because serde then no longer tells in which field an error is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaymentFields {
    method: PaymentKind,
    token: Option<String>,
}

impl TryFrom<PaymentFields> for PaymentMethod {
    type Error = &'static str;

    fn try_from(fields: PaymentFields) -> Result<Self, &'static str> {
        match (fields.method, fields.token) {
            (PaymentKind::Card, Some(token)) => Ok(Self::Card { token }),
            (PaymentKind::Account, None) => Ok(Self::Account {}),
            // The beginnings are those that `typed` knows.
            (PaymentKind::Card, None) => Err("missing field `token`"),
            (PaymentKind::Account, Some(_)) => {
                Err("superfluous field `token`: a payment by account has none")
            }
        }
    }
}

impl PaymentMethod {
    /// The method without its details.
    pub fn kind(&self) -> PaymentKind {
        match self {
            Self::Card { .. } => PaymentKind::Card,
            Self::Account {} => PaymentKind::Account,
        }
    }
}

/// Calls an order off, or asks for its money back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrderStep {
    /// The order.
    pub order_id: OrderId,
    /// The client's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Tells that an order has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShipOrder {
    /// The order.
    pub order_id: OrderId,
    /// Who carries it.
    pub carrier: String,
    /// The carrier's number.
    pub tracking_number: String,
}

impl ShipOrder {
    /// The part that the order keeps.
    pub fn shipment(&self) -> Shipment {
        Shipment { carrier: self.carrier.clone(), tracking_number: self.tracking_number.clone() }
    }
}

/// Tells that an order has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeliverOrder {
    /// The order.
    pub order_id: OrderId,
}

/// Registers a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegisterCustomer {
    /// Follows from the command's id where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<CustomerId>,
    /// How the shop calls them.
    pub name: String,
    /// Without it there is no payment by account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit_limit: Option<Money>,
}

/// Changes a credit limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetCreditLimit {
    /// The customer.
    pub customer_id: CustomerId,
    /// The new limit.
    pub credit_limit: Money,
}

/// Puts a product into the catalogue, or replaces its catalogue data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefineProduct {
    /// The product.
    pub product_id: ProductId,
    /// What it is called.
    pub name: String,
    /// Who makes it.
    pub brand: String,
    /// Where it stands in the catalogue.
    pub category: String,
    /// The price of a piece.
    pub price: Money,
    /// The stock that it starts with, if it is new; of no effect on a product that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_stock: Option<u32>,
}

/// Adds stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestockProduct {
    /// The product.
    pub product_id: ProductId,
    /// Pieces that came in.
    pub quantity: u32,
}

/// Takes a product out of sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetireProduct {
    /// The product.
    pub product_id: ProductId,
}

/// Any command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Command {
    /// `order.place`
    PlaceOrder(PlaceOrder),
    /// `order.cancel`
    CancelOrder(OrderStep),
    /// `order.ship`
    ShipOrder(ShipOrder),
    /// `order.deliver`
    DeliverOrder(DeliverOrder),
    /// `order.refund`
    RefundOrder(OrderStep),
    /// `customer.register`
    RegisterCustomer(RegisterCustomer),
    /// `customer.set-credit-limit`
    SetCreditLimit(SetCreditLimit),
    /// `product.define`
    DefineProduct(DefineProduct),
    /// `product.restock`
    RestockProduct(RestockProduct),
    /// `product.retire`
    RetireProduct(RetireProduct),
}

/// All kinds of commands: the ends of their subjects.
pub const KINDS: [&str; 10] = [
    "order.place",
    "order.cancel",
    "order.ship",
    "order.deliver",
    "order.refund",
    "customer.register",
    "customer.set-credit-limit",
    "product.define",
    "product.restock",
    "product.retire",
];

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Where: `lines[2].quantity`; `body` for the whole.
    pub field: String,
    /// For programs: `invalid`, `unknown_field`, `missing`, `out_of_range`, `duplicate`.
    pub code: String,
    /// For people.
    pub detail: String,
}

impl FieldError {
    /// An error of one field. Field and detail may quote what the client sent: they are cut, and
    /// control characters replaced (PostgreSQL's text, for one, cannot hold a NUL).
    pub fn new(field: impl AsRef<str>, code: &str, detail: impl AsRef<str>) -> Self {
        Self {
            field: printable(field.as_ref(), 100),
            code: code.to_owned(),
            detail: printable(detail.as_ref(), 300),
        }
    }
}

fn printable(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut printable: String = text.chars().take(most).map(plain).collect();
    if text.chars().nth(most).is_some() {
        printable.push('…');
    }
    printable
}

/// Everything that is wrong with a command; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.detail)).collect::<Vec<_>>().join("; "))]
pub struct Malformed(pub Vec<FieldError>);

impl From<FieldError> for Malformed {
    fn from(error: FieldError) -> Self {
        Self(vec![error])
    }
}

/// Reads a JSON object, bounded in size and depth.
pub fn read_object(bytes: &[u8]) -> Result<Map<String, Value>, Malformed> {
    let wrong = |detail: String| Malformed::from(FieldError::new("body", "invalid", detail));
    if bytes.len() > MAX_BYTES {
        return Err(wrong(format!("is larger than {MAX_BYTES} bytes")));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("must be a JSON object".to_owned())),
        Err(error) => Err(wrong(format!("is not valid JSON: {error}"))),
    }
}

impl Command {
    /// Reads a command from the fields of its body. `kind` is the end of the subject,
    /// `order.place` for one.
    pub fn read(kind: &str, body: Map<String, Value>) -> Result<Self, Malformed> {
        let command = match kind {
            "order.place" => Self::PlaceOrder(typed(body)?),
            "order.cancel" => Self::CancelOrder(typed(body)?),
            "order.ship" => Self::ShipOrder(typed(body)?),
            "order.deliver" => Self::DeliverOrder(typed(body)?),
            "order.refund" => Self::RefundOrder(typed(body)?),
            "customer.register" => Self::RegisterCustomer(typed(body)?),
            "customer.set-credit-limit" => Self::SetCreditLimit(typed(body)?),
            "product.define" => Self::DefineProduct(typed(body)?),
            "product.restock" => Self::RestockProduct(typed(body)?),
            "product.retire" => Self::RetireProduct(typed(body)?),
            _ => {
                let detail = format!("there is no command {kind:?}");
                return Err(FieldError::new("subject", "invalid", detail).into());
            }
        };
        let errors = command.check();
        if errors.is_empty() { Ok(command) } else { Err(Malformed(errors)) }
    }

    /// The end of the subject that the command is published on.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PlaceOrder(_) => "order.place",
            Self::CancelOrder(_) => "order.cancel",
            Self::ShipOrder(_) => "order.ship",
            Self::DeliverOrder(_) => "order.deliver",
            Self::RefundOrder(_) => "order.refund",
            Self::RegisterCustomer(_) => "customer.register",
            Self::SetCreditLimit(_) => "customer.set-credit-limit",
            Self::DefineProduct(_) => "product.define",
            Self::RestockProduct(_) => "product.restock",
            Self::RetireProduct(_) => "product.retire",
        }
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        match self {
            Self::PlaceOrder(order) => check_placement(order, &mut errors),
            Self::CancelOrder(step) | Self::RefundOrder(step) => {
                if let Some(reason) = &step.reason {
                    check_text("reason", reason, 500, &mut errors);
                }
            }
            Self::ShipOrder(ship) => {
                check_text("carrier", &ship.carrier, 100, &mut errors);
                check_text("trackingNumber", &ship.tracking_number, 100, &mut errors);
            }
            Self::RegisterCustomer(customer) => {
                check_text("name", &customer.name, 200, &mut errors);
                if let Some(limit) = customer.credit_limit {
                    check_money("creditLimit", limit, &mut errors);
                }
            }
            Self::SetCreditLimit(set) => check_money("creditLimit", set.credit_limit, &mut errors),
            Self::DefineProduct(product) => {
                check_text("name", &product.name, 200, &mut errors);
                check_text("brand", &product.brand, 100, &mut errors);
                check_text("category", &product.category, 100, &mut errors);
                check_money("price", product.price, &mut errors);
            }
            Self::RestockProduct(restock) => {
                check_quantity("quantity", restock.quantity, &mut errors);
            }
            Self::DeliverOrder(_) | Self::RetireProduct(_) => {}
        }
        errors
    }
}

fn typed<T: DeserializeOwned>(body: Map<String, Value>) -> Result<T, Malformed> {
    for (name, value) in &body {
        check_lists(name, value)?;
    }
    serde_path_to_error::deserialize(Value::Object(body)).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.into_inner().to_string());
        let named = |start: &str| inner.strip_prefix(start)?.split('`').next();
        // The path ends with the name of an unknown field; the name of one that is missing, or that
        // another field forbids, stands in the sentence only.
        let (code, name) = if inner.starts_with("unknown field `") {
            ("unknown_field", None)
        } else if let Some(name) = named("superfluous field `") {
            ("unknown_field", Some(name))
        } else if let Some(name) = named("missing field `") {
            ("missing", Some(name))
        } else {
            ("invalid", None)
        };
        let field = match (path.as_str(), name) {
            (".", Some(name)) => name.to_owned(),
            (_, Some(name)) => format!("{path}.{name}"),
            ("" | ".", None) => "body".to_owned(),
            (_, None) => path,
        };
        FieldError::new(field, code, inner).into()
    })
}

/// The only list in a command is `lines`, of objects. Serde would read a list as an object too, its
/// fields in their order.
fn check_lists(path: &str, value: &Value) -> Result<(), FieldError> {
    match value {
        Value::Array(lines) if path == "lines" => {
            for (index, line) in lines.iter().enumerate() {
                check_lists(&format!("lines[{index}]"), line)?;
            }
            Ok(())
        }
        Value::Array(_) => Err(FieldError::new(path, "invalid", "must not be a list")),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, value)| check_lists(&format!("{path}.{name}"), value)),
        _ => Ok(()),
    }
}

fn check_placement(order: &PlaceOrder, errors: &mut Vec<FieldError>) {
    if order.lines.is_empty() {
        errors.push(FieldError::new("lines", "out_of_range", "must have at least one line"));
    }
    if order.lines.len() > MAX_LINES {
        let detail = format!("must have at most {MAX_LINES} lines");
        errors.push(FieldError::new("lines", "out_of_range", detail));
        return;
    }
    let mut seen = HashSet::new();
    for (index, line) in order.lines.iter().enumerate() {
        check_quantity(&format!("lines[{index}].quantity"), line.quantity, errors);
        if let Some(price) = line.unit_price {
            check_money(&format!("lines[{index}].unitPrice"), price, errors);
        }
        if !seen.insert(&line.product_id) {
            let detail = "a product may stand in one line only: add the quantities up";
            errors.push(FieldError::new(format!("lines[{index}].productId"), "duplicate", detail));
        }
    }
    if let PaymentMethod::Card { token } = &order.payment
        && (token.is_empty() || token.len() > 200 || !token.bytes().all(|b| b.is_ascii_graphic()))
    {
        let detail = "must be 1 to 200 visible ASCII characters";
        errors.push(FieldError::new("payment.token", "invalid", detail));
    }
}

fn check_quantity(field: &str, quantity: u32, errors: &mut Vec<FieldError>) {
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        let detail = format!("must be from 1 to {MAX_QUANTITY}");
        errors.push(FieldError::new(field, "out_of_range", detail));
    }
}

fn check_money(field: &str, money: Money, errors: &mut Vec<FieldError>) {
    if !(0..=MAX_AMOUNT).contains(&money.amount) {
        let detail = format!("must be from 0 to {MAX_AMOUNT}");
        errors.push(FieldError::new(format!("{field}.amount"), "out_of_range", detail));
    }
}

fn check_text(field: &str, text: &str, most: usize, errors: &mut Vec<FieldError>) {
    if text.trim().is_empty() || text.chars().count() > most {
        let detail = format!("must be 1 to {most} characters, not only blanks");
        errors.push(FieldError::new(field, "out_of_range", detail));
    } else if text.chars().any(char::is_control) {
        errors.push(FieldError::new(field, "invalid", "must not have control characters"));
    }
}

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
    /// Of the canonical body: tells a repeated command from another one under the same id.
    pub fingerprint: Uuid,
    /// The command; a placement has its order id, a registration its customer id.
    pub command: Command,
}

impl Identified {
    /// Settles the ids of a command.
    pub fn new(mut command: Command, given: &Given, source: Source<'_>) -> Result<Self, Malformed> {
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
        let scope = format!("{kind} {}", command.scope());
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
        Ok(Self { command_id, key_id, fingerprint, command })
    }
}

impl Command {
    /// The order, customer or product that it is about; an id that is not settled yet is empty.
    pub fn target(&self) -> (Subject, String) {
        match self {
            Self::PlaceOrder(order) => (Subject::Order, text(order.order_id.as_ref())),
            Self::CancelOrder(step) | Self::RefundOrder(step) => {
                (Subject::Order, step.order_id.to_string())
            }
            Self::ShipOrder(ship) => (Subject::Order, ship.order_id.to_string()),
            Self::DeliverOrder(deliver) => (Subject::Order, deliver.order_id.to_string()),
            Self::RegisterCustomer(customer) => {
                (Subject::Customer, text(customer.customer_id.as_ref()))
            }
            Self::SetCreditLimit(set) => (Subject::Customer, set.customer_id.to_string()),
            Self::DefineProduct(product) => (Subject::Product, product.product_id.to_string()),
            Self::RestockProduct(product) => (Subject::Product, product.product_id.to_string()),
            Self::RetireProduct(product) => (Subject::Product, product.product_id.to_string()),
        }
    }

    /// What an idempotency key of this command is unique in, beside the command's kind.
    fn scope(&self) -> String {
        match self {
            Self::PlaceOrder(order) => order.customer_id.to_string(),
            other => other.target().1,
        }
    }
}

fn text(id: Option<&impl ToString>) -> String {
    id.map(ToString::to_string).unwrap_or_default()
}

/// A message of the COMMANDS stream, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// By this its outcome is asked for.
    pub command_id: CommandId,
    /// The id that follows from its place in the stream alone.
    pub fallback_id: CommandId,
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
                let command = take_ids(&mut body, header, &mut given)
                    .and_then(|()| Command::read(kind, body))
                    .and_then(|command| {
                        Identified::new(command, &given, Source::Stream(stream, sequence))
                    });
                (command, !KINDS.contains(&kind))
            }
        };
        let fallback_id = CommandId::from_sequence(stream, sequence);
        let (command_id, fingerprint) = match &command {
            Ok(command) => (command.command_id, command.fingerprint),
            Err(_) => (given.command_id.unwrap_or(fallback_id), ids::fingerprint(kind, payload)),
        };
        Self { command_id, fallback_id, fingerprint, command, garbage }
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
    if let Some(key) = take("idempotencyKey", KEY_HEADER)? {
        check_key(&key)?;
        given.key = Some(key);
    }
    Ok(())
}
