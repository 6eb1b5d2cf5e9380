//! What shares an archive: members of one bucket, which stay apart, and other buckets of the same name, which are
//! refused.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use dormouse::bucket::{
    BucketSpec, BucketState, PauseError, PauseOptions, ResumeError, ResumeOptions, ResumeReport,
};
use dormouse::objstore::FileStore;
use dormouse::pause::{
    BucketPart, Manifest, Membership, PruneOptions, describe_pauses, list_parts, list_pauses, prune, verify,
};

use crate::support::buckets::{World, close, ids, ingest, lines, named, once_free, pause, scan, scratch};
use crate::support::{forever, part, tree, watchdog};

const MEMBERS: u16 = 4;

fn membership(member: u16) -> Membership {
    Membership { member, of: MEMBERS }
}

fn of_member(member: u16) -> BucketPart {
    BucketPart::new("b", membership(member))
}

/// A data folder of its own, with the archive in `shared`.
fn world_beside(shared: &Path) -> World {
    World { store: FileStore::open(&shared.join("archive")).unwrap(), ..World::new() }
}

fn world_of_member(shared: &Path, member: u16) -> World {
    let spec = BucketSpec { membership: membership(member), ..crate::support::buckets::SPEC() };
    World { spec, ..world_beside(shared) }
}

/// The documents that a member has.
fn documents(member: u16, count: u32) -> std::ops::Range<u32> {
    let first = u32::from(member) * 1000;
    first..first + count
}

fn resume_member(world: &World, member: Option<Membership>) -> Result<ResumeReport, ResumeError> {
    let options = ResumeOptions { member, ..ResumeOptions::default() };
    let resume =
        || world.data.resume(&named("b"), &world.store, options, &world.config, &watchdog(), &mut |_| {});
    once_free(resume)
}

/// Each member has paused once, and all of them at the same generation.
fn paused_members(shared: &Path) -> Vec<(u16, World)> {
    let members: Vec<(u16, World)> = (1..=MEMBERS).map(|m| (m, world_of_member(shared, m))).collect();
    for (member, world) in &members {
        let bucket = world.bucket("b");
        ingest(&bucket, lines(documents(*member, 10))).unwrap();
        pause(&bucket, &world.store, false).unwrap();
        close(bucket);
    }
    members
}

#[test]
fn four_members_of_one_bucket_share_an_archive_and_each_wakes_up_as_itself() {
    let shared = scratch();
    for (member, world) in &paused_members(shared.path()) {
        world.resume("b", &watchdog()).unwrap();
        let bucket = world.open("b");
        assert_eq!(scan(&bucket), ids(documents(*member, 10)));
        ingest(&bucket, lines(documents(*member, 20))).unwrap();
        pause(&bucket, &world.store, true).unwrap();
        close(bucket);
    }
    let world = world_beside(shared.path());
    let parts = list_parts(&world.store, None, &forever()).unwrap();
    assert_eq!(parts, (1..=MEMBERS).map(of_member).collect::<Vec<_>>());
    for part in &parts {
        let described = describe_pauses(&world.store, part, &forever()).unwrap();
        assert_eq!(described.len(), 2, "{part}");
        assert!(described.iter().all(|pause| pause.as_ref().unwrap().part() == *part));
    }
    for hours in [0, 25] {
        for part in &parts {
            let now = SystemTime::now() + Duration::from_secs(3600 * hours);
            let grace = Duration::from_secs(24 * 3600);
            let options = PruneOptions { keep: Some(1), grace, now, dry_run: false };
            prune(&world.store, part, &options, &watchdog()).unwrap();
        }
    }
    for member in 1..=MEMBERS {
        let pauses = list_pauses(&world.store, &of_member(member), &forever()).unwrap();
        assert_eq!(pauses.len(), 1, "member {member}");
        let manifest = Manifest::read(&world.store, &of_member(member), pauses[0], &forever()).unwrap();
        assert!(verify(&manifest, &world.store, &forever()).unwrap().is_empty());
        let elsewhere = world_beside(shared.path());
        resume_member(&elsewhere, Some(membership(member))).unwrap();
        let bucket = elsewhere.open("b");
        assert_eq!(scan(&bucket), ids(documents(member, 20)));
        assert_eq!(bucket.describe().spec.membership, membership(member));
        close(bucket);
    }
}

#[test]
fn the_archive_of_a_bucket_with_one_member_has_no_folder_for_it() {
    let world = World::new();
    let bucket = world.filled("b", 0..10);
    pause(&bucket, &world.store, false).unwrap();
    let names = tree(&world.dir.path().join("archive"));
    assert!(names.keys().all(|name| name.starts_with("b/objects/") || name.starts_with("b/manifests/")));
}

#[test]
fn a_resume_on_a_new_host_that_names_no_member_is_told_which_there_are() {
    let shared = scratch();
    paused_members(shared.path());
    let elsewhere = world_beside(shared.path());
    let refused = resume_member(&elsewhere, None).unwrap_err();
    assert!(matches!(refused, ResumeError::NoPause { .. }), "{refused}");
    assert!(refused.to_string().contains("of the members 1/4, 2/4, 3/4, 4/4 of it"), "{refused}");
}

#[test]
fn a_member_is_not_resumed_over_another_one() {
    let shared = scratch();
    let members = paused_members(shared.path());
    let (_, first) = &members[0];
    let refused = resume_member(first, Some(membership(2))).unwrap_err();
    assert!(matches!(refused, ResumeError::OtherMember { .. }), "{refused}");
    resume_member(first, Some(membership(1))).unwrap();
}

#[test]
fn a_manifest_in_the_folder_of_another_member_is_refused() {
    let shared = scratch();
    drop(paused_members(shared.path()));
    let archive = shared.path().join("archive/b");
    std::fs::rename(archive.join("member-2-of-4"), archive.join("member-2-of-5")).unwrap();
    let elsewhere = world_beside(shared.path());
    let refused = resume_member(&elsewhere, Some(Membership { member: 2, of: 5 })).unwrap_err();
    assert!(refused.to_string().contains("it is that of bucket \"b\", member 2/4"), "{refused}");
}

fn dormouse(words: &[&str], archive: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
    let output = command.args(words).arg("--archive").arg(archive).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_line_lists_prunes_verifies_and_resumes_members() {
    let shared = scratch();
    drop(paused_members(shared.path()));
    let archive = shared.path().join("archive");
    let lines_of = |words: &[&str]| {
        let (status, stdout, stderr) = dormouse(words, &archive);
        assert_eq!(status, Some(0), "{words:?}: {stderr}");
        stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let listed = lines_of(&["archive", "list"]);
    assert_eq!(listed.len(), 4);
    assert!(listed[1].starts_with("b (member 2/4)  0000000001-"), "{listed:?}");
    assert_eq!(lines_of(&["archive", "list", "--bucket", "b"]).len(), 4);
    assert_eq!(lines_of(&["archive", "list", "--bucket", "b", "--member", "3/4"]).len(), 1);
    assert_eq!(lines_of(&["archive", "prune", "--keep", "1"]).len(), 4);
    assert!(lines_of(&["verify"])[0].starts_with("4 pauses"));
    assert!(lines_of(&["verify", "--bucket", "b", "--member", "3/4"])[0].starts_with("1 pauses"));
    let folder = shared.path().join("new");
    let resume = ["resume", "--bucket", "b", "--data-dir", folder.to_str().unwrap()];
    let (status, _, stderr) = dormouse(&resume, &archive);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("say which one to resume"), "{stderr}");
    assert!(lines_of(&[&resume[..], &["--member", "2/4"]].concat())[0].starts_with("resumed bucket b"));
    // It is known from here on.
    let pause = ["pause", "--bucket", "b", "--data-dir", folder.to_str().unwrap()];
    lines_of(&pause);
    lines_of(&resume);
}

/// Two buckets that have nothing in common but their name and an archive, in which the first one sleeps.
fn strangers(shared: &Path) -> [World; 2] {
    let worlds = [world_beside(shared), world_beside(shared)];
    for (world, n) in worlds.iter().zip([0, 100]) {
        let bucket = world.bucket("b");
        ingest(&bucket, lines(n..n + 10)).unwrap();
        close(bucket);
    }
    let bucket = worlds[0].open("b");
    pause(&bucket, &worlds[0].store, true).unwrap();
    close(bucket);
    worlds
}

#[test]
fn a_bucket_is_not_paused_beside_another_one_of_its_name() {
    let shared = scratch();
    let [first, second] = strangers(shared.path());
    let before = tree(shared.path());
    let bucket = second.open("b");
    let refused = pause(&bucket, &second.store, true).unwrap_err();
    assert!(matches!(refused, PauseError::Foreign { .. }), "{refused}");
    let theirs = first.data.bucket_meta(&named("b")).unwrap().uuid;
    for word in
        [format!("{theirs:016x}"), format!("{:016x}", bucket.describe().uuid), "another archive".into()]
    {
        assert!(refused.to_string().contains(&word), "{refused}");
    }
    let planned = bucket.plan_pause(&second.store, PauseOptions::default(), &watchdog());
    assert!(matches!(planned, Err(PauseError::Foreign { .. })), "{planned:?}");
    assert_eq!(bucket.describe().state, BucketState::Online);
    assert!(tree(shared.path()) == before, "the archive changed");
    let elsewhere = FileStore::open(&shared.path().join("elsewhere")).unwrap();
    pause(&bucket, &elsewhere, true).unwrap();
}

#[test]
fn a_bucket_that_sleeps_is_not_woken_up_as_another_one_of_its_name() {
    for evict in [false, true] {
        let shared = scratch();
        let [first, second] = strangers(shared.path());
        let elsewhere = FileStore::open(&shared.path().join("elsewhere")).unwrap();
        let bucket = second.open("b");
        pause(&bucket, &elsewhere, evict).unwrap();
        close(bucket);
        let before = second.local();
        let refused = resume_member(&second, None).unwrap_err();
        assert!(matches!(refused, ResumeError::Foreign { .. }), "{refused}");
        let theirs = first.data.bucket_meta(&named("b")).unwrap().uuid;
        assert!(refused.to_string().contains(&format!("{theirs:016x}")), "{refused}");
        assert!(refused.to_string().contains("drop it first"), "{refused}");
        let planned =
            second.data.plan_resume(&named("b"), &second.store, ResumeOptions::default(), &watchdog());
        assert!(matches!(planned, Err(ResumeError::Foreign { .. })), "{planned:?}");
        assert!(second.local() == before);
        second.data.drop_bucket(&named("b")).unwrap();
        resume_member(&second, None).unwrap();
        assert_eq!(scan(&second.open("b")), ids(0..10));
    }
}

#[test]
fn a_bucket_with_two_pauses_of_one_generation_holds_up_no_other_one() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        let bucket = world.bucket(name);
        ingest(&bucket, lines(0..10)).unwrap();
        pause(&bucket, &world.store, false).unwrap();
        close(bucket);
    }
    let first = list_pauses(&world.store, &part("b"), &forever()).unwrap()[0];
    let mut rival = Manifest::read(&world.store, &part("b"), first, &forever()).unwrap();
    rival.pause = "0000000001-00000000000000aa".parse().unwrap();
    rival.publish(&world.store, &forever()).unwrap();
    let archive = world.dir.path().join("archive");
    let call = |words: &[&str]| {
        let (status, stdout, stderr) = dormouse(words, &archive);
        assert_eq!(status, Some(1), "{words:?}: {stderr}");
        (stdout, stderr)
    };
    for (words, has_others) in
        [(&["archive", "list"][..], true), (&["archive", "prune"], true), (&["verify"], false)]
    {
        let (stdout, stderr) = call(words);
        let told = format!("{stdout}{stderr}");
        for pause in [first, rival.pause] {
            assert!(told.contains(&format!("b/manifests/{pause}.manifest")), "{words:?}: {told}");
        }
        if has_others {
            assert!(stdout.lines().any(|line| line.starts_with('a')), "{words:?}: {stdout}");
            assert!(stdout.lines().any(|line| line.starts_with('c')), "{words:?}: {stdout}");
        } else {
            assert!(stdout.contains("2 pauses with"), "{stdout}");
        }
    }
    // The way out that is told.
    let (status, _, stderr) = dormouse(&["verify", "--bucket", "b", "--pause", &first.to_string()], &archive);
    assert_eq!(status, Some(0), "{stderr}");
    std::fs::remove_file(archive.join(format!("b/manifests/{}.manifest", rival.pause))).unwrap();
    assert_eq!(dormouse(&["archive", "list"], &archive).0, Some(0));
}
