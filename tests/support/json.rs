//! JSON values for properties, and their order computed without the code under test.

use std::cmp::Ordering;

use proptest::prelude::*;
use serde_json::{Map, Number, Value};

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    }
}

/// The order of two JSON values as the contract of `scan` gives it.
pub(crate) fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.chars().cmp(b.chars()),
        (Value::Array(a), Value::Array(b)) => compare_all(a, b),
        (Value::Object(a), Value::Object(b)) => compare_all(&flat(a), &flat(b)),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// The order of two lists: element by element, then the shorter first.
pub(crate) fn compare_all(a: &[Value], b: &[Value]) -> Ordering {
    let unequal = a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|order| order.is_ne());
    unequal.unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// The order of two key parts, of which a missing one is the lowest.
pub(crate) fn compare_parts(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => compare(a, b),
        _ => a.is_some().cmp(&b.is_some()),
    }
}

fn flat(members: &Map<String, Value>) -> Vec<Value> {
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.chars().cmp(b.chars()));
    sorted.into_iter().flat_map(|(name, value)| [Value::from(name.as_str()), value.clone()]).collect()
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => compare_exactly(a, b.as_f64().unwrap()),
        (None, Some(b)) => compare_exactly(b, a.as_f64().unwrap()).reverse(),
        (None, None) => a.as_f64().unwrap().partial_cmp(&b.as_f64().unwrap()).unwrap(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "casts to i128 saturate far beyond every integer of JSON"
)]
fn compare_exactly(integer: i128, double: f64) -> Ordering {
    let floor = double.floor();
    integer.cmp(&(floor as i128)).then(if double > floor { Ordering::Less } else { Ordering::Equal })
}

/// Numbers of all three kinds, many of them close to where doubles and integers part.
#[expect(clippy::cast_precision_loss, reason = "doubles next to integers are what is wanted")]
pub(crate) fn number() -> impl Strategy<Value = Number> {
    let edge = (0_u32..64, -3_i128..=3, any::<bool>()).prop_map(|(power, offset, negative)| {
        let magnitude = (1_i128 << power) + offset;
        if negative { -magnitude } else { magnitude }
    });
    prop_oneof![
        (-2_i64..3).prop_map(Number::from),
        any::<i64>().prop_map(Number::from),
        any::<u64>().prop_map(Number::from),
        edge.clone().prop_map(|n| {
            let signed = i64::try_from(n).map(Number::from);
            signed.or_else(|_| u64::try_from(n).map(Number::from)).unwrap_or_else(|_| Number::from(u64::MAX))
        }),
        edge.prop_map(|n| Number::from_f64(n as f64).unwrap()),
        (-8_i32..8).prop_map(|n| Number::from_f64(f64::from(n) / 4.0).unwrap()),
        any::<f64>().prop_map(|f| Number::from_f64(f).unwrap_or_else(|| Number::from_f64(-0.0).unwrap())),
    ]
}

/// Short texts of characters that are awkward for an encoding.
pub(crate) fn text() -> impl Strategy<Value = String> {
    let c = prop_oneof![
        Just('\u{0}'),
        Just('\u{1}'),
        Just('\u{2}'),
        Just('a'),
        Just('b'),
        Just('é'),
        Just('\u{ffff}'),
        Just('\u{10ffff}'),
        any::<char>(),
    ];
    proptest::collection::vec(c, 0..4).prop_map(|chars| chars.into_iter().collect())
}

/// Any JSON value, a few levels deep.
pub(crate) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number().prop_map(Value::Number),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(text(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
