//! `[versions]` of `model.toml`: which of the versions on disk are loaded, and what they are called.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{InvalidLabel, Label, Version, manifest::ManifestError};

/// `[versions]`: at most one of the first three. None: the latest one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Versions {
    /// So many of the newest are loaded; the newest of them is live.
    latest: Option<usize>,
    /// Every one is loaded.
    all: bool,
    /// These are loaded, where they are there.
    only: Vec<u64>,
    /// Names for versions, for requests that do not want to know numbers. `stable` is the live one. A version with another
    /// label is loaded, and not live, whatever the keys above say.
    labels: BTreeMap<String, u64>,
}

/// Which versions are loaded, labels apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPolicy {
    /// So many of the newest, at least one.
    Latest(usize),
    /// Every one.
    All,
    /// These, where they are there; at least one.
    Only(Vec<u64>),
}

/// What should be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionPlan {
    /// What answers requests that name no version.
    pub live: Option<Version>,
    /// What is loaded beside it, newest first.
    pub beside: Vec<Version>,
    /// `live` has a label of its own, and nothing else is there: it does not take the place of what is live already.
    pub makeshift: bool,
    /// Which version has which label, except `stable`.
    pub labels: BTreeMap<Label, Version>,
    /// Labels of versions that are not there.
    pub missing: Vec<(Label, Version)>,
    /// Versions of `only` that are not there.
    pub absent: Vec<Version>,
}

impl VersionPlan {
    /// The version behind `stable` is not there: no other may answer for it.
    pub fn lacks_stable(&self) -> bool {
        self.missing.iter().any(|(label, _)| label.as_str() == Label::STABLE)
    }

    /// What `[versions]` asks of `model` and the repository does not have, one sentence each. `there` is what it has.
    pub fn complaints(&self, model: &str, there: &[Version]) -> Vec<String> {
        let found = match there.iter().map(Version::to_string).collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "none".to_owned(),
            some => some,
        };
        let lacks = |version: &Version| {
            format!("model '{model}': version {version} is not in the repository (found: {found})")
        };
        let absent = self.absent.iter().map(|version| {
            format!("{}. Remove it from [versions] only, or add {model}/{version}", lacks(version))
        });
        let missing = self.missing.iter().map(|(label, version)| {
            format!(
                "{}. Give label '{label}' of [versions] labels to another version, or add {model}/{version}",
                lacks(version)
            )
        });
        let makeshift = self.live.filter(|_| self.makeshift).map(|version| {
            format!(
                "model '{model}': there is no version without a label of its own. Version {version}, which has one, answers \
                 requests that name no version, unless another version is still loaded"
            )
        });
        absent.chain(missing).chain(makeshift).collect()
    }
}

impl Versions {
    /// Most versions that may be asked for: each has its weights in memory.
    const MOST: usize = 100;

    /// Versions by `policy`, without labels.
    pub fn new(policy: VersionPolicy) -> Self {
        match policy {
            VersionPolicy::Latest(1) => Self::default(),
            VersionPolicy::Latest(latest) => Self { latest: Some(latest), ..Self::default() },
            VersionPolicy::All => Self { all: true, ..Self::default() },
            VersionPolicy::Only(only) => Self { only, ..Self::default() },
        }
    }

    /// Which versions are loaded, labels apart.
    pub fn policy(&self) -> VersionPolicy {
        match (self.all, self.only.is_empty()) {
            (true, _) => VersionPolicy::All,
            (false, false) => VersionPolicy::Only(self.only.clone()),
            (false, true) => VersionPolicy::Latest(self.latest.unwrap_or(1)),
        }
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let range = |key, value: String, allowed| Err(ManifestError::Range { key, value, allowed });
        if let Some(latest) = self.latest.filter(|latest| !(1..=Self::MOST).contains(latest)) {
            return range("versions.latest", latest.to_string(), "1 to 100");
        }
        let ways = [self.latest.is_some(), self.all, !self.only.is_empty()];
        if ways.iter().filter(|way| **way).count() > 1 {
            return range("versions", "several".to_owned(), "one of latest, all and only");
        }
        for label in self.labels.keys() {
            label
                .parse()
                .map_err(|error: InvalidLabel| ManifestError::Parse(error.to_string()))
                .map(|_: Label| ())?;
        }
        Ok(())
    }

    /// What should be loaded of the versions that are there, in any order.
    pub fn plan(&self, there: &[Version]) -> VersionPlan {
        let mut newest: Vec<_> = there.to_vec();
        newest.sort_unstable_by(|a, b| b.cmp(a));
        newest.dedup();
        let (there, missing): (Vec<_>, Vec<_>) = self
            .labels
            .iter()
            .filter_map(|(label, number)| Some((label.parse::<Label>().ok()?, Version(*number))))
            .partition(|(_, version)| newest.contains(version));
        let (stable, labels): (Vec<_>, Vec<_>) =
            there.into_iter().partition(|(label, _)| label.as_str() == Label::STABLE);
        let labelled = |version: &Version| labels.iter().any(|(_, of)| of == version);
        // What has a name of its own is not meant for everybody.
        let others = newest.iter().filter(|version| !labelled(version));
        let chosen: Vec<_> = match (self.all, self.only.is_empty()) {
            (true, _) => others.collect(),
            (false, false) => others.filter(|version| self.only.contains(&version.0)).collect(),
            (false, true) => others.take(self.latest.unwrap_or(1)).collect(),
        };
        let stable = stable.first().map(|(_, version)| *version);
        let wanted =
            |version: &&Version| chosen.contains(version) || labelled(version) || stable == Some(**version);
        let wanted: Vec<Version> = newest.iter().filter(wanted).copied().collect();
        let meant = stable.or(chosen.first().map(|version| **version));
        let live = meant.or(wanted.first().copied());
        let absent = self.only.iter().map(|number| Version(*number));
        VersionPlan {
            live,
            makeshift: meant.is_none() && live.is_some(),
            absent: absent.filter(|version| !newest.contains(version)).collect(),
            beside: wanted.into_iter().filter(|version| Some(*version) != live).collect(),
            labels: labels.into_iter().collect(),
            missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ModelManifest, *};

    fn plan(text: &str, there: &[u64]) -> (Option<u64>, Vec<u64>) {
        let manifest = ModelManifest::parse(text).unwrap();
        let there: Vec<_> = there.iter().copied().map(Version).collect();
        let plan = manifest.versions.plan(&there);
        (plan.live.map(|v| v.0), plan.beside.iter().map(|v| v.0).collect())
    }

    #[test]
    fn the_newest_is_live_and_the_policy_says_what_is_beside() {
        assert_eq!(plan("", &[1, 10, 9]), (Some(10), vec![]));
        assert_eq!(plan("", &[]), (None, vec![]));
        assert_eq!(plan("[versions]\nlatest = 2", &[1, 10, 9]), (Some(10), vec![9]));
        assert_eq!(plan("[versions]\nall = true", &[1, 10, 9]), (Some(10), vec![9, 1]));
        assert_eq!(plan("[versions]\nonly = [1, 9, 7]", &[1, 10, 9]), (Some(9), vec![1]));
    }

    #[test]
    fn labels_load_and_choose() {
        assert_eq!(plan("[versions]\nlabels = { canary = 10 }", &[1, 9, 10]), (Some(9), vec![10]));
        assert_eq!(
            plan("[versions]\nlatest = 2\nlabels = { canary = 10 }", &[1, 9, 10]),
            (Some(9), vec![10, 1])
        );
        assert_eq!(
            plan("[versions]\nlabels = { stable = 9, canary = 10 }", &[1, 9, 10]),
            (Some(9), vec![10])
        );
        assert_eq!(plan("[versions]\nlabels = { old = 1 }", &[1, 9, 10]), (Some(10), vec![1]));
        // There is nothing else.
        assert_eq!(plan("[versions]\nlabels = { canary = 1 }", &[1]), (Some(1), vec![]));
        assert_eq!(plan("[versions]\nonly = [5]\nlabels = { canary = 1 }", &[1]), (Some(1), vec![]));
        // A stable version that is not there cannot be live.
        let text = "[versions]\nlabels = { stable = 3 }";
        assert_eq!(plan(text, &[1, 2]), (Some(2), vec![]));
        let plan = ModelManifest::parse(text).unwrap().versions.plan(&[Version(1)]);
        assert_eq!(plan.missing, [("stable".parse().unwrap(), Version(3))]);
    }

    #[test]
    fn what_is_asked_for_and_not_there_is_named() {
        let plan = |text: &str, there: &[u64]| {
            let there: Vec<_> = there.iter().copied().map(Version).collect();
            let plan = ModelManifest::parse(&format!("[versions]\n{text}")).unwrap().versions.plan(&there);
            (plan.live.map(|version| version.0), plan.makeshift, plan.complaints("m", &there))
        };
        let (live, makeshift, said) = plan("only = [5]", &[1, 2]);
        assert_eq!((live, makeshift), (None, false));
        assert_eq!(
            said,
            [
                "model 'm': version 5 is not in the repository (found: 1, 2). Remove it from [versions] only, or add m/5"
            ]
        );
        let (live, makeshift, said) = plan("only = [1, 5]\nlabels = { stable = 7 }", &[1]);
        assert_eq!((live, makeshift, said.len()), (Some(1), false, 2));
        assert!(said[1].contains("version 7") && said[1].contains("'stable'"), "{said:?}");
        let (live, makeshift, said) = plan("labels = { canary = 2 }", &[2]);
        assert_eq!((live, makeshift, said.len()), (Some(2), true, 1), "{said:?}");
        assert_eq!(plan("labels = { canary = 2 }", &[1, 2]), (Some(1), false, vec![]));
    }

    #[test]
    fn a_policy_comes_back_as_it_was_given() {
        for policy in [
            VersionPolicy::Latest(1),
            VersionPolicy::Latest(3),
            VersionPolicy::All,
            VersionPolicy::Only(vec![1, 9]),
        ] {
            let versions = Versions::new(policy.clone());
            assert_eq!((versions.check(), versions.policy()), (Ok(()), policy));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for bad in
            ["latest = 0", "latest = 2\nall = true", "only = [1]\nall = true", "labels = { 'Big One' = 1 }"]
        {
            assert!(ModelManifest::parse(&format!("[versions]\n{bad}")).is_err(), "{bad}");
        }
    }
}
