//! Nodes that have not heard of a collection yet.
//!
//! A change of a bucket's collections reaches its nodes one after the other. Asked for a collection that is too new for
//! it a node says that there is no such collection, or, where a stream is to go on, that it is behind. Both pass once
//! it has heard, so it is asked again; a collection that is nowhere ends following at once.
//!
//! Invariant: a collection counts as gone only where the newest manifest that any node has told says so, and every node
//! has had its say.

use std::collections::BTreeMap;
use std::time::Instant;

use slog::info;

use crate::event::{StreamStatus, VbId};
use crate::source::dcp::{CollectionId, Manifest, Status};

use super::super::intake::Broken;
use super::cause::FollowCause;
use super::follower::Follower;

/// What is known of the collections, and of nodes that know less.
#[derive(Default)]
pub(super) struct Manifests {
    newest: Option<Manifest>,
    /// Since when the nodes of vbuckets are behind.
    behind: BTreeMap<VbId, Instant>,
}

impl Manifests {
    /// The number of the newest one.
    pub(super) fn uid(&self) -> Option<u64> {
        self.newest.map(|newest| newest.uid)
    }

    /// Takes up what a node has told.
    pub(super) fn note(&mut self, told: Option<Manifest>) {
        if let Some(told) = told.filter(|told| self.uid().is_none_or(|uid| told.uid > uid)) {
            self.newest = Some(told);
        }
    }

    /// The node of a vbucket knows enough.
    pub(super) fn caught_up(&mut self, vb: VbId) {
        self.behind.remove(&vb);
    }

    fn has_collection(&self) -> bool {
        self.newest.is_some_and(|newest| newest.has_collection)
    }
}

impl Follower<'_> {
    /// Whether a refusal may pass once the node has heard of the bucket's collections.
    pub(super) fn may_be_behind(&self, status: StreamStatus) -> bool {
        match status {
            StreamStatus::Refused { status } => Status(status) == Status::MANIFEST_AHEAD,
            StreamStatus::UnknownCollection => {
                let is_default = self.options.cluster.connection.collection == CollectionId::default();
                !is_default && (self.manifests.has_collection() || !self.is_everything_open())
            }
            _ => false,
        }
    }

    /// The node of a vbucket is behind, which ends following where it stays so.
    pub(super) fn take_behind(&mut self, vb: VbId, status: StreamStatus) -> Result<(), Broken> {
        let now = Instant::now();
        let patience = self.options.cluster.connection.refusal_timeout;
        let since = *self.manifests.behind.entry(vb).or_insert_with(|| {
            info!(self.logger, "a node has not heard of a collection yet"; "vbucket" => vb.0);
            now
        });
        if now.duration_since(since) < patience {
            return Ok(());
        }
        let cause = match status {
            StreamStatus::UnknownCollection if !self.manifests.has_collection() => {
                FollowCause::Refused { vb, status }
            }
            _ => FollowCause::ManifestBehind { vb, seconds: patience.as_secs() },
        };
        Err(self.bucket.cannot_follow(cause).into())
    }
}
