//! What wants a look: what is wrong with models and with the server itself, in words that say what it means for requests.

use serde::Serialize;

use super::overview::LoadView;
use crate::lifecycle::{ModelState, ModelStatus};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// Requests are rejected or will fail.
    Bad,
    /// Requests are answered, but not as they should be.
    Warn,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Trouble {
    level: Level,
    /// `None`: it is the server's.
    model: Option<String>,
    text: String,
}

impl Trouble {
    fn of_server(level: Level, text: impl Into<String>) -> Self {
        Self { level, model: None, text: text.into() }
    }
}

/// All of it: bad things first, those of the server before those of models. `broken` is what health says of the process.
pub(super) fn all(broken: Option<String>, models: &[ModelStatus], load: Option<&LoadView>) -> Vec<Trouble> {
    let mut troubles: Vec<_> = broken.map(|text| Trouble::of_server(Level::Bad, text)).into_iter().collect();
    troubles.extend(load.map(of_load).unwrap_or_default());
    troubles.extend(models.iter().filter_map(of_model));
    troubles.sort_by_key(|trouble| trouble.level);
    troubles
}

fn of_model(status: &ModelStatus) -> Option<Trouble> {
    let trouble = |level, text| Some(Trouble { level, model: Some(status.name.to_string()), text });
    let live = status.live.as_ref().map(|live| live.version);
    if status.breaker_open {
        let version = live.map(|version| format!("version {version} ")).unwrap_or_default();
        let text = format!("{version}only fails: requests are rejected except for a trial every 1 to 30 s");
        return trouble(Level::Bad, text);
    }
    let error = status.last_error.clone()?;
    match (status.state, live) {
        (ModelState::Failed, _) => trouble(Level::Bad, format!("no version serves: {error}")),
        (_, Some(live)) => trouble(Level::Warn, format!("version {live} still serves: {error}")),
        (_, None) => trouble(Level::Warn, error),
    }
}

fn of_load(load: &LoadView) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let (healthy, all) = (load.executors.healthy, load.executors.busy_seconds.len());
    // If none is left, health says so.
    if (1..all).contains(&healthy) {
        let text = format!("{} of {all} executors are held by stuck passes", all - healthy);
        troubles.push(Trouble::of_server(Level::Warn, text));
    }
    if load.pressure.level > 0 {
        let lanes = if load.pressure.level > 1 { "LOW and NORMAL" } else { "LOW" };
        let nearest = load.pressure.ratios.iter().max_by(|a, b| a.ratio.total_cmp(&b.ratio));
        let what = nearest.map_or("something", |ratio| ratio.resource).replace('_', " ");
        let text = format!("{lanes} requests are rejected: {what} is short");
        troubles.push(Trouble::of_server(Level::Warn, text));
    }
    if load.memory.thrashing {
        let text = "models only take each other's place in memory: raise memory.budget or pin some";
        troubles.push(Trouble::of_server(Level::Warn, text));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::LiveStatus;

    fn live() -> Option<LiveStatus> {
        super::super::models::tests::status().live
    }

    #[test]
    fn what_is_worst_stands_first_and_healthy_models_are_left_out() {
        let healthy =
            ModelStatus { live: live(), breaker_open: false, ..super::super::models::tests::status() };
        let named = |name: &str, status: ModelStatus| ModelStatus { name: name.parse().unwrap(), ..status };
        let behind = ModelStatus { last_error: Some("version 9: load failed".into()), ..healthy.clone() };
        let open = ModelStatus { breaker_open: true, ..healthy.clone() };
        let failed = ModelStatus {
            live: None,
            state: ModelState::Failed,
            last_error: Some("load failed".into()),
            ..healthy.clone()
        };
        let models = [named("a", behind), named("b", healthy), named("c", open), named("d", failed)];
        let told: Vec<_> = all(Some("stuck".to_owned()), &models, None)
            .into_iter()
            .map(|t| (t.model.unwrap_or_default(), t.level, t.text))
            .collect();
        let names: Vec<_> = told.iter().map(|(name, level, _)| (name.as_str(), *level)).collect();
        assert_eq!(names, [("", Level::Bad), ("c", Level::Bad), ("d", Level::Bad), ("a", Level::Warn)]);
        assert!(told[1].2.contains("only fails") && told[2].2 == "no version serves: load failed");
        assert!(told[3].2.contains("still serves: version 9"), "{told:?}");
    }
}
