//! The steps of an ensemble, and which may run when. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use thiserror::Error;

use crate::{ModelName, VersionWish};

/// A `[[steps]]` entry of `model.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The model that it runs.
    pub model: String,
    /// Which version of it: a number or a label. Empty: the live one.
    #[serde(default)]
    pub version: String,
    /// The model's own name of each input, and the ensemble's tensor that goes there.
    pub inputs: BTreeMap<String, String>,
    /// The model's own name of each output that is wanted, and what it is called in the ensemble.
    pub outputs: BTreeMap<String, String>,
}

/// What is wrong with an ensemble. One line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// More than anybody needs.
    #[error("{0} steps, at most {MOST_STEPS} are run")]
    TooMany(usize),
    /// A name that no model can have.
    #[error("step {step}: '{model}' cannot be a model's name")]
    Model {
        /// The step, from 0.
        step: usize,
        /// Its model.
        model: String,
    },
    /// Neither a number nor a label.
    #[error("step {step} ({model}): version '{version}' is neither a number nor a label")]
    Version {
        /// The step, from 0.
        step: usize,
        /// Its model.
        model: String,
        /// Its version.
        version: String,
    },
    /// It would run for nothing.
    #[error("step {step} ({model}) has no outputs: name those that others take")]
    NoOutputs {
        /// The step, from 0.
        step: usize,
        /// Its model.
        model: String,
    },
    /// It is made twice, or it is an input of the ensemble.
    #[error("tensor '{0}' is made twice: an input of the ensemble or an output of one step")]
    MadeTwice(String),
    /// Nobody makes it.
    #[error(
        "tensor '{tensor}', which {by} takes, is neither an input of the ensemble nor an output of a step"
    )]
    NeverMade {
        /// The tensor.
        tensor: String,
        /// Who takes it.
        by: String,
    },
    /// Steps wait for each other.
    #[error("steps that wait for each other's outputs: {0}")]
    Circle(String),
    /// Sent for nothing.
    #[error("input '{0}' of the ensemble goes to no step")]
    Unused(String),
    /// Made for nothing.
    #[error(
        "tensor '{tensor}', which step {step} ({model}) makes, goes nowhere: leave it out of the step's outputs"
    )]
    MadeForNothing {
        /// The tensor.
        tensor: String,
        /// The step, from 0.
        step: usize,
        /// Its model.
        model: String,
    },
}

/// More steps than this are refused.
const MOST_STEPS: usize = 64;

/// Checked steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
    /// Tensors by number: inputs of the ensemble first.
    names: Vec<String>,
    inputs: usize,
    /// By step: the tensors that it takes, by its own names.
    takes: Vec<Vec<(String, usize)>>,
    /// By step: the tensors that it makes, by its own names.
    makes: Vec<Vec<(String, usize)>>,
    /// The outputs of the ensemble.
    outputs: Vec<usize>,
}

impl Plan {
    /// Checks `steps` of an ensemble with these inputs and outputs.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new<'a>(
        steps: &[Step],
        inputs: impl Iterator<Item = &'a str>,
        outputs: impl Iterator<Item = &'a str>,
    ) -> Result<Self, PlanError> {
        if steps.len() > MOST_STEPS {
            return Err(PlanError::TooMany(steps.len()));
        }
        let mut names: Vec<String> = inputs.map(str::to_owned).collect();
        let inputs = names.len();
        let mut numbers: HashMap<String, usize> =
            names.iter().enumerate().map(|(number, name)| (name.clone(), number)).collect();
        let mut makes = Vec::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            let model = || step.model.clone();
            if step.model.parse::<ModelName>().is_err() {
                return Err(PlanError::Model { step: at, model: model() });
            }
            if VersionWish::parse(&step.version).is_none() {
                let version = step.version.clone();
                return Err(PlanError::Version { step: at, model: model(), version });
            }
            if step.outputs.is_empty() {
                return Err(PlanError::NoOutputs { step: at, model: model() });
            }
            let mut made = Vec::with_capacity(step.outputs.len());
            for (own, tensor) in &step.outputs {
                if numbers.insert(tensor.clone(), names.len()).is_some() {
                    return Err(PlanError::MadeTwice(tensor.clone()));
                }
                made.push((own.clone(), names.len()));
                names.push(tensor.clone());
            }
            makes.push(made);
        }
        let find = |tensor: &str, by: &dyn Fn() -> String| {
            let missing = || PlanError::NeverMade { tensor: tensor.to_owned(), by: by() };
            numbers.get(tensor).copied().ok_or_else(missing)
        };
        let mut takes = Vec::with_capacity(steps.len());
        let mut used = BTreeSet::new();
        for (at, step) in steps.iter().enumerate() {
            let mut taken = Vec::with_capacity(step.inputs.len());
            for (own, tensor) in &step.inputs {
                let number = find(tensor, &|| format!("step {at} ({})", step.model))?;
                used.insert(number);
                taken.push((own.clone(), number));
            }
            takes.push(taken);
        }
        let outputs = outputs.map(|output| find(output, &|| "the ensemble's answer".to_owned()));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        used.extend(&outputs);
        if let Some(unused) = (0..names.len()).find(|number| !used.contains(number)) {
            let tensor = names.swap_remove(unused);
            let by = |made: &Vec<(String, usize)>| made.iter().any(|(_, number)| *number == unused);
            let step = makes.iter().position(by).and_then(|at| Some((at, steps.get(at)?.model.clone())));
            return Err(match step {
                None => PlanError::Unused(tensor),
                Some((step, model)) => PlanError::MadeForNothing { tensor, step, model },
            });
        }
        let plan = Self { steps: steps.to_vec(), names, inputs, takes, makes, outputs };
        plan.runs_through()?;
        Ok(plan)
    }

    /// That every step's turn comes.
    fn runs_through(&self) -> Result<(), PlanError> {
        let mut progress = Progress::new(self);
        let mut ready = progress.begin();
        while let Some(step) = ready.pop() {
            ready.extend(progress.done(step));
        }
        let mut stuck: Vec<usize> = (0..self.steps.len())
            .filter(|step| progress.waits_for.get(*step).is_some_and(|left| *left > 0))
            .collect();
        // What only waits for a circle is in none: nobody who is stuck waits for it.
        while let Some(at) =
            stuck.iter().position(|step| !stuck.iter().any(|other| self.feeds(*step, *other)))
        {
            stuck.remove(at);
        }
        let stuck: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        if stuck.is_empty() { Ok(()) } else { Err(PlanError::Circle(stuck.join(", "))) }
    }

    /// Whether `taker` takes what `maker` makes.
    fn feeds(&self, maker: usize, taker: usize) -> bool {
        self.makes(maker).iter().any(|(_, made)| self.takes(taker).iter().any(|(_, taken)| made == taken))
    }

    /// The steps, in the order of `model.toml`.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many tensors there are, inputs of the ensemble included.
    pub fn tensors(&self) -> usize {
        self.names.len()
    }

    /// The number of an input of the ensemble.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.names.iter().take(self.inputs).position(|own| own == name)
    }

    /// What a step takes: by its own names, the numbers of tensors.
    pub fn takes(&self, step: usize) -> &[(String, usize)] {
        self.takes.get(step).map_or(&[], Vec::as_slice)
    }

    /// What a step makes, likewise.
    pub fn makes(&self, step: usize) -> &[(String, usize)] {
        self.makes.get(step).map_or(&[], Vec::as_slice)
    }

    /// Name and number of each output of the ensemble.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, usize)> {
        self.outputs.iter().filter_map(|number| Some((self.names.get(*number)?.as_str(), *number)))
    }
}

/// Which steps have run.
#[derive(Debug)]
pub struct Progress<'a> {
    plan: &'a Plan,
    /// By step: distinct tensors that are not there yet.
    waits_for: Vec<usize>,
    there: Vec<bool>,
}

impl<'a> Progress<'a> {
    /// None of them has.
    pub fn new(plan: &'a Plan) -> Self {
        let distinct = |takes: &Vec<(String, usize)>| {
            takes.iter().map(|(_, tensor)| *tensor).collect::<BTreeSet<_>>().len()
        };
        let waits_for = plan.takes.iter().map(distinct).collect();
        Self { plan, waits_for, there: vec![false; plan.names.len()] }
    }

    /// The ensemble's inputs are there: the steps that need no more. Those that need none at all are among them.
    pub fn begin(&mut self) -> Vec<usize> {
        let mut ready: Vec<usize> =
            (0..self.waits_for.len()).filter(|step| self.waits_for.get(*step) == Some(&0)).collect();
        for tensor in 0..self.plan.inputs {
            ready.extend(self.arrived(tensor));
        }
        ready
    }

    /// A step has run: those that needed nothing else.
    pub fn done(&mut self, step: usize) -> Vec<usize> {
        let plan = self.plan;
        plan.makes(step).iter().flat_map(|(_, tensor)| self.arrived(*tensor)).collect()
    }

    fn arrived(&mut self, tensor: usize) -> Vec<usize> {
        match self.there.get_mut(tensor) {
            Some(there) if !*there => *there = true,
            _ => return Vec::new(),
        }
        let plan = self.plan;
        let takers =
            plan.takes.iter().enumerate().filter(|(_, takes)| takes.iter().any(|(_, t)| *t == tensor));
        let mut ready = Vec::new();
        for (step, _) in takers {
            if let Some(left) = self.waits_for.get_mut(step) {
                *left -= 1;
                if *left == 0 {
                    ready.push(step);
                }
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(model: &str, inputs: &[(&str, &str)], outputs: &[(&str, &str)]) -> Step {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(own, tensor)| ((*own).to_owned(), (*tensor).to_owned())).collect()
        };
        Step { model: model.into(), version: String::new(), inputs: map(inputs), outputs: map(outputs) }
    }

    fn plan(steps: &[Step]) -> Result<Plan, PlanError> {
        Plan::new(steps, ["in"].into_iter(), ["out"].into_iter())
    }

    #[test]
    fn steps_run_as_soon_as_their_tensors_are_there() {
        let steps = [
            step("join", &[("a", "left"), ("b", "right"), ("c", "left")], &[("y", "out")]),
            step("l", &[("x", "in")], &[("y", "left")]),
            step("r", &[("x", "in")], &[("y", "right")]),
        ];
        let plan = plan(&steps).unwrap();
        let mut progress = Progress::new(&plan);
        assert_eq!(progress.begin(), [1, 2]);
        assert_eq!(progress.done(2), [0; 0]);
        assert_eq!(progress.done(1), [0]);
        assert_eq!(plan.outputs().collect::<Vec<_>>(), [("out", 1)]);
    }

    #[test]
    fn what_cannot_run_is_said() {
        let good = || step("m", &[("x", "in")], &[("y", "out")]);
        assert!(plan(&[good()]).is_ok());
        let cases = [
            (vec![good(), good()], "'out' is made twice"),
            (vec![step("m", &[("x", "in")], &[("y", "in")])], "'in' is made twice"),
            (vec![step("m", &[("x", "in")], &[("y", "other")])], "'out', which the ensemble's answer takes"),
            (vec![step("m", &[("x", "z")], &[("y", "out")])], "'z', which step 0 (m) takes"),
            (
                vec![
                    good(),
                    step("m", &[("x", "b")], &[("y", "a")]),
                    step("m", &[("x", "a"), ("z", "in")], &[("y", "b")]),
                ],
                "each other's outputs: 1, 2",
            ),
            (
                vec![
                    step("m", &[("x", "b"), ("z", "in")], &[("y", "out")]),
                    step("m", &[("x", "b")], &[("y", "b")]),
                ],
                "each other's outputs: 1",
            ),
            (
                vec![good(), step("n", &[("x", "in")], &[("y", "a")])],
                "'a', which step 1 (n) makes, goes nowhere",
            ),
            (vec![step("m", &[("x", "out")], &[("y", "out")])], "goes to no step"),
            (vec![step("a/b", &[("x", "in")], &[("y", "out")])], "'a/b' cannot be a model's name"),
            (vec![step("m", &[("x", "in")], &[])], "has no outputs"),
            (vec![Step { version: "A b".into(), ..good() }], "version 'A b'"),
            (vec![], "'out', which the ensemble's answer"),
        ];
        for (steps, expected) in cases {
            let error = plan(&steps).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        /// Step `n` takes any tensors made before it, in an order of their own in the file.
        #[test]
        fn whatever_has_no_circle_runs_each_step_once(
            takes in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..12),
            order in any::<u64>(),
        ) {
            let mut steps: Vec<Step> = takes
                .iter()
                .enumerate()
                .map(|(n, takes)| {
                    let inputs = takes.iter().enumerate().map(|(own, index)| {
                        let of = index.index(n + 1);
                        (own.to_string(), if of == 0 { "in".to_owned() } else { format!("t{}", of - 1) })
                    });
                    let inputs = inputs.chain([("all".to_owned(), "in".to_owned())]).collect();
                    let outputs = [("y".to_owned(), format!("t{n}"))].into();
                    Step { model: "m".into(), version: String::new(), inputs, outputs }
                })
                .collect();
            let made: Vec<String> = (0..takes.len()).map(|n| format!("t{n}")).collect();
            fastrand::Rng::with_seed(order).shuffle(&mut steps);
            let plan = Plan::new(&steps, ["in"].into_iter(), made.iter().map(String::as_str)).unwrap();
            let mut progress = Progress::new(&plan);
            let (mut ready, mut ran) = (progress.begin(), Vec::new());
            while let Some(step) = ready.pop() {
                ran.push(step);
                ready.extend(progress.done(step));
            }
            ran.sort_unstable();
            prop_assert_eq!(ran, (0..steps.len()).collect::<Vec<_>>());
        }
    }
}
