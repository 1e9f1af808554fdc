//! What the console changes, where `console.admin` lets it: `POST /console/models/MODEL/reload`, `.../rollback`, `.../unload`, and
//! of a rollout `.../rollout`, `.../promote`, `.../abort`.
//!
//! A page of somebody else must not get a browser to do that. So a request must be JSON and bring a header of our own, neither of
//! which a page may send to another origin unless that agrees, which this server never does; and its origin must be this host.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    response::Response,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::transport::server::TcpConnectInfo;

use super::{Console, answer, json};
use crate::{
    admission::{ControlPlace, Errand},
    api::{
        origin,
        rest::{body, json::read, path::Path},
    },
    error::{Error, Reason, Result, shown},
    lifecycle::{
        Asker, Manager, Patch, ReloadReport, ReloadRequest, RolloutChange, RolloutState, RolloutStatus,
    },
    model::{InvalidVersion, RolloutPlan, Strategy, Version},
};

/// What a request must bring; its value does not matter.
const OWN_HEADER: &str = "x-torchlane-console";

/// Longest body: two numbers.
const LONGEST: usize = 4 << 10;

/// Time for it to arrive.
const ARRIVES: Duration = Duration::from_secs(10);

const GOES_ON: &str = "it takes longer than anybody waits here; it goes on: see the model's history";

/// How a model stands after a change.
#[derive(Debug, Serialize)]
struct Changed {
    previous_version: Option<String>,
    live_version: Option<String>,
    /// Beside the live one, where a rollout is under way after it.
    new_version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wish {
    /// Of a reload. `None`: the one that the repository is for. Of a rollout; `None`: the one under way, else the newest.
    version: Option<String>,
    /// Of a rollout: the share of the callers that see the new version. `None`: as the model's own plan has it.
    percent: Option<f64>,
}

#[derive(Debug)]
enum Change {
    Reload(Option<Version>),
    Rollback,
    Unload,
    Rollout(RolloutChange),
}

pub(super) async fn change(
    State(console): State<Arc<Console>>,
    Path((model, change)): Path<(String, String)>,
    request: Request,
) -> Response {
    answer(carry_out(&console, model, &change, request).await.and_then(|changed| json(&changed)))
}

async fn carry_out(console: &Console, model: String, change: &str, request: Request) -> Result<Changed> {
    let from = request.extensions().get::<TcpConnectInfo>().and_then(|info| info.remote_addr);
    let (parts, body) = request.into_parts();
    if !console.rights.admin {
        let message = "the console only shows: set console.admin to true to change models here";
        return Err(Error::new(Reason::Forbidden, message));
    }
    origin::own(&parts)?;
    is_meant(&parts.headers)?;
    let body = body::read(body, LONGEST, None, Instant::now() + ARRIVES).await?;
    let change = Change::read(change, &body)?;
    let errand = match &change {
        Change::Rollback | Change::Unload => Errand::Undo,
        Change::Rollout(change) if change.undoes() => Errand::Undo,
        Change::Reload(_) | Change::Rollout(_) => Errand::Change,
    };
    let (manager, asker) = (console.with.manager.clone(), asker(from));
    let deadline = Instant::now() + console.rights.patience;
    let work = |place| change.carry_out(manager, model, asker, place);
    console.with.control.run(errand, Some(deadline), GOES_ON, work).await
}

/// It is what this page sends, and no page of another origin can unless this server allows it.
fn is_meant(headers: &HeaderMap) -> Result<()> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let message = "a change is asked for in JSON: set content-type to application/json";
        return Err(Error::new(Reason::BadRequest, message).with_field("content-type"));
    }
    if !headers.contains_key(OWN_HEADER) {
        let message = format!("a change is asked for with the header {OWN_HEADER}, whatever its value");
        return Err(Error::new(Reason::Forbidden, message).with_field(OWN_HEADER));
    }
    Ok(())
}

fn asker(from: Option<SocketAddr>) -> Asker {
    let who = from.map_or_else(|| "console".to_owned(), |address| format!("console at {address}"));
    Asker::Caller(who.into())
}

impl Change {
    fn read(name: &str, body: &[u8]) -> Result<Self> {
        let text: &[u8] = if body.trim_ascii().is_empty() { b"{}" } else { body };
        let wish: Wish = read(text)?;
        let change = match name {
            "reload" => Self::Reload(wish.version()?),
            "rollback" => Self::Rollback,
            "unload" => Self::Unload,
            "rollout" => {
                let (version, plan) = (wish.version()?, plan(wish.percent));
                Self::Rollout(RolloutChange::Plan { version, plan })
            }
            "promote" => Self::Rollout(RolloutChange::Promote),
            "abort" => Self::Rollout(RolloutChange::Abort),
            _ => {
                let known = "reload, rollback, unload, rollout, promote, abort";
                let message = format!("'{}' is not one of {known}", shown(name, 32));
                return Err(Error::new(Reason::Unimplemented, message));
            }
        };
        let takes_version = matches!(name, "reload" | "rollout");
        for (is_said, is_taken, field) in [
            (wish.version.is_some(), takes_version, "version"),
            (wish.percent.is_some(), name == "rollout", "percent"),
        ] {
            if is_said && !is_taken {
                let message = format!("'{field}' means nothing to a change of this kind");
                return Err(Error::new(Reason::BadRequest, message).with_field(field));
            }
        }
        Ok(change)
    }

    async fn carry_out(
        self,
        manager: Arc<Manager>,
        model: String,
        asker: Asker,
        place: ControlPlace,
    ) -> Result<Changed> {
        match self {
            Self::Reload(version) => {
                let request = ReloadRequest { model, version, ..ReloadRequest::default() };
                manager.reload(request, asker, Some(place)).await.map(Changed::by_report)
            }
            Self::Rollback => manager.rollback(&model, asker, Some(place)).await.map(Changed::by_report),
            Self::Unload => {
                let (version, _) = manager.unload(&model, asker, Some(place)).await?;
                Ok(Changed {
                    previous_version: Some(version.to_string()),
                    live_version: None,
                    new_version: None,
                })
            }
            Self::Rollout(change) => {
                let status = manager.set_rollout(&model, change, asker, Some(place)).await?;
                Ok(Changed::by_rollout(&status))
            }
        }
    }
}

impl Wish {
    fn version(&self) -> Result<Option<Version>> {
        let Some(text) = self.version.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let wrong = |error: InvalidVersion| {
            let message = format!("version '{}': {error}", shown(text, 32));
            Error::new(Reason::BadRequest, message).with_field("version")
        };
        text.parse().map(Some).map_err(wrong)
    }
}

/// The model's own plan where it has one, else a canary; with one share of the callers where one is named.
fn plan(percent: Option<f64>) -> Patch {
    Box::new(move |mut plan: RolloutPlan| {
        if plan.strategy == Strategy::None {
            plan.strategy = Strategy::Canary;
        }
        if let Some(percent) = percent {
            (plan.percent, plan.steps) = (percent, Vec::new());
        }
        Ok(plan)
    })
}

impl Changed {
    fn by_report(report: ReloadReport) -> Self {
        let version = |version: Option<Version>| version.map(|version| version.to_string());
        Self {
            previous_version: version(report.previous),
            live_version: version(report.live),
            new_version: None,
        }
    }

    fn by_rollout(status: &RolloutStatus) -> Self {
        let (live, new) = (status.live.to_string(), status.version.to_string());
        let (live_version, new_version) = match status.state {
            RolloutState::Running => (live.clone(), Some(new)),
            RolloutState::Promoted => (new, None),
            RolloutState::RolledBack | RolloutState::Aborted => (live.clone(), None),
        };
        Self { previous_version: Some(live), live_version: Some(live_version), new_version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_what_no_form_can_send_is_meant() {
        let reason =
            |lines: &[(&'static str, &str)]| is_meant(&headers(lines)).map_err(|error| error.reason());
        let json = ("content-type", "application/json; charset=utf-8");
        let (own, host) = (("x-torchlane-console", "1"), ("host", "h:1"));
        assert_eq!(reason(&[json, own, host]), Ok(()));
        assert_eq!(reason(&[json, host]), Err(Reason::Forbidden));
        assert_eq!(reason(&[own, host]), Err(Reason::BadRequest));
        for forms in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
        {
            assert_eq!(reason(&[("content-type", forms), own, host]), Err(Reason::BadRequest), "{forms}");
        }
    }

    #[test]
    fn a_change_is_one_of_six_and_says_only_what_it_means() {
        let read = |name, body: &str| Change::read(name, body.as_bytes()).map_err(|error| error.reason());
        assert!(matches!(read("reload", ""), Ok(Change::Reload(None))));
        assert!(matches!(read("reload", r#"{"version": "12"}"#), Ok(Change::Reload(Some(Version(12))))));
        assert!(matches!(read("reload", r#"{"version": ""}"#), Ok(Change::Reload(None))));
        assert!(matches!(read("rollback", "{}"), Ok(Change::Rollback)));
        assert!(matches!(read("unload", " "), Ok(Change::Unload)));
        assert!(matches!(read("promote", "{}"), Ok(Change::Rollout(RolloutChange::Promote))));
        assert!(matches!(read("abort", "{}"), Ok(Change::Rollout(RolloutChange::Abort))));
        let begun = read("rollout", r#"{"version": "3", "percent": 25}"#).unwrap();
        let Change::Rollout(RolloutChange::Plan { version, plan }) = begun else { panic!("{begun:?}") };
        let plan = plan(RolloutPlan::default()).unwrap();
        assert_eq!((version, plan.strategy, plan.shares()), (Some(Version(3)), Strategy::Canary, vec![25.0]));
        for (name, body) in [
            ("reload", r#"{"version": "stable"}"#),
            ("reload", r#"{"percent": 5}"#),
            ("abort", r#"{"version": "1"}"#),
            ("rollout", r#"{"percent": "5"}"#),
            ("reload", r#"{"version": 2}"#),
            ("reload", r#"{"model": "other"}"#),
            ("rollback", r#"{"version": "1"}"#),
            ("unload", "[1]"),
            ("reload", "{"),
        ] {
            assert_eq!(read(name, body).unwrap_err(), Reason::BadRequest, "{name} {body}");
        }
        assert_eq!(read("delete", "{}").unwrap_err(), Reason::Unimplemented);
    }
}
