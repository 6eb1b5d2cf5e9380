//! Events, their budget, and the vbuckets of documents.

use dormouse::event::{ByteBudget, DcpEvent, EventBatch, EventKind, Seqno, Span, VbId};
use dormouse::thread::{fin, spawn};
use proptest::prelude::*;

use crate::support::{eventually, watchdog};

/// CRC-32 as IEEE 802.3 has it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}

#[test]
fn documents_lie_in_the_vbuckets_where_couchbase_clients_look_for_them() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the check value of CRC-32");
    assert_eq!(VbId::of_key(b"foo", 1024), VbId(115));
    assert_eq!(VbId::of_key(b"hello", 1024), VbId(528));
    assert_eq!(VbId::of_key(b"123456789", 1024), VbId(0x4bf4 % 1024));
}

proptest! {
    #[test]
    fn a_vbucket_is_fifteen_bits_of_the_key_s_checksum(key: Vec<u8>, vbuckets in 1_u16..=1 << 15) {
        let expected = (crc32(&key) >> 16 & 0x7fff) % u32::from(vbuckets);
        prop_assert_eq!(u32::from(VbId::of_key(&key, vbuckets).0), expected);
    }
}

#[test]
fn a_span_outside_of_its_buffer_is_empty() {
    assert_eq!(Span::new(1, 2).of(b"abcd"), b"bc");
    assert_eq!(Span::new(3, 2).of(b"abcd"), b"");
    assert_eq!(Span::new(usize::MAX, 1).of(b"abcd"), b"");
}

#[test]
fn a_batch_weighs_the_memory_that_it_holds() {
    let event = DcpEvent { vb: VbId(0), seqno: Seqno(1), kind: EventKind::Deletion { key: Span::default() } };
    let mut batch = EventBatch { buffer: Vec::with_capacity(1 << 20), ..EventBatch::default() };
    batch.events.push(event);
    assert!(batch.weight_bytes() > 1 << 20);
}

#[test]
fn a_charge_beyond_the_budget_waits_until_enough_was_given_back() {
    let (budget, (_holder, never)) = (ByteBudget::new(10), fin());
    let first = budget.charge(6, &never).unwrap();
    let second = budget.charge(4, &never).unwrap();
    assert_eq!(budget.used_bytes(), 10);
    let waiting = {
        let (budget, never) = (budget.clone(), never.clone());
        spawn("t-charge", move || budget.charge(5, &never)).unwrap()
    };
    drop(second);
    assert_eq!(budget.used_bytes(), 6, "four bytes are not room enough");
    drop(first);
    let third = waiting.join(&watchdog()).unwrap().unwrap();
    assert_eq!(budget.used_bytes(), 5);
    drop(third);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn more_than_the_budget_is_granted_alone() {
    let (budget, (_holder, never)) = (ByteBudget::new(10), fin());
    let oversize = budget.charge(1000, &never).unwrap();
    assert_eq!(budget.used_bytes(), 1000);
    let waiting = {
        let (budget, never) = (budget.clone(), never.clone());
        spawn("t-charge", move || budget.charge(1, &never).map(|charge| (budget.used_bytes(), charge)))
            .unwrap()
    };
    drop(oversize);
    assert_eq!(waiting.join(&watchdog()).unwrap().unwrap().0, 1);
}

#[test]
fn a_wait_for_the_budget_ends_with_its_signal_and_charges_nothing() {
    let (budget, (holder, stop)) = (ByteBudget::new(10), fin());
    let held = budget.charge(10, &stop).unwrap();
    let waiting = {
        let budget = budget.clone();
        spawn("t-charge", move || budget.charge(1, &stop).is_none()).unwrap()
    };
    drop(holder);
    assert!(waiting.join(&watchdog()).unwrap());
    drop(held);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn everyone_who_waits_for_the_budget_gets_a_turn() {
    let (budget, (_holder, never)) = (ByteBudget::new(4), fin());
    let held = budget.charge(4, &never).unwrap();
    let waiting: Vec<_> = (1..=3)
        .map(|bytes| {
            let (budget, never) = (budget.clone(), never.clone());
            spawn(format!("t-charge-{bytes}"), move || drop(budget.charge(bytes, &never))).unwrap()
        })
        .collect();
    drop(held);
    for thread in waiting {
        thread.join(&watchdog()).unwrap();
    }
    eventually("all bytes are back", || budget.used_bytes() == 0);
}

/// Whether the thread of this process with that name sleeps.
fn is_asleep(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.contains(&format!("({name}) S ")))
}

#[test]
fn one_who_fits_goes_on_though_another_one_who_waits_longer_does_not() {
    let (budget, (_holder, never)) = (ByteBudget::new(10), fin());
    let waiting = |name: &'static str, bytes| {
        let (budget, never) = (budget.clone(), never.clone());
        let waiting = spawn(name, move || budget.charge(bytes, &never).is_some()).unwrap();
        eventually("it waits", || is_asleep(name));
        waiting
    };
    let (first, second) = (budget.charge(5, &never).unwrap(), budget.charge(5, &never).unwrap());
    let (whole, half) = (waiting("t-whole", 10), waiting("t-half", 5));
    drop(first);
    assert!(half.join(&watchdog()).unwrap());
    drop(second);
    assert!(whole.join(&watchdog()).unwrap());
}
