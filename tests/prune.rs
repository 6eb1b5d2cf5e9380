//! Pruning an archive: what a pause names stays, what none names goes, and never at once.

use std::time::{Duration, SystemTime};

use dormouse::objstore::{FileStore, ObjectStore};
use dormouse::pause::{
    GRACE_DEFAULT, ImageFile, Manifest, PauseId, PruneError, PruneOptions, PruneReport, list_pauses, prune,
    verify,
};
use tempfile::TempDir;

use crate::support::stores::memory::MemoryStore;
use crate::support::{BUCKET, FailingStore, Fails, archive, forever, image, part, tree, watchdog};

struct Scene {
    folder: TempDir,
    store: FileStore,
    now: SystemTime,
}

fn pause_id(generation: u32) -> PauseId {
    format!("{generation:010}-00000000000000aa").parse().unwrap()
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(&folder.path().join("archive")).unwrap();
        Self { folder, store, now: SystemTime::now() }
    }

    /// A pause of one file that all pauses have and one that it has alone.
    fn pause(&self, generation: u32, parent: Option<&Manifest>) -> Manifest {
        let own = format!("content of {generation} alone");
        let files: Vec<ImageFile> = vec![
            image(self.folder.path(), 0, "shared", b"what they share"),
            image(self.folder.path(), 1, &format!("own-{generation}"), own.as_bytes()),
        ];
        archive(&self.store, pause_id(generation), &files, parent, &forever()).unwrap()
    }

    fn options(&self, keep: Option<usize>, later: Duration) -> PruneOptions {
        PruneOptions { keep, grace: GRACE_DEFAULT, now: self.now + later, dry_run: false }
    }

    fn prune(&self, keep: Option<usize>, later: Duration) -> PruneReport {
        prune(&self.store, &part(BUCKET), &self.options(keep, later), &watchdog()).unwrap()
    }

    fn files(&self) -> Vec<String> {
        tree(&self.folder.path().join("archive")).into_keys().collect()
    }

    fn objects(&self) -> usize {
        self.files().iter().filter(|name| name.contains("/objects/")).count()
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const NOW: Duration = Duration::ZERO;

#[test]
fn what_a_pause_names_is_never_pruned() {
    let scene = Scene::new();
    let first = scene.pause(1, None);
    scene.pause(2, Some(&first));
    let before = scene.files();
    for later in [NOW, HOUR * 25, HOUR * 1000] {
        assert_eq!(scene.prune(None, later), PruneReport::default());
    }
    assert_eq!(scene.files(), before);
}

#[test]
fn what_only_removed_pauses_named_is_deleted_after_the_grace_time_and_not_before() {
    let scene = Scene::new();
    let first = scene.pause(1, None);
    let second = scene.pause(2, Some(&first));
    let report = scene.prune(Some(1), NOW);
    assert_eq!(report.removed_pauses, [pause_id(1)]);
    assert_eq!((report.condemned_objects, report.deleted_objects), (1, 0));
    assert_eq!(scene.objects(), 3);
    assert_eq!(scene.prune(Some(1), HOUR * 23), PruneReport::default(), "it is condemned already");
    let report = scene.prune(Some(1), HOUR * 25);
    assert_eq!((report.deleted_objects, report.condemned_objects), (1, 0));
    assert_eq!(scene.objects(), 2);
    assert!(verify(&second, &scene.store, &forever()).unwrap().is_empty());
    assert_eq!(scene.files().len(), 4, "those who pause are told of what may be deleted still");
    assert_eq!(scene.prune(Some(1), HOUR * 25), PruneReport::default());
    assert_eq!(scene.files().len(), 3, "two objects and a manifest: no record is left");
}

#[test]
fn what_a_removed_pause_named_has_the_whole_grace_time_whenever_it_was_condemned_before() {
    let scene = Scene::new();
    let first = scene.pause(1, None);
    scene.pause(2, Some(&first));
    assert_eq!(scene.prune(Some(1), NOW).condemned_objects, 1);
    // It names again what is condemned, and the next one does not.
    let files = [image(scene.folder.path(), 1, "own-1", b"content of 1 alone")];
    let third = archive(&scene.store, pause_id(3), &files, Some(&first), &forever()).unwrap();
    scene.pause(4, Some(&third));
    let dry = PruneOptions { dry_run: true, ..scene.options(Some(1), HOUR * 25) };
    let told = prune(&scene.store, &part(BUCKET), &dry, &watchdog()).unwrap();
    let report = scene.prune(Some(1), HOUR * 25);
    assert_eq!(told, report);
    assert_eq!((report.removed_pauses.len(), report.deleted_objects), (2, 0));
    assert!(verify(&third, &scene.store, &forever()).unwrap().is_empty(), "who reads it now reads it whole");
    assert_eq!(scene.prune(Some(1), HOUR * 48).deleted_objects, 0);
    assert_eq!(scene.prune(Some(1), HOUR * 50).deleted_objects, report.condemned_objects);
    assert_eq!(scene.prune(Some(1), HOUR * 50), PruneReport::default());
    assert_eq!(scene.files().len(), 3, "{:?}", scene.files());
}

#[test]
fn a_damaged_manifest_may_be_removed_and_what_it_named_is_condemned() {
    let scene = Scene::new();
    let first = scene.pause(1, None);
    scene.pause(2, Some(&first));
    let manifest = scene.folder.path().join(format!("archive/{BUCKET}/manifests/{}.manifest", pause_id(1)));
    std::fs::write(&manifest, b"nothing of ours").unwrap();
    let report = scene.prune(Some(1), NOW);
    assert_eq!((report.removed_pauses.len(), report.condemned_objects, report.deleted_objects), (1, 1, 0));
    assert_eq!(scene.prune(Some(1), HOUR * 25).deleted_objects, 1);
}

#[test]
fn a_pause_that_names_a_condemned_object_saves_it() {
    let scene = Scene::new();
    let first = scene.pause(1, None);
    scene.pause(2, Some(&first));
    let own = "own-1".parse().unwrap();
    let own =
        |manifest: &Manifest| manifest.files.iter().find(|file| file.name == own).unwrap().object.clone();
    assert_eq!(scene.prune(Some(1), NOW).condemned_objects, 1);
    // It began before the first pause was removed, and reuses what that one had.
    let files = [image(scene.folder.path(), 1, "own-1", b"content of 1 alone")];
    let third = archive(&scene.store, pause_id(3), &files, Some(&first), &forever()).unwrap();
    assert_eq!(own(&third), own(&first), "it is what was condemned");
    let report = scene.prune(Some(1), HOUR * 25);
    assert_eq!((report.deleted_objects, report.removed_pauses.len()), (0, 1));
    assert!(verify(&third, &scene.store, &forever()).unwrap().is_empty());
}

#[test]
fn what_an_unfinished_pause_left_goes_too() {
    let scene = Scene::new();
    scene.pause(1, None);
    let key = format!("{BUCKET}/objects/{}-00000000000000cc", "ab".repeat(32)).parse().unwrap();
    scene.store.put(&key, dormouse::objstore::Body::Bytes(b"left"), &forever()).unwrap();
    assert_eq!(scene.prune(None, NOW).condemned_objects, 1);
    assert_eq!(scene.prune(None, HOUR * 25).deleted_bytes, 4);
    assert_eq!(scene.objects(), 2);
}

#[test]
fn parts_that_nobody_finished_are_given_up_after_the_grace_time_and_not_before() {
    let memory = MemoryStore::default();
    let begin = |bucket: &str| {
        let key = format!("{bucket}/objects/{}-00000000000000cc", "ab".repeat(32)).parse().unwrap();
        memory.in_parts().unwrap().begin(&key, &forever()).unwrap()
    };
    let (left, of_another, now) = (begin(BUCKET), begin("another"), SystemTime::now());
    let prune_at = |later: Duration, dry_run| {
        let options = PruneOptions { keep: None, grace: GRACE_DEFAULT, now: now + later, dry_run };
        prune(&memory, &part(BUCKET), &options, &watchdog()).unwrap()
    };
    assert_eq!(prune_at(NOW, true).condemned_uploads, 1);
    assert_eq!(prune_at(NOW, false).condemned_uploads, 1);
    let later = begin(BUCKET);
    let report = prune_at(HOUR * 23, false);
    assert_eq!((report.condemned_uploads, report.deleted_leftovers), (1, 0), "the later one is noted");
    assert_eq!(prune_at(HOUR * 25, true).deleted_leftovers, 1);
    assert_eq!(prune_at(HOUR * 25, false).deleted_leftovers, 1);
    let unfinished = memory.in_parts().unwrap().uploads(None, &forever()).unwrap();
    assert_eq!(unfinished, [of_another, later], "{left:?} goes alone");
    assert_eq!(prune_at(HOUR * 50, false).deleted_leftovers, 1);
    assert_eq!(prune_at(HOUR * 50, false), PruneReport::default());
    assert!(memory.objects().is_empty(), "no record is left");
}

#[test]
fn files_that_puts_left_half_written_go_when_nobody_has_written_to_them_for_the_grace_time() {
    let scene = Scene::new();
    scene.pause(1, None);
    let before = scene.files();
    for folder in ["objects", "manifests"] {
        let name = format!("archive/{BUCKET}/{folder}/.0123456789abcdef.tmp");
        std::fs::write(scene.folder.path().join(name), b"half").unwrap();
    }
    assert_eq!(scene.prune(None, HOUR * 23).deleted_leftovers, 0);
    let dry = PruneOptions { dry_run: true, ..scene.options(None, HOUR * 25) };
    assert_eq!(prune(&scene.store, &part(BUCKET), &dry, &watchdog()).unwrap().deleted_leftovers, 2);
    assert_eq!(scene.files().len(), before.len() + 2);
    assert_eq!(scene.prune(None, HOUR * 25).deleted_leftovers, 2);
    assert_eq!(scene.files(), before);
}

#[test]
fn the_newest_pause_stays_whatever_is_asked() {
    let scene = Scene::new();
    scene.pause(1, None);
    assert!(scene.prune(Some(0), NOW).removed_pauses.is_empty());
    assert_eq!(list_pauses(&scene.store, &part(BUCKET), &forever()).unwrap(), [pause_id(1)]);
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_changes_nothing() {
    let scene = Scene::new();
    let first = scene.pause(1, None);
    scene.pause(2, Some(&first));
    let before = scene.files();
    let dry = PruneOptions { dry_run: true, ..scene.options(Some(1), NOW) };
    let told = prune(&scene.store, &part(BUCKET), &dry, &watchdog()).unwrap();
    assert_eq!(scene.files(), before);
    assert_eq!(told, scene.prune(Some(1), NOW));
}

#[test]
fn an_archive_with_a_damaged_manifest_is_not_pruned() {
    let scene = Scene::new();
    scene.pause(1, None);
    let manifest = scene.folder.path().join(format!("archive/{BUCKET}/manifests/{}.manifest", pause_id(1)));
    std::fs::write(&manifest, b"nothing of ours").unwrap();
    let before = scene.files();
    let refused = prune(&scene.store, &part(BUCKET), &scene.options(None, HOUR * 25), &watchdog());
    assert!(matches!(refused, Err(PruneError::Manifest(_))), "{refused:?}");
    assert_eq!(scene.files(), before);
}

#[test]
fn a_prune_that_fails_at_any_call_is_finished_by_the_next_ones() {
    for fails in [Fails::Before, Fails::After] {
        let mut fail_at = 1;
        loop {
            let scene = Scene::new();
            let first = scene.pause(1, None);
            let second = scene.pause(2, Some(&first));
            let failing = FailingStore::new(&scene.store, fail_at, fails);
            let outcome = [NOW, HOUR * 25]
                .map(|later| prune(&failing, &part(BUCKET), &scene.options(Some(1), later), &watchdog()));
            if !failing.has_failed() {
                assert!(outcome.iter().all(Result::is_ok));
                break;
            }
            for later in [HOUR * 50, HOUR * 75, HOUR * 75] {
                scene.prune(Some(1), later);
            }
            assert_eq!(scene.files().len(), 3, "call {fail_at}: {:?}", scene.files());
            assert!(verify(&second, &scene.store, &forever()).unwrap().is_empty());
            fail_at += 1;
        }
        assert!(fail_at > 6, "a prune has more calls than that");
    }
}
