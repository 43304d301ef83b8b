//! What every part of Millrace shares.
//!
//! The domain is pure ([`order`], [`customer`], [`product`], [`money`], [`command`]); around it
//! stand the messages ([`message`], [`topology`]), the one place that appends to the log
//! ([`log`]), the one loop that consumes it ([`consumer`]) and the one file that knows Redis
//! ([`views`]).

pub mod access;
pub mod asyncapi;
pub mod backlog;
pub mod command;
pub mod config;
pub mod consumer;
pub mod crash;
pub mod customer;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod health;
pub mod https;
pub mod ids;
pub mod import;
pub mod log;
pub mod message;
pub mod metrics;
pub mod money;
pub mod order;
pub mod parking;
pub mod past;
pub mod product;
pub mod quarantine;
pub mod reason;
pub mod service;
pub mod story;
pub mod table;
pub mod telemetry;
pub mod times;
pub mod topology;
pub mod trace;
pub mod views;

#[cfg(test)]
mod tests;
