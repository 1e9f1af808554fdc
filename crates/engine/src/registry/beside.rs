//! Versions that are loaded beside the live one.

use std::{collections::BTreeMap, sync::Arc};

use torchlane_model::{Label, Version};

use super::ModelSlot;
use crate::rollout::Split;

/// The slots of versions beside the live one, each with one version in it, and the labels of all.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// By version.
    pub slots: BTreeMap<Version, Arc<ModelSlot>>,
    /// Which version has which label; it may be the live one, or one that is not loaded. `stable` is among them only while its
    /// version is gone: otherwise it is the live one's.
    pub labels: BTreeMap<Label, Version>,
    /// How requests that leave the version open are split, while one of these is rolled out.
    pub split: Option<Arc<Split>>,
}

impl Beside {
    /// Nothing beside, no label, no rollout.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.labels.is_empty() && self.split.is_none()
    }
}
