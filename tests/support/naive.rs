//! Indexes and documents for properties, and the keys that a document has, computed without the code under test.

use std::cmp::Ordering;

use dormouse::index::IndexDefinition;
use dormouse::index::collate::{encode_missing, encode_value};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::json::{compare, compare_parts, value};

/// The parts of a key; a missing one is `None`.
pub(crate) type Parts = Vec<Option<Value>>;

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Member(&'static str),
    Element(usize),
    Each,
}

type Path = Vec<Step>;

#[derive(Debug, Clone)]
pub(crate) enum Test {
    And(Vec<Test>),
    Or(Vec<Test>),
    Not(Box<Test>),
    Exists(Path),
    Compare(Path, &'static str, Value),
    Paths(Path, &'static str, Path),
    In(Path, Vec<Value>),
    Like(Path, &'static str),
}

/// What an index is made of.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    paths: Vec<Path>,
    filter: Option<Test>,
}

pub(crate) fn encoded(parts: &[Option<Value>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Some(value) => encode_value(value, &mut bytes).unwrap(),
            None => encode_missing(&mut bytes),
        }
    }
    bytes
}

fn path_text(path: &[Step]) -> String {
    let steps = path.iter().map(|step| match step {
        Step::Member(name) => format!(".`{name}`"),
        Step::Element(place) => format!("[{place}]"),
        Step::Each => "[]".to_owned(),
    });
    steps.collect::<String>()[1..].to_owned()
}

fn joined(all: &[Test], joint: &str) -> String {
    let all: Vec<String> = all.iter().map(|test| format!("({})", filter_text(test))).collect();
    all.join(joint)
}

fn filter_text(test: &Test) -> String {
    match test {
        Test::And(all) => joined(all, " and "),
        Test::Or(all) => joined(all, " or "),
        Test::Not(test) => format!("not ({})", filter_text(test)),
        Test::Exists(path) => format!("exists {}", path_text(path)),
        Test::Compare(path, sign, value) => format!("{} {sign} {value}", path_text(path)),
        Test::Paths(path, sign, other) => format!("{} {sign} {}", path_text(path), path_text(other)),
        Test::In(path, values) => format!("{} in {}", path_text(path), json!(values)),
        Test::Like(path, prefix) => format!("{} like \"{prefix}%\"", path_text(path)),
    }
}

/// All values of a path, by trying each way through the document; `None` where one ends early.
fn values(path: &[Step], value: &Value) -> Parts {
    let Some((step, rest)) = path.split_first() else { return vec![Some(value.clone())] };
    let next: Vec<&Value> = match (step, value) {
        (Step::Member(name), Value::Object(members)) => members.get(*name).into_iter().collect(),
        (Step::Element(place), Value::Array(elements)) => elements.get(*place).into_iter().collect(),
        (Step::Each, Value::Array(elements)) => elements.iter().collect(),
        _ => Vec::new(),
    };
    let values: Parts = next.into_iter().flat_map(|value| self::values(rest, value)).collect();
    if values.is_empty() { vec![None] } else { values }
}

fn is_one_type(a: &Value, b: &Value) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

fn said(a: Option<&Value>, sign: &str, b: Option<&Value>) -> Option<bool> {
    let (a, b) = (a?, b?);
    let order = compare(a, b);
    match sign {
        "=" => Some(order.is_eq()),
        "!=" => Some(order.is_ne()),
        _ if !is_one_type(a, b) => None,
        "<" => Some(order.is_lt()),
        "<=" => Some(order.is_le()),
        ">" => Some(order.is_gt()),
        _ => Some(order.is_ge()),
    }
}

/// What several say: yes if one does, no if all say no.
fn together(all: &[Option<bool>]) -> Option<bool> {
    if all.contains(&Some(true)) {
        return Some(true);
    }
    if all.contains(&None) { None } else { Some(false) }
}

fn holds(test: &Test, document: &Value) -> Option<bool> {
    let of_each = |path: &[Step], say: &dyn Fn(Option<&Value>) -> Option<bool>| {
        together(&values(path, document).iter().map(|value| say(value.as_ref())).collect::<Vec<_>>())
    };
    let all = |tests: &[Test]| tests.iter().map(|test| holds(test, document)).collect::<Vec<_>>();
    match test {
        Test::Or(tests) => together(&all(tests)),
        Test::And(tests) => {
            let opposites: Vec<_> = all(tests).into_iter().map(|said| said.map(|yes| !yes)).collect();
            together(&opposites).map(|yes| !yes)
        }
        Test::Not(test) => holds(test, document).map(|yes| !yes),
        Test::Exists(path) => Some(values(path, document).iter().any(Option::is_some)),
        Test::Compare(path, sign, wanted) => of_each(path, &|value| said(value, sign, Some(wanted))),
        Test::Paths(path, sign, other) => {
            let other = values(other, document).remove(0);
            of_each(path, &|value| said(value, sign, other.as_ref()))
        }
        Test::In(path, wanted) => {
            of_each(path, &|value| value.map(|value| wanted.iter().any(|one| compare(value, one).is_eq())))
        }
        Test::Like(path, prefix) => {
            of_each(path, &|value| value.map(|value| value.as_str().is_some_and(|s| s.starts_with(prefix))))
        }
    }
}

/// The order of keys.
pub(crate) fn compare_keys(a: &[Option<Value>], b: &[Option<Value>]) -> Ordering {
    let parts = a.iter().zip(b).map(|(a, b)| compare_parts(a.as_ref(), b.as_ref()));
    parts.fold(Ordering::Equal, Ordering::then)
}

impl Index {
    /// An index over these paths.
    pub(crate) fn of(paths: &[&[Step]]) -> Self {
        Self { paths: paths.iter().map(|path| path.to_vec()).collect(), filter: None }
    }

    /// An index over members of the document itself.
    pub(crate) fn over(members: &[&'static str]) -> Self {
        Self { paths: members.iter().map(|name| vec![Step::Member(name)]).collect(), filter: None }
    }

    /// The same over those documents alone of which `filter` is true.
    pub(crate) fn with_filter(self, filter: Test) -> Self {
        Self { filter: Some(filter), ..self }
    }

    pub(crate) fn definition(&self, name: &str) -> IndexDefinition {
        let paths: Vec<String> = self.paths.iter().map(|path| path_text(path)).collect();
        let definition = IndexDefinition::parse(&format!("{name}={}", paths.join(","))).unwrap();
        match &self.filter {
            Some(filter) => definition.with_filter(filter_text(filter).parse().unwrap()),
            None => definition,
        }
    }

    /// The keys of a document, in order.
    pub(crate) fn keys(&self, document: &Value) -> Vec<Parts> {
        if self.filter.as_ref().is_some_and(|filter| holds(filter, document) != Some(true)) {
            return Vec::new();
        }
        let mut keys: Vec<Parts> = vec![Vec::new()];
        for path in &self.paths {
            let values = values(path, document);
            keys = keys
                .iter()
                .flat_map(|key| {
                    values.iter().map(move |value| [&key[..], std::slice::from_ref(value)].concat())
                })
                .collect();
        }
        keys.retain(|key| key[0].is_some());
        keys.sort_by(|a, b| compare_keys(a, b));
        keys.dedup_by(|a, b| compare_keys(a, b).is_eq());
        keys
    }
}

fn plain_path() -> impl Strategy<Value = Path> {
    let member = || proptest::sample::select(&["a", "b", "c d"][..]).prop_map(Step::Member);
    let step = prop_oneof![2 => member(), 1 => (0_usize..3).prop_map(Step::Element)];
    (member(), proptest::collection::vec(step, 0..3)).prop_map(|(first, rest)| [vec![first], rest].concat())
}

fn array_path() -> impl Strategy<Value = Path> {
    (plain_path(), plain_path(), any::<bool>()).prop_map(|(before, after, has_after)| {
        [before, vec![Step::Each], if has_after { after } else { Vec::new() }].concat()
    })
}

/// Values that often meet.
pub(crate) fn small() -> impl Strategy<Value = Value> {
    let values = [
        json!(null),
        json!(true),
        json!(1),
        json!(1.0),
        json!(2.5),
        json!(""),
        json!("x"),
        json!("xy"),
        json!([]),
        json!([1]),
        json!([[1, null]]),
        json!({"a": 1}),
    ];
    proptest::sample::select(values.to_vec())
}

fn filter() -> impl Strategy<Value = Test> {
    let path = || prop_oneof![2 => plain_path(), 1 => array_path()];
    let sign = || proptest::sample::select(&["=", "!=", "<", "<=", ">", ">="][..]);
    let test = prop_oneof![
        path().prop_map(Test::Exists),
        (path(), sign(), small()).prop_map(|(path, sign, value)| Test::Compare(path, sign, value)),
        (path(), sign(), plain_path()).prop_map(|(path, sign, other)| Test::Paths(path, sign, other)),
        (path(), proptest::collection::vec(small(), 0..3)).prop_map(|(path, all)| Test::In(path, all)),
        (path(), proptest::sample::select(&["", "x", "xy"][..]))
            .prop_map(|(path, prefix)| Test::Like(path, prefix)),
    ];
    test.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|test| Test::Not(Box::new(test))),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Test::And),
            proptest::collection::vec(inner, 1..4).prop_map(Test::Or),
        ]
    })
}

/// An index that has one key, or none where its filter does not hold.
pub(crate) fn filtered() -> impl Strategy<Value = Index> {
    filter().prop_map(|filter| Index::over(&["a"]).with_filter(filter))
}

/// Any definition of a secondary index.
pub(crate) fn index() -> impl Strategy<Value = Index> {
    let plain = || proptest::collection::vec(plain_path(), 0..2);
    let paths = prop_oneof![
        proptest::collection::vec(plain_path(), 1..4),
        (plain(), array_path(), plain())
            .prop_map(|(before, array, after)| [before, vec![array], after].concat()),
    ];
    (paths, proptest::option::weighted(0.4, filter())).prop_map(|(paths, filter)| Index { paths, filter })
}

/// A document as the text of one line, with duplicate members and white space. Its value is what `serde_json` makes
/// of it.
pub(crate) fn document() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![3 => small(), 1 => value()].prop_map(|value| value.to_string());
    let inner = leaf.prop_recursive(4, 40, 4, |inner| {
        let member = (proptest::sample::select(&["a", "b", "c d", "e"][..]), inner.clone());
        let member = member.prop_map(|(name, value)| format!("\"{name}\" :{value}"));
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(|all| format!("[{}]", all.join(", "))),
            proptest::collection::vec(member, 0..4).prop_map(|all| format!("{{ {} }}", all.join(","))),
        ]
    });
    proptest::collection::vec(inner, 3)
        .prop_map(|all| format!("{{\"a\":{},\t\"b\":{},\"c d\":{}}}", all[0], all[1], all[2]))
}
