//! The table of hazards is whole, and what it names exists.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../src/projector/hazards.rs");

/// The numbers of the specification's list.
fn numbers() -> impl Iterator<Item = u32> {
    (1..=25).chain(30..=44).chain(50..=64).chain(70..=75)
}

/// The cells of each row.
fn rows() -> Vec<Vec<&'static str>> {
    let rows = TABLE.lines().filter_map(|line| line.strip_prefix("//! | H"));
    rows.map(|row| row.trim_end_matches('|').split(" | ").map(str::trim).collect()).collect()
}

fn test_names() -> BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            for after in text.split("#[test]").skip(1) {
                let name = after.split_once("fn ").unwrap().1.split('(').next().unwrap();
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[test]
fn every_hazard_of_the_specification_has_one_row() {
    let found: Vec<u32> = rows().iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(found, numbers().collect::<Vec<_>>());
    assert!(rows().iter().all(|row| row.len() == 4), "a row has another number of cells");
}

#[test]
fn every_test_that_the_table_names_exists() {
    let names = test_names();
    for row in rows() {
        let name = row[3].trim_matches('`');
        assert!(names.contains(name), "H{} names {name}, which is no test", row[0]);
    }
}

/// Times are for callers' limits and for how often a line is logged: a loop that waits for a time has something
/// that ends by itself.
#[test]
fn nothing_in_the_data_path_wakes_up_by_itself() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/projector");
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code.filter(|line| !line.contains("until.timer()")) {
                for timed in
                    ["tick(", "after(", "at(Instant", "_timeout(", "_deadline(", "sleep(", ".timer()"]
                {
                    assert!(!line.contains(timed), "{} waits for a time: {line}", path.display());
                }
            }
        }
    }
}
