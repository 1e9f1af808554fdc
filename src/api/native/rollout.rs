//! Messages about rollouts.

use std::time::Duration;

use crate::{
    error::{Error, Reason, Result, shown},
    lifecycle::{Patch, RolloutChange, RolloutState, RolloutStatus},
    model::{InvalidVersion, RolloutPlan, Strategy},
    proto::{self, RolloutAction, RolloutStrategy},
    rollout::{BAR, SideSeen, checks},
};

/// What a caller wants of a rollout.
///
/// # Errors
/// An action or a version that cannot be read.
pub(super) fn change(request: proto::SetRolloutRequest) -> Result<RolloutChange> {
    let unknown = |_| {
        let message = format!("action {} is not one of PLAN, PROMOTE, ABORT", request.action);
        Error::new(Reason::BadRequest, message).with_field("action")
    };
    Ok(match RolloutAction::try_from(request.action).map_err(unknown)? {
        RolloutAction::Promote => RolloutChange::Promote,
        RolloutAction::Abort => RolloutChange::Abort,
        RolloutAction::Plan => {
            let wrong = |error: InvalidVersion| {
                let message = format!("version '{}': {error}", shown(&request.version, 32));
                Error::new(Reason::BadRequest, message).with_field("version")
            };
            let version = Some(request.version.as_str()).filter(|text| !text.is_empty());
            let version = version.map(str::parse).transpose().map_err(wrong)?;
            RolloutChange::Plan { version, plan: patch(request.plan.unwrap_or_default()) }
        }
    })
}

fn patch(said: proto::RolloutPlan) -> Patch {
    Box::new(move |base| patched(base, said))
}

/// `base` with what was said in its place.
fn patched(mut plan: RolloutPlan, said: proto::RolloutPlan) -> Result<RolloutPlan> {
    let wrong = |message: &'static str| Error::new(Reason::BadRequest, message).with_field("plan");
    let strategy = RolloutStrategy::try_from(said.strategy);
    match strategy.map_err(|_| wrong("strategy is not one of CANARY, SHADOW, AB"))? {
        RolloutStrategy::Unspecified => {}
        RolloutStrategy::Canary => plan.strategy = Strategy::Canary,
        RolloutStrategy::Shadow => plan.strategy = Strategy::Shadow,
        RolloutStrategy::Ab => plan.strategy = Strategy::Ab,
    }
    if let Some(percent) = said.percent {
        // Whoever names one percent means that one, and not steps from before.
        (plan.percent, plan.steps) = (percent, Vec::new());
    }
    if !said.steps.is_empty() {
        plan.steps = said.steps;
    }
    if !said.header.is_empty() {
        (plan.header, plan.value) = (said.header, said.value);
    }
    if !said.tenants.is_empty() {
        plan.tenants = said.tenants;
    }
    if let Some(after) = said.promote_after {
        let after = Duration::try_from(after).map_err(|_| wrong("promote_after is negative"))?;
        plan.set_promote_after(after);
    }
    let RolloutPlan { min_requests, max_errors, max_latency_ratio, max_difference, max_drift, .. } = plan;
    plan.min_requests = said.min_requests.unwrap_or(min_requests);
    plan.max_errors = said.max_errors.unwrap_or(max_errors);
    plan.max_latency_ratio = said.max_latency_ratio.unwrap_or(max_latency_ratio);
    plan.max_difference = said.max_difference.or(max_difference);
    plan.max_drift = said.max_drift.unwrap_or(max_drift);
    if let Some(compare) = said.compare {
        plan.set_compare(compare);
    }
    Ok(plan)
}

fn plan(plan: &RolloutPlan) -> proto::RolloutPlan {
    let strategy = match plan.strategy {
        Strategy::None => RolloutStrategy::Unspecified,
        Strategy::Canary => RolloutStrategy::Canary,
        Strategy::Shadow => RolloutStrategy::Shadow,
        Strategy::Ab => RolloutStrategy::Ab,
    };
    proto::RolloutPlan {
        strategy: strategy.into(),
        percent: Some(plan.percent),
        steps: plan.steps.clone(),
        header: plan.header.clone(),
        value: plan.value.clone(),
        tenants: plan.tenants.clone(),
        promote_after: plan.promote_after().unwrap_or_default().try_into().ok(),
        min_requests: Some(plan.min_requests),
        max_errors: Some(plan.max_errors),
        max_latency_ratio: Some(plan.max_latency_ratio),
        max_difference: plan.max_difference,
        max_drift: Some(plan.max_drift),
        compare: Some(plan.mirrored()),
    }
}

fn side(seen: &SideSeen) -> proto::RolloutSide {
    let duration = |duration: Duration| duration.try_into().ok();
    proto::RolloutSide {
        answered: seen.answered,
        failed: seen.failed,
        late: seen.late,
        p50: duration(seen.p50),
        p99: duration(seen.p99),
        compute_p50: duration(seen.compute_p50),
        compute_p99: duration(seen.compute_p99),
    }
}

/// How it stands; `None`: there has been none.
pub(super) fn rollout(model: String, status: Option<RolloutStatus>) -> proto::Rollout {
    let Some(status) = status else { return proto::Rollout { model, ..proto::Rollout::default() } };
    let state = match status.state {
        RolloutState::Running => proto::RolloutState::Running,
        RolloutState::Promoted => proto::RolloutState::Promoted,
        RolloutState::RolledBack => proto::RolloutState::RolledBack,
        RolloutState::Aborted => proto::RolloutState::Aborted,
    };
    let seen = &status.seen;
    let check = |check: crate::rollout::Check| proto::RolloutCheck {
        name: check.name.to_owned(),
        evidence: (check.log_evidence / BAR).clamp(0.0, 1.0),
        text: check.text,
    };
    proto::Rollout {
        model: status.model.to_string(),
        state: state.into(),
        version: status.version.to_string(),
        live_version: status.live.to_string(),
        plan: Some(plan(&status.plan)),
        percent: status.percent,
        step: u32::try_from(status.step).unwrap_or(u32::MAX),
        since: Some(status.since.into()),
        ended: status.ended.map(Into::into),
        live: Some(side(&seen.live)),
        candidate: Some(side(&seen.candidate)),
        fallbacks: seen.fallbacks,
        compared: seen.comparisons().of,
        different: seen.comparisons().hits,
        dropped: seen.dropped,
        largest_difference: seen.largest_difference,
        mean_difference: seen.mean_difference,
        checks: checks(&status.plan, seen).map(check).into(),
        verdict: status.verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stands_in_the_place_of_what_was() {
        let base = RolloutPlan {
            strategy: Strategy::Canary,
            steps: vec![1.0, 50.0],
            max_errors: 0.02,
            ..RolloutPlan::default()
        };
        assert_eq!(patched(base.clone(), proto::RolloutPlan::default()).unwrap(), base);
        let said = proto::RolloutPlan { percent: Some(25.0), compare: Some(3.0), ..Default::default() };
        let plan = patched(base, said).unwrap();
        assert_eq!((plan.shares(), plan.mirrored(), plan.max_errors), (vec![25.0], 3.0, 0.02));
        let odd = proto::RolloutPlan { strategy: 9, ..Default::default() };
        assert_eq!(patched(plan, odd).unwrap_err().reason(), Reason::BadRequest);
    }

    #[test]
    fn a_plan_survives_the_way_there_and_back() {
        let there = RolloutPlan {
            strategy: Strategy::Ab,
            header: "x-experiment".to_owned(),
            value: "b".to_owned(),
            tenants: vec!["lab".to_owned()],
            max_difference: Some(0.5),
            ..RolloutPlan::default()
        };
        let mut back = patched(RolloutPlan::default(), plan(&there)).unwrap();
        back.set_promote_after(Duration::ZERO);
        back.set_compare(there.mirrored());
        assert_eq!(plan(&back), plan(&there));
    }
}
