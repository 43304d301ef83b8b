//! Puts the commit that is built into `millrace --version`, where there is one.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=MILLRACE_COMMIT");
    // The branch that is checked out, and what it points to.
    for file in ["HEAD", "logs/HEAD"] {
        let path = format!("../.git/{file}");
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    // Given by who builds without a repository, as the Dockerfile does.
    let given = std::env::var("MILLRACE_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| {
        let asked = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        let commit = String::from_utf8(asked.stdout).ok()?.trim().to_owned();
        (asked.status.success() && !commit.is_empty()).then_some(commit)
    });
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    if let Some(commit) = commit {
        println!("cargo::rustc-env=MILLRACE_COMMIT={commit}");
        println!("cargo::rustc-env=MILLRACE_VERSION={version} ({commit})");
    } else {
        println!("cargo::rustc-env=MILLRACE_VERSION={version}");
    }
}
