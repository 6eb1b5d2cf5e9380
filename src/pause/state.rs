//! The one state of a bucket, and the one function that changes it.
//!
//! A state is what is durable in the bucket's metadata, so it is at the same time the record of what was intended: it
//! is written before the step that it speaks of. What a crash left in the middle of something, [`Event::Restarted`]
//! leads back to a state that lasts.
//!
//! ```text
//!            Began         Cut          Publishing          Published
//! online ──────────▶ preparing ──▶ pausing ──▶ publishing ───────────▶ paused ──▶ paused, evicted
//!   ▲                    │            │            │   │ Lost             ▲  │ ▲    │
//!   │◀── Failed ─────────┴────────────┘            │   ▼                  │  │ └────┤ Failed
//!   │◀── Absent ───────────────────────────────────┴─ in doubt ── Published  │      │
//!   └─────────────────────────── Resumed ─────────────────────── resuming ◀──┴──────┘ Waking
//! ```
//!
//! Invariants: a state is changed by [`BucketState::after`] alone. A failure or a cancel leads back to the last state
//! that lasts: `online`, or the same `paused`. Whether a pause exists is never guessed: only from `publishing` and `in
//! doubt` does a way lead to `paused`, and back from there only by the knowledge that the manifest is not there.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::PauseId;

/// What a bucket is doing, across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum BucketState {
    /// It takes changes.
    Online,
    /// It takes changes, and its files are being copied into an archive.
    Preparing {
        /// URL of the archive.
        archive: String,
    },
    /// Its shards are locked, or about to be, and the rest of its files is being copied.
    Pausing {
        /// The pause that is to hold it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
    },
    /// Its shards are locked, and the manifest that makes the pause is being put.
    Publishing {
        /// The pause that is to hold it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
    },
    /// The manifest was put and nobody knows whether it is there. No change is taken until that is known.
    #[serde(rename = "in doubt")]
    InDoubt {
        /// The pause that may hold it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
    },
    /// It sleeps in an archive.
    Paused {
        /// The pause that holds it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
        /// The local data was removed, or is about to be.
        evicted: bool,
    },
    /// It sleeps, and is being woken up.
    Resuming {
        /// The pause that holds it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
        /// The local data was removed.
        evicted: bool,
    },
}

/// What happens to a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A pause into `archive` begins.
    Began {
        /// URL of the archive.
        archive: String,
    },
    /// The shards are about to be locked for `pause`.
    Cut {
        /// The pause that is to hold the bucket.
        pause: PauseId,
    },
    /// The manifest is about to be put.
    Publishing,
    /// The manifest is there.
    Published,
    /// The manifest's put failed, and whether it is there could not be found out.
    Lost,
    /// The manifest is not there.
    Absent,
    /// The local data is about to be removed.
    Evicting,
    /// A resume from `pause` begins. Of an evicted bucket any pause may take the place.
    Waking {
        /// The pause that is asked for.
        pause: PauseId,
    },
    /// Everything is checked and in its place.
    Resumed,
    /// What was under way failed or was cancelled, and nothing of it is left.
    Failed,
    /// Nothing is under way: whatever the state says of it was interrupted.
    Restarted,
}

/// Why an event cannot happen to a bucket that is in this state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It sleeps already.
    #[error("it is paused as {pause} in {archive} already")]
    Asleep {
        /// The pause that holds it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
    },
    /// It may sleep.
    #[error(
        "nobody knows whether it is paused as {pause} in {archive}; a pause or a resume with that archive finds out"
    )]
    InDoubt {
        /// The pause that may hold it.
        pause: PauseId,
        /// URL of the archive.
        archive: String,
    },
    /// It is awake.
    #[error("it is online")]
    Awake,
    /// It sleeps as another pause.
    #[error("it is paused as {there}, not as {wanted}")]
    OtherPause {
        /// The pause that was asked for.
        wanted: PauseId,
        /// The pause that holds it.
        there: PauseId,
    },
    /// The event does not follow on the state: a defect of the caller.
    #[error("it is {state}, where no such step follows")]
    OutOfOrder {
        /// The state.
        state: String,
    },
}

impl BucketState {
    /// The state after `event`, or why it cannot happen. Nothing else makes a state of another.
    pub fn after(&self, event: Event) -> Result<Self, Refusal> {
        match (self.clone(), event) {
            (state, Event::Restarted) => Ok(state.restarted()),
            (Self::Online, Event::Began { archive }) => Ok(Self::Preparing { archive }),
            (Self::Preparing { archive }, Event::Cut { pause }) => Ok(Self::Pausing { pause, archive }),
            (Self::Pausing { pause, archive }, Event::Publishing) => Ok(Self::Publishing { pause, archive }),
            (
                Self::Publishing { pause, archive } | Self::InDoubt { pause, archive },
                event @ (Event::Published | Event::Lost | Event::Absent),
            ) => Ok(Self::told(pause, archive, &event)),
            (Self::Preparing { .. } | Self::Pausing { .. }, Event::Failed)
            | (Self::Resuming { .. }, Event::Resumed) => Ok(Self::Online),
            (Self::Paused { pause, archive, .. }, Event::Evicting) => {
                Ok(Self::Paused { pause, archive, evicted: true })
            }
            (Self::Paused { pause: there, evicted: false, .. }, Event::Waking { pause: wanted })
                if there != wanted =>
            {
                Err(Refusal::OtherPause { wanted, there })
            }
            (Self::Paused { pause, archive, evicted }, Event::Waking { .. }) => {
                Ok(Self::Resuming { pause, archive, evicted })
            }
            (Self::Resuming { pause, archive, evicted }, Event::Failed) => {
                Ok(Self::Paused { pause, archive, evicted })
            }
            (state, event) => Err(state.refusal(&event)),
        }
    }

    /// What is known of the manifest decides.
    fn told(pause: PauseId, archive: String, event: &Event) -> Self {
        match event {
            Event::Published => Self::Paused { pause, archive, evicted: false },
            Event::Absent => Self::Online,
            _ => Self::InDoubt { pause, archive },
        }
    }

    fn restarted(self) -> Self {
        match self {
            Self::Preparing { .. } | Self::Pausing { .. } => Self::Online,
            Self::Publishing { pause, archive } => Self::InDoubt { pause, archive },
            Self::Resuming { pause, archive, evicted } => Self::Paused { pause, archive, evicted },
            lasting @ (Self::Online | Self::InDoubt { .. } | Self::Paused { .. }) => lasting,
        }
    }

    fn refusal(self, event: &Event) -> Refusal {
        let is_beginning = matches!(event, Event::Began { .. } | Event::Waking { .. });
        match self {
            Self::Paused { pause, archive, .. } if is_beginning => Refusal::Asleep { pause, archive },
            Self::InDoubt { pause, archive } if is_beginning => Refusal::InDoubt { pause, archive },
            Self::Online if matches!(event, Event::Waking { .. }) => Refusal::Awake,
            state => Refusal::OutOfOrder { state: state.to_string() },
        }
    }

    /// Whether it lasts across a restart.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Online | Self::InDoubt { .. } | Self::Paused { .. })
    }

    /// Why no changes are taken, if none are.
    pub fn closed_for_writes(&self) -> Option<Refusal> {
        match self {
            Self::Online | Self::Preparing { .. } | Self::Pausing { .. } | Self::Publishing { .. } => None,
            Self::InDoubt { pause, archive } => {
                Some(Refusal::InDoubt { pause: *pause, archive: archive.clone() })
            }
            Self::Paused { pause, archive, .. } | Self::Resuming { pause, archive, .. } => {
                Some(Refusal::Asleep { pause: *pause, archive: archive.clone() })
            }
        }
    }

    /// Whether the local data was removed, or is about to be.
    pub fn is_evicted(&self) -> bool {
        matches!(self, Self::Paused { evicted: true, .. } | Self::Resuming { evicted: true, .. })
    }
}

impl fmt::Display for BucketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Online => f.write_str("online"),
            Self::Preparing { archive } => write!(f, "about to be paused in {archive}"),
            Self::Pausing { pause, archive } => write!(f, "being paused as {pause} in {archive}"),
            Self::Publishing { pause, archive } => write!(f, "being published as {pause} in {archive}"),
            Self::InDoubt { pause, archive } => {
                write!(
                    f,
                    "in doubt: paused as {pause} in {archive} or not, which a pause or a resume there finds out"
                )
            }
            Self::Paused { pause, archive, evicted } => {
                let removed = if *evicted { ", local data removed" } else { "" };
                write!(f, "paused as {pause} in {archive}{removed}")
            }
            Self::Resuming { pause, archive, .. } => write!(f, "being resumed from {pause} in {archive}"),
        }
    }
}
