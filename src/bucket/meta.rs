//! What a bucket is: fixed numbers, its indexes and its state, in one small file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::durable::{self, AtPath, PathError, UnsealError};
use crate::event::{VBUCKETS_MAX, VbUuid};
use crate::index::IndexDefinition;
use crate::pause::{AttemptId, BucketPart, BucketState, Event, IdError, Membership, PauseId, Refusal};
use crate::shard::{InstId, StoreKind};
use crate::text::stored_as_text;

/// The metadata's file within the bucket's folder.
const FILE: &str = "bucket.meta";
const KIND: &str = "bucket";
const VERSION: u32 = 1;
/// The most shards of a bucket.
const SHARDS_MAX: u16 = 1024;
const NAME_BYTES_MAX: usize = 100;
/// Pauses that were given up and are remembered, at most.
const GIVEN_UP_MAX: usize = 32;

/// Name of a bucket, by the rules of Couchbase: 1 to 100 of ASCII letters, digits and `_ - . %`, with no dot first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

/// A text that is no bucket's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no bucket name: 1 to {NAME_BYTES_MAX} letters, digits and _ - . % are allowed, with no dot first"
)]
pub struct BucketNameError(String);

impl FromStr for BucketName {
    type Err = BucketNameError;

    fn from_str(text: &str) -> Result<Self, BucketNameError> {
        let allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.%".contains(&b));
        if allowed && (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.starts_with('.') {
            Ok(Self(text.to_owned()))
        } else {
            Err(BucketNameError(text.to_owned()))
        }
    }
}

stored_as_text!(BucketName);

impl BucketName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a bucket's changes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Files of JSON lines.
    Files,
    /// A bucket of a Couchbase cluster.
    Couchbase,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "files",
            Self::Couchbase => "couchbase",
        })
    }
}

/// What is fixed when a bucket is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSpec {
    /// Number of vbuckets.
    pub vbuckets: u16,
    /// Number of shards, at most one for each vbucket.
    pub shards: u16,
    /// Storage engine of the shards.
    pub store: StoreKind,
    /// Where changes come from.
    pub source: SourceKind,
    /// Which of several processes follows the bucket, each a part of its vbuckets.
    #[serde(default)]
    pub membership: Membership,
}

impl Default for BucketSpec {
    fn default() -> Self {
        Self {
            vbuckets: 1024,
            shards: 4,
            store: StoreKind::Lsm,
            source: SourceKind::Files,
            membership: Membership::WHOLE,
        }
    }
}

impl BucketSpec {
    /// The vbuckets that this member has: of each shard as many as of any other, as far as the numbers allow.
    pub fn member_vbs(self) -> std::ops::Range<u16> {
        let Membership { member, of } = self.membership;
        let edge = |number: u16| {
            let (number, of) = (u32::from(number.min(of)), u32::from(of.max(1)));
            // At most the number of vbuckets.
            u16::try_from(u32::from(self.vbuckets) * number / of).unwrap_or(self.vbuckets)
        };
        edge(member.saturating_sub(1))..edge(member)
    }

    /// What is wrong with the numbers, if something is; a bucket is not made with them.
    pub fn problem(self) -> Option<String> {
        let Self { vbuckets, shards, .. } = self;
        if vbuckets == 0 || vbuckets > VBUCKETS_MAX {
            return Some(format!("{vbuckets} vbuckets are out of range: give 1 to {VBUCKETS_MAX}"));
        }
        let Membership { member, of } = self.membership;
        if member == 0 || member > of || of > vbuckets {
            return Some(format!("there is no member {member} of {of} with {vbuckets} vbuckets"));
        }
        let most = vbuckets.min(SHARDS_MAX);
        (shards == 0 || shards > most)
            .then(|| format!("{shards} shards are out of range: give 1 to {most} for {vbuckets} vbuckets"))
    }
}

/// Whether an index may be scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexState {
    /// It holds everything up to its positions.
    Ready,
    /// It is being filled from documents that come again.
    Building,
}

/// An index of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// Its instance in the shards.
    pub inst: InstId,
    /// What it indexes.
    pub definition: IndexDefinition,
    /// Whether it may be scanned.
    pub state: IndexState,
    /// Changes of the bucket before it was created.
    #[serde(default)]
    pub changes_before: u64,
}

/// Everything that a bucket keeps about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketMeta {
    /// Its name.
    pub name: BucketName,
    /// Its identity, random.
    pub uuid: u64,
    /// What was fixed when it was made.
    pub spec: BucketSpec,
    /// The branch of each vbucket's history, random.
    pub vbuuids: Vec<VbUuid>,
    /// Its indexes.
    pub indexes: Vec<IndexEntry>,
    /// The number that the next instance gets.
    pub next_inst: InstId,
    /// An index was dropped that had changes. The bucket has data then, also where no index is left that tells so.
    #[serde(default)]
    pub has_had_data: bool,
    /// What it is doing; changed by [`BucketState::after`] alone.
    #[serde(flatten)]
    pub state: BucketState,
    /// A pause that uploaded something and did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<PauseAttempt>,
    /// Pauses that are not there and may still appear, oldest first. Later pauses have later generations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<GivenUp>,
}

/// A pause that uploads something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseAttempt {
    /// What its objects are called by.
    pub attempt: AttemptId,
    /// What it called them by before some of them were condemned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<AttemptId>,
    /// URL of the archive.
    pub archive: String,
}

impl PauseAttempt {
    pub(super) fn begin(archive: String) -> Result<Self, IdError> {
        Ok(Self { attempt: AttemptId::generate()?, earlier: Vec::new(), archive })
    }

    /// The same under another name.
    pub(super) fn renamed(&self) -> Result<Self, IdError> {
        let renamed = Self::begin(self.archive.clone())?;
        Ok(Self { earlier: self.all(), ..renamed })
    }

    /// Everything that its objects are called by.
    pub(super) fn all(&self) -> Vec<AttemptId> {
        self.earlier.iter().copied().chain([self.attempt]).collect()
    }
}

/// A pause whose manifest was put with an unknown outcome and was not there later. It may still appear: a server may
/// carry a request out long after it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The pause.
    pub pause: PauseId,
    /// URL of the archive.
    pub archive: String,
}

/// Why a bucket's metadata was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The file.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It is damaged.
    #[error(
        "cannot read {}: {why}; bring the bucket back from an archive with `resume`, after a `drop` or into another data \
         folder",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: UnsealError,
    },
    /// No randomness or no memory for it: nothing that this program can mend.
    #[error("cannot describe bucket {bucket}: {cause}")]
    Describe {
        /// The bucket.
        bucket: BucketName,
        /// What was said.
        cause: String,
    },
}

impl BucketMeta {
    /// A new bucket with random identities.
    pub(super) fn new(name: &BucketName, spec: BucketSpec) -> Result<Self, MetaError> {
        let random = || {
            getrandom::u64().map_err(|e| MetaError::Describe { bucket: name.clone(), cause: e.to_string() })
        };
        // Zero means "no branch" on the wire.
        let vbuuids =
            (0..spec.vbuckets).map(|_| Ok(VbUuid(random()?.max(1)))).collect::<Result<_, MetaError>>()?;
        Ok(Self {
            name: name.clone(),
            uuid: random()?,
            spec,
            vbuuids,
            indexes: Vec::new(),
            next_inst: InstId(1),
            has_had_data: false,
            state: BucketState::Online,
            attempt: None,
            given_up: Vec::new(),
        })
    }

    /// Its place in an archive.
    pub(super) fn part(&self) -> BucketPart {
        BucketPart::new(self.name.as_str(), self.spec.membership)
    }

    /// The pauses that may still appear in the archive with this URL.
    pub(super) fn given_up_in(&self, archive: &str) -> Vec<PauseId> {
        let there = self.given_up.iter().filter(|given_up| given_up.archive == archive);
        there.map(|given_up| given_up.pause).collect()
    }

    /// The same bucket after `event`. What an attempt uploaded belongs to the pause that came of it.
    pub(super) fn after(&self, event: Event) -> Result<Self, Refusal> {
        let is_absent = matches!(event, Event::Absent);
        let state = self.state.after(event)?;
        let mut next = Self { state, ..self.clone() };
        if matches!(next.state, BucketState::Paused { .. }) {
            next.attempt = None;
        }
        if let (true, BucketState::Publishing { pause, archive } | BucketState::InDoubt { pause, archive }) =
            (is_absent, &self.state)
        {
            let forgotten = (next.given_up.len() + 1).saturating_sub(GIVEN_UP_MAX);
            next.given_up.drain(..forgotten);
            next.given_up.push(GivenUp { pause: *pause, archive: archive.clone() });
        }
        Ok(next)
    }

    /// Reads the metadata of the bucket in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, MetaError> {
        let path = folder.join(FILE);
        let sealed = std::fs::read(&path).at("read", &path)?;
        durable::unseal(KIND, VERSION, &sealed).map_err(|why| MetaError::Damaged { path, why })
    }

    /// Writes the metadata, durably and in one step.
    pub(super) fn write(&self, folder: &Path) -> Result<(), MetaError> {
        let sealed = durable::seal(KIND, VERSION, self)
            .map_err(|e| MetaError::Describe { bucket: self.name.clone(), cause: e.to_string() })?;
        Ok(durable::replace(&folder.join(FILE), &sealed)?)
    }
}
