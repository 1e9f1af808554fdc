//! What an archive's code means for what its owner asks for, in words.

use crate::{
    loader::archive::Seen,
    model::{Decision, ModelManifest},
};

/// Whether a version keeps state, and every setting that torchlane does not honor because of it. `seen` is where the code
/// keeps something between passes; `model.toml` overrides it.
pub fn about_state(seen: Option<&Seen>, manifest: &ModelManifest) -> (bool, Vec<Decision>) {
    let scheduling = &manifest.scheduling;
    let stateful = scheduling.stateful.unwrap_or(seen.is_some());
    if !stateful {
        let overridden = seen.map(|seen| {
            let text = format!(
                "model.toml overrides what torchlane sees in the code. The code keeps state between calls: {seen}. Because of \
                 scheduling.stateful = false, requests share passes and run at the same time. If they change this state, \
                 answers mix the data of different callers."
            );
            Decision::new("state", text)
        });
        return (false, overridden.into_iter().collect());
    }
    let (why, remedy) = match (scheduling.stateful, seen) {
        (Some(true), _) => ("scheduling.stateful = true in model.toml".to_owned(), ""),
        (_, Some(seen)) => (
            seen.to_string(),
            " If calls do not depend on each other, set scheduling.stateful = false in model.toml.",
        ),
        (_, None) => return (false, Vec::new()),
    };
    let text = format!(
        "The model keeps state between calls: {why}. This state is shared by ALL callers: each answer may depend on what other \
         callers sent before. torchlane runs one request at a time, alone, and keeps no answers.{remedy}"
    );
    let mut decisions = vec![Decision::new("state", text)];
    let mut ignored = |what, setting: String| {
        decisions.push(Decision::new(
            what,
            format!("{setting} is not honored, because the model keeps state (see state).{remedy}"),
        ));
    };
    let max_batch = manifest.batching.max_batch();
    if max_batch > 1 {
        ignored("batching", format!("A batch of {max_batch} rows (batching)"));
    }
    if scheduling.max_concurrency > 1 {
        ignored("concurrency", format!("scheduling.max_concurrency = {}", scheduling.max_concurrency));
    }
    if manifest.response_cache {
        ignored("response_cache", "response_cache = true".to_owned());
    }
    (true, decisions)
}

/// A mode for training that the code has built in, so that the flag `training` of the module does not change it.
pub fn about_training(seen: Option<&Seen>) -> Option<Decision> {
    seen.map(|seen| {
        Decision::new(
            "training",
            format!(
                "The model was exported in training mode: {seen}. Its answers are random, or depend on the other rows of a \
                 pass. torchlane serves it as it is. Call model.eval() before torch.jit.trace or torch.jit.script, and export \
                 again."
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen { what: "torch.copy_ writes to self.b".to_owned(), place: "code/__torch__.py:7".to_owned() }
    }

    fn told(seen: Option<&Seen>, manifest: &str) -> (bool, Vec<&'static str>, String) {
        let (stateful, decisions) = about_state(seen, &ModelManifest::parse(manifest).unwrap());
        let whats = decisions.iter().map(|decision| decision.what).collect();
        (
            stateful,
            whats,
            decisions.iter().map(|decision| decision.text.as_str()).collect::<Vec<_>>().join("\n"),
        )
    }

    #[test]
    fn what_is_not_honored_is_said_and_what_is_not_asked_for_is_not() {
        let asks = "response_cache = true\n[batching]\nmax_batch = 8\n[scheduling]\nmax_concurrency = 4\n";
        assert_eq!(told(None, asks), (false, vec![], String::new()));
        let (stateful, whats, text) = told(Some(&seen()), "");
        assert_eq!((stateful, whats), (true, vec!["state"]));
        assert!(text.contains("torch.copy_ writes to self.b (code/__torch__.py:7)"), "{text}");
        assert!(text.contains("ALL callers") && text.contains("scheduling.stateful = false"), "{text}");
        let (_, whats, text) = told(Some(&seen()), asks);
        assert_eq!(whats, ["state", "batching", "concurrency", "response_cache"]);
        assert!(text.contains("batch of 8 rows") && text.contains("max_concurrency = 4"), "{text}");
    }

    #[test]
    fn the_owner_has_the_last_word_and_is_named() {
        let (stateful, whats, text) = told(Some(&seen()), "[scheduling]\nstateful = false");
        assert_eq!((stateful, whats), (false, vec!["state"]));
        assert!(text.contains("overrides") && text.contains("self.b"), "{text}");
        assert_eq!(told(None, "[scheduling]\nstateful = false").1, Vec::<&str>::new());
        let (stateful, _, text) = told(None, "[scheduling]\nstateful = true");
        assert!(
            stateful && text.contains("scheduling.stateful = true") && !text.contains("= false"),
            "{text}"
        );
    }
}
