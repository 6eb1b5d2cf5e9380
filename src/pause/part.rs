//! The place of a bucket in an archive.
//!
//! A bucket may be spread over several processes, its members, each with a part of its vbuckets and pauses of its own.
//! They may share an archive and do not know of each other, so each member of several has a folder to itself:
//!
//! ```text
//! <bucket>/…                      where the bucket has one member
//! <bucket>/member-2-of-4/…        what member 2 of 4 has
//! ```
//!
//! Invariant: two parts have no key in common, and no listing of one part's folders shows an object of another.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{AttemptId, PauseId};
use super::manifest::ManifestError;
use crate::objstore::{ContentHash, KeyError, ObjectKey};

const MANIFESTS: &str = "manifests";
const OBJECTS: &str = "objects";
const CONDEMNED: &str = "condemned";
pub(super) const MANIFEST_SUFFIX: &str = ".manifest";

/// Member `member` of `of`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// This member.
    pub member: u16,
    /// How many there are.
    pub of: u16,
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.member, self.of)
    }
}

impl Default for Membership {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Membership {
    /// The only member there is.
    pub const WHOLE: Self = Self { member: 1, of: 1 };

    /// The name of the member's folder; the only member has none.
    fn segment(self) -> Option<String> {
        let Self { member, of } = self;
        (self != Self::WHOLE).then(|| format!("member-{member}-of-{of}"))
    }

    /// The member whose folder has this name.
    fn of_segment(segment: &str) -> Option<Self> {
        let (member, of) = segment.strip_prefix("member-")?.split_once("-of-")?;
        let membership = Self { member: member.parse().ok()?, of: of.parse().ok()? };
        (membership.segment().as_deref() == Some(segment)).then_some(membership)
    }
}

/// What an archive keeps together and apart from everything else: a bucket, or what one of its members has of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketPart {
    bucket: String,
    membership: Membership,
}

impl fmt::Display for BucketPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket)?;
        if self.membership == Membership::WHOLE { Ok(()) } else { write!(f, " (member {})", self.membership) }
    }
}

impl BucketPart {
    /// What this member has of the bucket.
    pub fn new(bucket: impl Into<String>, membership: Membership) -> Self {
        Self { bucket: bucket.into(), membership }
    }

    /// A bucket with one member.
    pub fn whole(bucket: impl Into<String>) -> Self {
        Self::new(bucket, Membership::WHOLE)
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Which member's it is.
    pub fn membership(&self) -> Membership {
        self.membership
    }

    /// The key of the object that holds a content which `attempt` uploads.
    pub fn object_key(&self, hash: ContentHash, attempt: AttemptId) -> Result<ObjectKey, ManifestError> {
        self.below(&self.objects()?, &format!("{hash}-{attempt}"))
    }

    /// The key of a pause's manifest.
    pub fn manifest_key(&self, pause: PauseId) -> Result<ObjectKey, ManifestError> {
        self.below(&self.manifests()?, &format!("{pause}{MANIFEST_SUFFIX}"))
    }

    /// The folder of the objects.
    pub(super) fn objects(&self) -> Result<ObjectKey, ManifestError> {
        self.folder(OBJECTS)
    }

    /// The folder of the manifests.
    pub(super) fn manifests(&self) -> Result<ObjectKey, ManifestError> {
        self.folder(MANIFESTS)
    }

    /// The folder of the records of condemned objects.
    pub(super) fn condemned(&self) -> Result<ObjectKey, ManifestError> {
        self.folder(CONDEMNED)
    }

    fn folder(&self, name: &str) -> Result<ObjectKey, ManifestError> {
        let bucket = self.bucket_folder()?;
        match self.membership.segment() {
            None => self.below(&bucket, name),
            Some(member) => self.below(&bucket, &format!("{member}/{name}")),
        }
    }

    /// The folder of the bucket, with all of its members.
    pub(super) fn bucket_folder(&self) -> Result<ObjectKey, ManifestError> {
        if self.bucket.contains('/') {
            let slash = KeyError { text: self.bucket.clone(), reason: "it holds a slash" };
            return Err(self.unusable(slash));
        }
        ObjectKey::new(self.bucket.as_str()).map_err(|e| self.unusable(e))
    }

    /// The key of `tail` in one of the folders.
    pub(super) fn below(&self, folder: &ObjectKey, tail: &str) -> Result<ObjectKey, ManifestError> {
        folder.join(tail).map_err(|e| self.unusable(e))
    }

    fn unusable(&self, source: KeyError) -> ManifestError {
        ManifestError::Bucket { bucket: self.bucket.clone(), source }
    }

    /// The part that an object belongs to, by its key.
    pub(super) fn holding(key: &ObjectKey) -> Option<Self> {
        let mut segments = key.as_str().split('/');
        let bucket = segments.next()?;
        let mut next = segments.next()?;
        let mut membership = Membership::WHOLE;
        if let Some(of_member) = Membership::of_segment(next) {
            membership = of_member;
            next = segments.next()?;
        }
        let is_ours = segments.next().is_some() && [OBJECTS, MANIFESTS, CONDEMNED].contains(&next);
        is_ours.then(|| Self::new(bucket, membership))
    }
}
