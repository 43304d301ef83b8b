//! A migration that is added has to come into the program: without this only one that changes does.

fn main() {
    println!("cargo::rerun-if-changed=../migrations");
}
