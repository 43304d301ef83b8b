//! Commands: what clients ask for, in one form for HTTP and for NATS.

#![expect(unused_qualifications, reason = "in what utoipa's macros write")]

mod fields;
mod identity;

pub use fields::check_text;
pub use identity::{Given, Identified, Received, Source, check_key};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type,
};
use utoipa::{PartialSchema, ToSchema};

use self::fields::{check_money, check_placement, check_quantity, typed};
use crate::ids::{CustomerId, OrderId, ProductId};
use crate::message::Subject;
use crate::money::Money;
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
/// The header that names the customer in whose name a command is given: an order of anybody else is
/// unknown to it. It only ever takes rights away, so whoever may publish may set it.
pub const ON_BEHALF_HEADER: &str = "Millrace-On-Behalf-Of";
/// The header that names who has signed in to give the command; kept with its decision.
pub const ACTOR_HEADER: &str = "Millrace-Actor";

/// Places an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlaceOrder {
    /// Follows from the idempotency key where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    /// Who orders.
    pub customer_id: CustomerId,
    /// What is ordered: one line a product.
    #[schema(min_items = 1, max_items = 200)]
    pub lines: Vec<RequestedLine>,
    /// How it is paid.
    pub payment: PaymentMethod,
}

/// A line of an order as the client sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestedLine {
    /// The product.
    pub product_id: ProductId,
    /// Pieces.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: u32,
    /// The price that the client has seen. It is never used as the price: if it differs from
    /// the catalogue's, the order is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Money>,
}

/// How an order is paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields, try_from = "PaymentFields")]
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

impl PartialSchema for PaymentMethod {
    /// Closed, as `PaymentFields` is: what is derived would allow further fields.
    fn schema() -> RefOr<Schema> {
        let of = |method: &str| {
            let name = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([method]));
            let closed = Some(AdditionalProperties::FreeForm(false));
            ObjectBuilder::new()
                .property("method", name)
                .required("method")
                .additional_properties(closed)
        };
        let token = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[!-~]{1,200}$"));
        let card = of("card").property("token", token).required("token");
        OneOfBuilder::new().item(card).item(of("account")).into()
    }
}

impl ToSchema for PaymentMethod {}

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrderStep {
    /// The order.
    pub order_id: OrderId,
    /// The client's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = one_line_or_null::<500>)]
    pub reason: Option<String>,
}

/// Tells that an order has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShipOrder {
    /// The order.
    pub order_id: OrderId,
    /// Who carries it.
    #[schema(schema_with = one_line::<100>)]
    pub carrier: String,
    /// The carrier's number.
    #[schema(schema_with = one_line::<100>)]
    pub tracking_number: String,
}

impl ShipOrder {
    /// The part that the order keeps.
    pub fn shipment(&self) -> Shipment {
        Shipment { carrier: self.carrier.clone(), tracking_number: self.tracking_number.clone() }
    }
}

/// Tells that an order has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeliverOrder {
    /// The order.
    pub order_id: OrderId,
}

/// Registers a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegisterCustomer {
    /// Follows from the command's id where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<CustomerId>,
    /// How the shop calls them.
    #[schema(schema_with = one_line::<200>)]
    pub name: String,
    /// Without it there is no payment by account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit_limit: Option<Money>,
}

/// Changes a credit limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetCreditLimit {
    /// The customer.
    pub customer_id: CustomerId,
    /// The new limit.
    pub credit_limit: Money,
}

/// Puts a product into the catalogue, or replaces its catalogue data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefineProduct {
    /// The product.
    pub product_id: ProductId,
    /// What it is called.
    #[schema(schema_with = one_line::<200>)]
    pub name: String,
    /// Who makes it.
    #[schema(schema_with = one_line::<100>)]
    pub brand: String,
    /// Where it stands in the catalogue.
    #[schema(schema_with = one_line::<100>)]
    pub category: String,
    /// The price of a piece.
    pub price: Money,
    /// The stock that it starts with, if it is new; of no effect on a product that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 4_294_967_295_u64)]
    pub initial_stock: Option<u32>,
}

/// Adds stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestockProduct {
    /// The product.
    pub product_id: ProductId,
    /// Pieces that came in.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: u32,
}

/// Takes a product out of sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// The schema of a text that [`check_text`] takes.
pub fn one_line<const MOST: usize>() -> ObjectBuilder {
    const CONTROLS: &str = r"\u0000-\u001f\u007f-\u009f";
    let pattern = format!(r"^[^{CONTROLS}]*[^\s{CONTROLS}][^{CONTROLS}]*$");
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
    text.min_length(Some(1)).max_length(Some(MOST))
}

fn one_line_or_null<const MOST: usize>() -> ObjectBuilder {
    one_line::<MOST>().schema_type(SchemaType::from_iter([Type::String, Type::Null]))
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

    /// What is wrong with the values of a command that has the right form.
    pub fn check(&self) -> Vec<FieldError> {
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

    /// What a customer may ask for: orders of its own, and to call orders off. Whose order is called
    /// off is seen by who decides, not here.
    fn check_customer(&self, customer: &CustomerId) -> Result<(), FieldError> {
        match self {
            Self::PlaceOrder(order) if order.customer_id == *customer => Ok(()),
            Self::PlaceOrder(_) => {
                let detail = format!("must be {customer}, in whose name the command is given");
                Err(FieldError::new("customerId", "invalid", detail))
            }
            Self::CancelOrder(_) => Ok(()),
            other => {
                let detail = format!("{} cannot be given in a customer's name", other.kind());
                Err(FieldError::new(ON_BEHALF_HEADER, "invalid", detail))
            }
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
