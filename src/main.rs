//! The command line of `dormouse`.
fn main() {}
