//! End-to-end tests against the real servers. One private set of servers serves the whole run; each
//! test has a namespace of its own (streams, database, keys), so tests run side by side.

#![allow(clippy::expect_used, reason = "what a test expects and does not find is its failure")]

mod access;
mod apart;
mod auth;
mod bad_input;
mod bench;
mod chaos;
mod clients;
mod cluster;
mod command_line;
mod contract;
mod crash;
mod expiry;
mod flow;
mod harness;
mod import;
mod lists;
mod live;
mod once;
mod origins;
mod overload;
mod own_writes;
mod parked;
mod parking;
mod past;
mod payments;
mod pipeline;
mod process;
mod proxy;
mod queries;
mod rebuild;
mod rejections;
mod replay;
mod replicas;
mod reports;
mod sealed;
mod search;
mod steps;
mod trim;
mod up;
mod verify;
mod watch;
mod web;
