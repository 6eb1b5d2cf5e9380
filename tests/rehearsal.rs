//! A night in the life of a bucket, many in a row: its documents change all the time, and everything happens to it that
//! ever does, as the dice fall.
//!
//! This process is the cluster and the dark: it changes documents, cuts connections, moves vbuckets, takes them back
//! and takes nodes away, and kills the service. The [service](service) is this binary once more, with a data folder,
//! and follows, pauses, evicts, resumes here or elsewhere, and makes and drops an index, into a folder or a real S3
//! server, over stores that fail. Now and then, and at the end, every index holds what the cluster has. At the end no
//! thread, file, lock or object is left over, and the service's memory is within its bound.
//!
//! It takes a minute, and five in `.ci/run`; `DORMOUSE_REHEARSAL=60m` makes it an hour, `DORMOUSE_REHEARSAL_SEED` sets
//! where it begins. Each night has the next seed, and with it another store of shards and another kind of archive.

mod night;
mod service;

use std::time::{Duration, Instant};

use night::{Night, Tally};

const DEFAULT: Duration = Duration::from_secs(60);
/// Each store has its turn at least once.
const NIGHTS_MIN: u32 = 3;
const NIGHT_MAX: Duration = Duration::from_secs(120);

#[test]
fn a_night_in_the_life_of_a_bucket() {
    service::obey_if_ordered();
    let variable = |name: &str| std::env::var(name).ok();
    let total =
        variable("DORMOUSE_REHEARSAL").map_or(DEFAULT, |text| humantime::parse_duration(&text).unwrap());
    let first: u64 = variable("DORMOUSE_REHEARSAL_SEED").map_or(1, |text| text.parse().unwrap());
    let length = (total / NIGHTS_MIN).min(NIGHT_MAX);
    let (began, mut all) = (Instant::now(), Tally::default());
    for seed in first.. {
        let tally = Night::new(seed).live(length);
        println!("seed {seed}: {tally}");
        all.add(&tally);
        if began.elapsed() >= total && seed - first + 1 >= u64::from(NIGHTS_MIN) {
            break;
        }
    }
    println!("all nights, {:?}: {all}", began.elapsed());
}
