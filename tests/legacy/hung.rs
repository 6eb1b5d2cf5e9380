//! What hangs is named, and waited for when it is asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse::bucket::{CloseError, DataDir, IntakeError};
use dormouse::shard::StoreKind;
use dormouse::thread::Until;
use tempfile::TempDir;

use crate::process::Facts;
use crate::service::{Journal, config, fed, make, minutes, options, scan};

/// What a close may take beyond its deadline on a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(10);

pub(crate) fn a_reader() {
    let (root, journal, facts) = (TempDir::new().unwrap(), Arc::<Journal>::default(), Facts::now());
    let data = DataDir::open_or_create(&root.path().join("data")).unwrap();
    let bucket = make(&data, "travel", StoreKind::Lsm, &config(&journal));
    let (feed, input) = fed();
    feed.send(b"{\"id\":\"a\",\"n\":1}\n".to_vec()).unwrap();
    // The library has its own time to end what it started; the reader takes longer.
    let soon = Until::within(Duration::from_millis(200));
    let ended = bucket.ingest(vec![input], &options(), &soon, &mut |_| {}).unwrap_err();
    assert!(matches!(ended, IntakeError::Stopped { kept: 1, .. }), "{ended}");
    assert_eq!(scan(&bucket), [1]);
    for _ in 0..2 {
        let began = Instant::now();
        let closed = bucket.close(&Until::within(Duration::from_millis(200))).unwrap_err();
        assert!(
            matches!(&closed, CloseError::StillRunning { threads } if threads == &["dm-source"]),
            "{closed}"
        );
        assert!(began.elapsed() < SLACK, "it took {:?}", began.elapsed());
    }
    drop(feed);
    bucket.close(&minutes(1)).unwrap();
    drop((bucket, data));
    facts.assert_again("after the close");
}
