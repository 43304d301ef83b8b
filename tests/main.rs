//! End-to-end tests against the real servers. One private set of servers serves the whole run; each
//! test has a namespace of its own (streams, database, keys), so tests run side by side.

mod flow;
mod harness;
mod once;
mod rejections;
mod steps;
