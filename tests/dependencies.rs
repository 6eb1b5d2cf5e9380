//! Advisories of dependencies are ignored knowingly: `deny.toml` says why, of which crate, and is still right.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The crates of `Cargo.lock`, as `name version`.
fn locked() -> BTreeSet<String> {
    let lock = read("Cargo.lock");
    let packages = lock.split("[[package]]").skip(1);
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_matches([' ', '=', '"']).to_owned()
    };
    packages.map(|package| format!("{} {}", value(package, "name"), value(package, "version"))).collect()
}

/// The advisories that are ignored, each with its reason.
fn ignored() -> Vec<(String, String)> {
    let deny = read("deny.toml");
    let quoted = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key} = \""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let entries = deny.lines().filter(|line| line.trim_start().starts_with("{ id = "));
    entries.map(|line| (quoted(line, "id").unwrap(), quoted(line, "reason").unwrap_or_default())).collect()
}

#[test]
fn each_ignored_advisory_names_a_crate_that_is_still_there_and_a_reason() {
    let locked = locked();
    let ignored = ignored();
    assert!(!ignored.is_empty());
    for (id, reason) in ignored {
        assert!(id.starts_with("RUSTSEC-"), "{id}");
        let (named, why) = reason.split_once(": ").unwrap_or_else(|| panic!("{id} names no crate"));
        assert!(locked.contains(named), "{id} is about {named}, which is not in Cargo.lock any more");
        assert!(why.split_whitespace().count() >= 8, "{id}: {why:?} is no reason");
    }
}

#[test]
fn each_crate_that_is_known_to_have_an_advisory_is_named() {
    let reasons: Vec<String> = ignored().into_iter().map(|(_, reason)| reason).collect();
    for old in ["h2 0.3.", "ring 0.16.", "rusoto_core 0.48.", "rustls 0.20.", "rustls-pemfile 1.0."] {
        let is_there = locked().iter().any(|name| name.starts_with(old));
        let is_named = reasons.iter().any(|reason| reason.starts_with(old));
        assert_eq!(is_there, is_named, "{old} in Cargo.lock and in deny.toml");
    }
}

/// `rusoto_core` builds with exactly one kind of TLS: a host that uses it with the other one has to be able to say so.
#[test]
fn the_tls_of_rusoto_is_left_to_the_host() {
    let manifest = read("Cargo.toml");
    for name in ["rusoto_core", "rusoto_s3"] {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{name} ="))).unwrap();
        assert!(line.contains("default-features = false") && !line.contains("features = ["), "{line}");
        for kind in ["rustls", "native-tls"] {
            let feature =
                manifest.lines().find(|line| line.starts_with(&format!("rusoto-{kind} ="))).unwrap();
            assert!(feature.contains(&format!("\"{name}/{kind}\"")), "{feature}");
        }
    }
}
