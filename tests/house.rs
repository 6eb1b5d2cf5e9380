//! The house keeps its own rules: imports run one way, files stay short, and the map in `src/lib.rs` is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// For each room, the rooms that it may look into. A room that is missing here is an error.
const MAY_LOOK_INTO: &[(&str, &[&str])] = &[
    ("main", &["cli", "thread"]),
    (
        "cli",
        &[
            "bucket",
            "durable",
            "event",
            "index",
            "objstore",
            "pause",
            "projector",
            "shard",
            "source",
            "thread",
            "timestamp",
        ],
    ),
    (
        "bucket",
        &[
            "durable",
            "event",
            "index",
            "objstore",
            "pause",
            "projector",
            "shard",
            "source",
            "text",
            "thread",
            "timestamp",
        ],
    ),
    ("pause", &["durable", "event", "objstore", "shard", "text", "thread", "timestamp"]),
    ("projector", &["durable", "event", "index", "shard", "thread", "timestamp"]),
    ("source", &["durable", "event", "index", "thread", "timestamp"]),
    ("index", &["durable", "event", "shard", "text", "thread", "timestamp"]),
    ("shard", &["durable", "event", "text", "thread", "timestamp"]),
    ("objstore", &["durable", "text", "thread"]),
    ("timestamp", &["event"]),
    ("event", &["text", "thread"]),
    ("durable", &["thread"]),
    ("thread", &[]),
    ("text", &[]),
];

const FILE_LINES_MAX: usize = 600;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file below `src`, by its path from there.
fn sources() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![src()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(src()).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    files
}

/// The room of a file: its first folder, or its own name.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The text without comment lines.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The words that follow `prefix` in `text`, where `prefix` does not continue another word. A group in braces
/// gives each of its first words.
fn words_after(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(is_word) {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            words.extend(group_heads(group));
        } else {
            words.insert(rest.chars().take_while(|c| is_word(*c)).collect());
        }
    }
    words
}

/// The first word of each member of a group whose opening brace was read.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut head) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(std::mem::take(&mut head)),
            _ if depth == 0 => head.push(c),
            _ => {}
        }
    }
    heads.push(head);
    let first = |head: String| head.trim().split(':').next().unwrap_or_default().to_owned();
    heads.into_iter().map(first).filter(|head| !head.is_empty()).collect()
}

#[test]
fn imports_run_one_way() {
    let allowed: BTreeMap<_, _> = MAY_LOOK_INTO.iter().copied().collect();
    let mut violations = Vec::new();
    for (file, text) in sources().iter().filter(|(file, _)| *file != "lib.rs") {
        let (room, code) = (room(file), code(text));
        let Some(may) = allowed.get(room) else {
            violations.push(format!("{file}: the room {room} is not in the table"));
            continue;
        };
        let rooms = words_after(&code, "crate::").into_iter().chain(words_after(&code, "dormouse::"));
        for other in rooms.filter(|other| allowed.contains_key(other.as_str())) {
            if other.as_str() != room && !may.contains(&other.as_str()) {
                violations.push(format!("{file} looks into {other}"));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn no_path_leaves_its_room_through_super() {
    for (file, text) in sources() {
        // How many times `super` stays within the room: `room/mod.rs` and `room.rs` never, `room/part.rs` once.
        let depth = file.matches('/').count() - usize::from(file.ends_with("/mod.rs"));
        let leaving = "super::".repeat(depth + 1);
        assert!(!code(&text).contains(&leaving), "{file} leaves its room by {leaving}");
    }
}

#[test]
fn the_table_of_imports_has_no_circle() {
    let mut left: BTreeMap<_, _> = MAY_LOOK_INTO.iter().copied().collect();
    while let Some(room) =
        left.keys().copied().find(|room| left[room].iter().all(|to| !left.contains_key(to)))
    {
        left.remove(room);
    }
    assert!(left.is_empty(), "these rooms look into each other: {:?}", left.keys());
}

#[test]
fn no_file_is_too_long() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= FILE_LINES_MAX,
            "{file} has {lines} lines; more than {FILE_LINES_MAX} want splitting"
        );
    }
}

#[test]
fn no_message_has_a_gap_where_its_line_was_broken() {
    for (file, text) in sources() {
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            assert!(!line.contains("   "), "{file} has a run of blanks: {line}");
        }
    }
}

/// The names in the first column of the table that follows `heading` in the crate's documentation.
fn table_in_lib(heading: &str) -> BTreeSet<String> {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let section = lib.split(heading).nth(1).unwrap();
    let rows = section.lines().skip_while(|line| !line.contains('|')).take_while(|line| line.contains('|'));
    let first_cells = rows.filter_map(|row| row.split('|').nth(1));
    first_cells.filter_map(|cell| Some(cell.split('`').nth(1)?.to_owned())).collect()
}

#[test]
fn every_room_is_on_the_map() {
    let map = table_in_lib("# Rooms");
    for file in sources().keys() {
        let room = room(file);
        assert!(map.contains(room) || ["lib", "main"].contains(&room), "{room} is not in the table of rooms");
    }
}

/// The string literal at the start of `text`, perhaps within `format!`, with `N` for what is put in.
fn thread_name(text: &str) -> Option<String> {
    let text = text.trim_start();
    let literal = text.strip_prefix("format!(").unwrap_or(text).strip_prefix('"')?.split('"').next()?;
    let mut parts = literal.split('{');
    let mut name = parts.next()?.to_owned();
    for (part, stands_for) in parts.zip(['N', 'W']) {
        name.push(stands_for);
        name.push_str(part.split('}').nth(1)?);
    }
    Some(name)
}

#[test]
fn every_thread_is_in_the_table_of_threads() {
    let table = table_in_lib("# Threads");
    let mut spawned = BTreeSet::new();
    for (file, text) in sources() {
        let code = code(&text);
        let calls = code.match_indices("thread::spawn(").chain(code.match_indices("roster.spawn("));
        for (at, call) in calls {
            let argument = &code[at + call.len()..];
            let variable = argument.split(',').next().unwrap().trim();
            let variable = variable.trim_end_matches(".clone()");
            let binding = format!("let {variable} = ");
            let constant = format!("const {variable}: &str = ");
            let name = thread_name(argument)
                .or_else(|| thread_name(code.split(&binding).nth(1)?))
                .or_else(|| thread_name(code.split(&constant).nth(1)?))
                .unwrap_or_else(|| panic!("{file}: the name of the thread `{variable}` cannot be read"));
            assert!(table.contains(&name), "{file} starts {name}, which is not in the table of threads");
            spawned.insert(name);
        }
        for (at, call) in code.match_indices("thread::with_threads(") {
            let name = thread_name(&code[at + call.len()..]).unwrap() + "-N";
            assert!(table.contains(&name), "{file} starts {name}, which is not in the table of threads");
            spawned.insert(name);
        }
    }
    assert!(spawned.len() >= 7, "threads were missed: only {spawned:?} were found");
}

/// What asks the system, or the process, for something that no call handed in: where it may, and for what. Nothing else
/// may, but the command line.
const ASKS: &[(&str, &[(&str, &str)])] = &[
    ("std::env", &[]),
    ("env::var", &[]),
    ("current_dir", &[]),
    ("home_dir", &[]),
    ("temp_dir", &[]),
    ("tempfile()", &[]),
    ("tempdir()", &[]),
    ("NamedTempFile::new", &[]),
    ("\"/proc", &[]),
    ("\"/sys", &[]),
    ("\"/etc", &[]),
    ("\"/dev", &[]),
    ("static ", &[]),
    ("thread_local!", &[]),
    ("OnceLock", &[]),
    ("LazyLock", &[]),
    ("println!", &[]),
    ("print!", &[]),
    ("stdout()", &[]),
    ("stderr()", &[]),
    ("set_hook", &[]),
    ("signal_hook", &[]),
    ("process::exit", &[]),
    ("process::abort", &[]),
    ("process::id", &[("thread/process.rs", "tells a process from its forks")]),
    (
        "Command::new",
        &[("objstore/s3/credentials/profile.rs", "a profile that the host chose names the program")],
    ),
    (
        "SystemTime::now",
        &[
            ("bucket/folder.rs", "since when the folder is held, for whoever is refused"),
            ("bucket/carriage.rs", "how long an object has been condemned"),
            ("bucket/pausing.rs", "when a pause was made, in its manifest"),
            ("shard/gate.rs", "the age of the newest recovery point"),
            ("shard/recovery.rs", "when a recovery point was made"),
            ("objstore/s3/answer.rs", "how long a server asks to wait"),
            ("objstore/s3/credentials/mod.rs", "when credentials expire"),
            ("objstore/s3/dispatch.rs", "the time in a signature"),
        ],
    ),
    (
        "getrandom::",
        &[
            ("bucket/meta.rs", "identities of a bucket and of its branches"),
            ("bucket/following/backoff.rs", "tries are spread"),
            ("objstore/layer/retry.rs", "tries are spread"),
            ("pause/id.rs", "a pause has an id that no other has"),
            ("source/dcp/config.rs", "a connection has a name that no other has"),
        ],
    ),
    (
        "to_socket_addrs",
        &[
            ("objstore/s3/names.rs", "the address of a server that the host named"),
            ("source/dcp/cluster.rs", "the address of a node that the host named"),
        ],
    ),
    ("available_parallelism", &[("shard/memdb/load.rs", "how many threads are worth starting")]),
];

#[test]
fn nothing_is_asked_for_that_the_host_did_not_hand_in() {
    let sources = sources();
    let mut unused: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (asks, allowed) in ASKS {
        unused.extend(allowed.iter().map(|(file, _)| (*asks, *file)));
    }
    let mut violations = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| !["cli", "main"].contains(&room(file))) {
        let code = code(text);
        for (asks, allowed) in ASKS {
            // A lifetime is no global.
            let occurs = code.match_indices(asks).any(|(at, _)| !code[..at].ends_with('\''));
            if occurs && allowed.iter().all(|(place, _)| place != file) {
                violations.push(format!("{file}: {asks}"));
            } else if occurs {
                unused.remove(&(*asks, file.as_str()));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(unused.is_empty(), "these may ask and do not: {unused:?}");
}
