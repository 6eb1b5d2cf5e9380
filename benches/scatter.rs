//! Benches of the scatter path.
fn main() {}
