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
    let until = minutes(1);
    let mut cancel_once_applied = |_| {
        if bucket.status().indexes[0].changes == 1 {
            until.cancel().cancel();
        }
    };
    let ended = bucket.ingest(vec![input], &options(), &until, &mut cancel_once_applied).unwrap_err();
    assert!(matches!(ended, IntakeError::Stopped { kept: 1, .. }), "{ended}");
    assert_eq!(scan(&bucket), [1]);
    let limit = Instant::now() + SLACK;
    let mut named = 0;
    while named < 2 {
        let began = Instant::now();
        let CloseError::StillRunning { threads } =
            bucket.close(&Until::within(Duration::from_millis(200))).unwrap_err()
        else {
            panic!("it was closed")
        };
        assert!(began.elapsed() < SLACK, "it took {:?}", began.elapsed());
        // The first ones may have no time left to see the others end.
        if threads == ["dm-source"] {
            named += 1;
        }
        assert!(named > 0 || Instant::now() < limit, "{threads:?}");
    }
    drop(feed);
    bucket.close(&minutes(1)).unwrap();
    drop((bucket, data));
    facts.assert_again("after the close");
}
