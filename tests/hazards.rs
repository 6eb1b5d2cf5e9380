//! The tables of hazards are whole, and what they name exists.

use std::collections::BTreeSet;

/// A specification's list of hazards, and the table that answers it.
struct Table {
    text: &'static str,
    numbers: Vec<u32>,
}

fn tables() -> [Table; 3] {
    [
        Table {
            text: include_str!("../src/projector/hazards.rs"),
            numbers: (1..=25).chain(30..=44).chain(50..=64).chain(70..=75).collect(),
        },
        Table { text: include_str!("../src/pause/hazards.rs"), numbers: (1..=39).collect() },
        Table { text: include_str!("../src/objstore/hazards.rs"), numbers: (1..=62).collect() },
    ]
}

impl Table {
    /// The cells of each row.
    fn rows(&self) -> Vec<Vec<&'static str>> {
        let rows = self.text.lines().filter_map(|line| line.strip_prefix("//! | H"));
        rows.map(|row| row.trim_end_matches('|').split(" | ").map(str::trim).collect()).collect()
    }
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
            for list in ["for_each_store", "contract", "succeeds"] {
                for after in text.split(&format!("\n{list}! {{")).skip(1) {
                    let list = after.split('}').next().unwrap();
                    let tests = list.split(',').filter_map(|test| test.split(':').next());
                    names.extend(tests.map(|name| name.trim().to_owned()));
                }
            }
        }
    }
    names
}

#[test]
fn every_hazard_of_the_specification_has_one_row() {
    for table in tables() {
        let found: Vec<u32> = table.rows().iter().map(|row| row[0].parse().unwrap()).collect();
        assert_eq!(found, table.numbers);
        assert!(table.rows().iter().all(|row| row.len() == 4), "a row has another number of cells");
    }
}

#[test]
fn every_test_that_the_tables_name_exists() {
    let names = test_names();
    for row in tables().iter().flat_map(Table::rows) {
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
