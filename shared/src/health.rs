//! Whether the workers of this process can work now, for `/readyz`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::metrics::{label, metrics};

static CONSUMING: Mutex<BTreeMap<&'static str, bool>> = Mutex::new(BTreeMap::new());

/// A worker can, or cannot, pull from its stream.
pub fn consuming(worker: &'static str, can: bool) {
    metrics().consuming.record(f64::from(u8::from(can)), &[label("worker", worker)]);
    CONSUMING.lock().unwrap_or_else(PoisonError::into_inner).insert(worker, can);
}

/// Each worker of this process that was started, and whether it can work now.
pub fn workers() -> BTreeMap<&'static str, bool> {
    CONSUMING.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
