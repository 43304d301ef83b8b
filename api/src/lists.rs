//! Lists of orders: what may be asked for, and how a page is answered.

use std::collections::BTreeSet;

use axum::response::Response;
use chrono::{DateTime, Utc};
use millrace_shared::command::FieldError;
use millrace_shared::order::OrderStatus;
use millrace_shared::views::{OrderFilter, OrderPage, Place};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::Problem;
use crate::reading::items;

/// Which orders of a list are asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrdersQuery {
    /// Those that are in one of these statuses now, separated by commas.
    #[param(
        value_type = Option<Vec<OrderStatus>>, style = Form, explode = false, min_items = 1,
        example = json!(["paid", "shipped"])
    )]
    status: Option<String>,
    /// Placed then or later.
    from: Option<DateTime<Utc>>,
    /// Placed before; later than `from`.
    to: Option<DateTime<Utc>>,
    /// The `nextCursor` of the page before.
    #[param(pattern = "^[0-9]{16}_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    cursor: Option<String>,
    /// The items of a page, at the most.
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<usize>,
}

impl OrdersQuery {
    /// The filter, checked.
    pub fn filter(&self) -> Result<OrderFilter, Problem> {
        let statuses = self.status.as_deref().map(statuses).transpose()?.unwrap_or_default();
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            let detail = "must be later than from; orders placed at to itself are not in the range";
            return Err(Problem::field(FieldError::new("to", "out_of_range", detail)));
        }
        Ok(OrderFilter { statuses, from: self.from, to: self.to })
    }

    /// The place that the page begins after.
    pub fn after(&self) -> Result<Option<Place>, Problem> {
        let invalid = || {
            let detail = "is not a nextCursor of this list";
            Problem::field(FieldError::new("cursor", "invalid", detail))
        };
        self.cursor.as_deref().map(|text| Place::parse(text).ok_or_else(invalid)).transpose()
    }
}

fn statuses(text: &str) -> Result<BTreeSet<OrderStatus>, Problem> {
    let status = |name: &str| {
        OrderStatus::ALL.into_iter().find(|status| status.as_str() == name).ok_or_else(|| {
            let known = OrderStatus::ALL.map(OrderStatus::as_str).join(", ");
            let detail = format!("{name:?} is none of {known}; several are separated by commas");
            Problem::field(FieldError::new("status", "invalid", detail))
        })
    };
    text.split(',').map(status).collect()
}

/// A page of orders as an answer.
pub fn orders_page(page: OrderPage) -> Response {
    items(&page.items, page.next.map(|place| place.to_string()), page.count)
}
