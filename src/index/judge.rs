//! What a filter says of a document that was read: it compares encoded values, whose byte order is that of the values.

use super::collate;
use super::evaluate::{KeyList, Part};
use super::filter::{Comparison, Expr, Literal, Operand};
use super::plan::Extract;

/// Whether a filter is true of the document that was read; `None` where it says nothing.
pub(super) fn holds(expr: &Expr<usize>, read: &Extract, out: &mut KeyList) -> Option<bool> {
    match expr {
        Expr::And(all) => settled(all.iter().map(|expr| holds(expr, read, out)), false),
        Expr::Or(all) => settled(all.iter().map(|expr| holds(expr, read, out)), true),
        Expr::Not(expr) => holds(expr, read, out).map(|holds| !holds),
        Expr::Exists(path) => Some(pieces(*path, read, out).any(|piece| !matches!(piece, Part::Missing))),
        Expr::Compare(path, how, Operand::Value(Literal { bytes, .. })) => {
            settled(pieces(*path, read, out).map(|piece| compare(piece, *how, Part::Whole(bytes))), true)
        }
        Expr::Compare(path, how, Operand::Path(other)) => {
            let other = read.piece(*other, 0);
            settled(pieces(*path, read, out).map(|piece| compare(piece, *how, other)), true)
        }
        Expr::In(path, literals) => settled(
            pieces(*path, read, out).map(|piece| match piece {
                // Not known to be in any list, an empty one neither.
                Part::Missing => None,
                Part::Whole(_) | Part::Cut(_) => settled(
                    literals
                        .iter()
                        .map(|Literal { bytes, .. }| compare(piece, Comparison::Equal, Part::Whole(bytes))),
                    true,
                ),
            }),
            true,
        ),
        Expr::Like(path, prefix) => settled(
            pieces(*path, read, out).map(|piece| match piece {
                Part::Missing => None,
                Part::Whole(bytes) | Part::Cut(bytes) => Some(bytes.starts_with(&prefix.bytes)),
            }),
            true,
        ),
    }
}

/// The values of a path, or the one that is missing.
fn pieces<'r>(path: usize, read: &'r Extract, out: &mut KeyList) -> impl Iterator<Item = Part<'r>> {
    let (count, too_many) = read.count(path);
    if too_many {
        out.leave_out();
    }
    (0..count.max(1)).map(move |element| read.piece(path, element))
}

/// What several say together, where one that says `settling` settles it, and none at all says the other.
fn settled(all: impl Iterator<Item = Option<bool>>, settling: bool) -> Option<bool> {
    let mut together = Some(!settling);
    for said in all {
        if said == Some(settling) {
            return said;
        }
        together = together.and(said);
    }
    together
}

fn compare(left: Part<'_>, how: Comparison, right: Part<'_>) -> Option<bool> {
    let (a, b) = match (left, right) {
        (Part::Missing, _) | (_, Part::Missing) => return None,
        // Beyond what is kept of two long values they may differ.
        (Part::Cut(a), Part::Cut(b)) if a == b => return None,
        (Part::Whole(a) | Part::Cut(a), Part::Whole(b) | Part::Cut(b)) => (a, b),
    };
    let order = a.cmp(b);
    let is_one_type = collate::type_of(a) == collate::type_of(b);
    match how {
        Comparison::Equal => Some(order.is_eq()),
        Comparison::Unequal => Some(order.is_ne()),
        _ if !is_one_type || a.is_empty() => None,
        Comparison::Less => Some(order.is_lt()),
        Comparison::AtMost => Some(order.is_le()),
        Comparison::Greater => Some(order.is_gt()),
        Comparison::AtLeast => Some(order.is_ge()),
    }
}
