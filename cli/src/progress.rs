//! Bars that show how far a long piece of work is.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts things.
pub fn things(length: usize, what: &'static str) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}")?;
    Ok(ProgressBar::new(u64::try_from(length)?).with_style(style).with_message(what))
}

/// A bar that counts the bytes of a file.
pub fn bytes(length: u64, what: &'static str) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )?;
    Ok(ProgressBar::new(length).with_style(style).with_message(what))
}
