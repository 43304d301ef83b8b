//! The product aggregate, pure: catalogue data and stock.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::ProductId;
use crate::money::Money;
use crate::reason::{Reason, Refusal};

/// Pieces of a product. Whatever was stocked is in one of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Stock {
    /// Free to be sold.
    pub available: i64,
    /// Held for orders that have not been shipped.
    pub reserved: i64,
    /// Shipped.
    pub sold: i64,
}

/// A product as it stands. This is the state that events carry and the document that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Product {
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
    /// Whether it is sold.
    pub active: bool,
    /// How many there are.
    pub stock: Stock,
    /// The version of the last event.
    pub version: u64,
}

/// What happened to a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum ProductEvent {
    /// The product is new, or its catalogue data were replaced; it is sold (again).
    #[serde(rename_all = "camelCase")]
    Defined {
        /// What it is called.
        name: String,
        /// Who makes it.
        brand: String,
        /// Where it stands in the catalogue.
        category: String,
        /// The price of a piece.
        price: Money,
        /// The stock that a new product starts with; 0 for one that is already there.
        initial_stock: u32,
    },
    /// Goods came in.
    Restocked {
        /// Pieces.
        quantity: u32,
    },
    /// The product is no longer sold.
    Retired {},
    /// Orders have reserved, released or shipped. Several changes may stand in one event.
    StockChanged {
        /// The stock after it.
        stock: Stock,
    },
}

impl ProductEvent {
    /// The type, as in JSON and in the last token of the subject.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Defined { .. } => "defined",
            Self::Restocked { .. } => "restocked",
            Self::Retired {} => "retired",
            Self::StockChanged { .. } => "stock-changed",
        }
    }
}

/// The most pieces of one product that are ever kept account of.
pub const MAX_STOCK: i64 = 1_000_000_000_000;

impl Product {
    /// The state after `event`, which becomes the next version; nothing, if the event cannot come
    /// first.
    pub fn apply(before: Option<&Self>, id: &ProductId, event: &ProductEvent) -> Option<Self> {
        if let ProductEvent::Defined { name, brand, category, price, initial_stock } = event {
            let stock = before.map_or(
                Stock { available: i64::from(*initial_stock), ..Stock::default() },
                |before| before.stock,
            );
            return Some(Self {
                product_id: id.clone(),
                name: name.clone(),
                brand: brand.clone(),
                category: category.clone(),
                price: *price,
                active: true,
                stock,
                version: before.map_or(0, |before| before.version) + 1,
            });
        }
        let mut after = before?.clone();
        match event {
            ProductEvent::Restocked { quantity } => after.stock.available += i64::from(*quantity),
            ProductEvent::Retired {} => after.active = false,
            ProductEvent::StockChanged { stock } => after.stock = *stock,
            ProductEvent::Defined { .. } => {}
        }
        after.version += 1;
        Some(after)
    }

    /// Decides a restock: refused only where the count would grow beyond [`MAX_STOCK`].
    pub fn restock(&self, quantity: u32) -> Result<ProductEvent, Refusal> {
        let Stock { available, reserved, sold } = self.stock;
        if available + reserved + sold + i64::from(quantity) > MAX_STOCK {
            return Err(Refusal::new(
                Reason::AmountTooLarge,
                format!("no more than {MAX_STOCK} pieces of a product are kept account of"),
            ));
        }
        Ok(ProductEvent::Restocked { quantity })
    }

    /// Holds pieces for an order that has been validated.
    pub fn reserve(&mut self, quantity: u32) {
        self.stock.available -= i64::from(quantity);
        self.stock.reserved += i64::from(quantity);
    }
}
