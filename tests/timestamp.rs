//! Positions of vbuckets: the algebra of [`TsVbuuid`].

use std::collections::BTreeSet;

use dormouse::event::{Seqno, VbId, VbUuid};
use dormouse::timestamp::{Position, TsVbuuid};
use proptest::prelude::*;

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), 0..1000_u64, 0..1000_u64, 0..1000_u64).prop_map(|(vbuuid, start, before, after)| {
        Position {
            vbuuid: VbUuid(vbuuid),
            seqno: Seqno(start + before),
            snap_start: Seqno(start),
            snap_end: Seqno(start + before + after),
        }
    })
}

fn timestamp() -> impl Strategy<Value = TsVbuuid> {
    proptest::collection::btree_map((0..12_u16).prop_map(VbId), position(), 0..12)
        .prop_map(|positions| positions.into_iter().collect())
}

fn vbuckets() -> impl Strategy<Value = BTreeSet<VbId>> {
    proptest::collection::btree_set((0..12_u16).prop_map(VbId), 0..12)
}

fn united(older: &TsVbuuid, newer: &TsVbuuid) -> TsVbuuid {
    let mut both = older.clone();
    both.union(newer);
    both
}

fn keeps_the_invariant(ts: &TsVbuuid) -> bool {
    ts.iter().all(|(_, at)| at.snap_start <= at.seqno && at.seqno <= at.snap_end)
}

proptest! {
    #[test]
    fn the_newer_position_wins_a_union_and_none_is_lost(older in timestamp(), newer in timestamp()) {
        let both = united(&older, &newer);
        for vb in (0..12).map(VbId) {
            prop_assert_eq!(both.get(vb), newer.get(vb).or(older.get(vb)));
        }
        prop_assert!(both.len() >= older.len().max(newer.len()));
    }

    #[test]
    fn a_union_with_itself_or_with_nothing_changes_nothing(ts in timestamp()) {
        prop_assert_eq!(&united(&ts, &ts), &ts);
        prop_assert_eq!(&united(&ts, &TsVbuuid::default()), &ts);
        prop_assert_eq!(&united(&TsVbuuid::default(), &ts), &ts);
    }

    #[test]
    fn unions_may_be_taken_in_any_grouping(a in timestamp(), b in timestamp(), c in timestamp()) {
        prop_assert_eq!(united(&united(&a, &b), &c), united(&a, &united(&b, &c)));
    }

    #[test]
    fn no_vbuckets_select_nothing_and_filter_nothing_out(ts in timestamp()) {
        prop_assert!(ts.select(&BTreeSet::new()).is_empty());
        prop_assert_eq!(ts.filter(&BTreeSet::new()), ts);
    }

    #[test]
    fn select_and_filter_split_a_timestamp_in_two(ts in timestamp(), vbs in vbuckets()) {
        let (selected, rest) = (ts.select(&vbs), ts.filter(&vbs));
        prop_assert!(selected.iter().all(|(vb, _)| vbs.contains(&vb)));
        prop_assert!(rest.iter().all(|(vb, _)| !vbs.contains(&vb)));
        prop_assert_eq!(selected.len() + rest.len(), ts.len());
        prop_assert_eq!(united(&selected, &rest), ts);
    }

    #[test]
    fn a_rollback_lowers_its_vbucket_and_no_other(ts in timestamp(), vb in 0..12_u16, to in 0..3000_u64) {
        let (vb, to) = (VbId(vb), Seqno(to));
        let mut back = ts.clone();
        back.rollback(vb, to);
        prop_assert!(keeps_the_invariant(&back));
        prop_assert_eq!(back.len(), ts.len());
        for (other, before) in ts.iter() {
            let after = back.get(other).unwrap();
            prop_assert_eq!(after.vbuuid, before.vbuuid);
            if other == vb && before.seqno > to {
                prop_assert_eq!(after, Position::at(before.vbuuid, to));
            } else {
                prop_assert_eq!(after, before);
            }
        }
    }

    #[test]
    fn a_second_rollback_to_the_same_seqno_changes_nothing(ts in timestamp(), vb in 0..12_u16, to in 0..3000_u64) {
        let mut once = ts;
        once.rollback(VbId(vb), Seqno(to));
        let mut twice = once.clone();
        twice.rollback(VbId(vb), Seqno(to));
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn a_timestamp_is_read_back_as_it_was_written(ts in timestamp()) {
        let text = serde_json::to_string(&ts).unwrap();
        prop_assert_eq!(serde_json::from_str::<TsVbuuid>(&text).unwrap(), ts);
    }
}
