//! What one stream of requests is: `model=digits,rate=200,priority=critical,timeout=50ms`.

use std::{str::FromStr, time::Duration};

use crate::model::Lane;

/// When requests go out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// By plan, whatever the server does.
    Open {
        /// Requests a second.
        rate: f64,
        /// How they are spread.
        arrivals: Arrivals,
    },
    /// Each caller sends its next request once it has the answer to the one before.
    Closed {
        /// Callers.
        callers: usize,
    },
}

/// How the requests of an open loop are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    /// As independent callers send: now and then several at once.
    #[default]
    Poisson,
    /// Evenly.
    Constant,
}

/// One stream of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadSpec {
    /// In the report.
    pub name: String,
    /// The model.
    pub model: String,
    /// When.
    pub pace: Pace,
    /// Open loop: requests that may be unanswered at once; those that are due beyond are counted as not sent.
    pub outstanding: usize,
    /// Lane asked for.
    pub priority: Option<Lane>,
    /// Each request's deadline.
    pub timeout: Option<Duration>,
    /// Sent as `x-tenant`.
    pub tenant: Option<String>,
    /// First dimension of every input where the model leaves it open.
    pub rows: usize,
    /// Datatype and shape of inputs where the model does not say, as in `x=FP32:1x64`.
    pub inputs: Vec<(String, String, Vec<i64>)>,
}

impl Default for LoadSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            model: String::new(),
            pace: Pace::Closed { callers: 1 },
            outstanding: 20_000,
            priority: None,
            timeout: None,
            tenant: None,
            rows: 1,
            inputs: Vec::new(),
        }
    }
}

const KEYS: &str =
    "model, name, rate, callers, arrivals, outstanding, priority, timeout, tenant, rows, input.NAME";

impl FromStr for LoadSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut spec = Self::default();
        let (mut rate, mut callers, mut arrivals) = (None, None, Arrivals::default());
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("'{pair}': write key=value; keys are {KEYS}"))?;
            let wrong = |what: &str| format!("{key}={value}: {what}");
            match key {
                "model" => spec.model = value.to_owned(),
                "name" => spec.name = value.to_owned(),
                "rate" => {
                    let parsed = value.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= 1e6);
                    rate = Some(parsed.ok_or_else(|| wrong("write requests a second, up to 1000000"))?);
                }
                "callers" => {
                    let parsed = value.parse().ok().filter(|n| (1..=100_000).contains(n));
                    callers = Some(parsed.ok_or_else(|| wrong("write a number from 1 to 100000"))?);
                }
                "outstanding" => {
                    let parsed = value.parse().ok().filter(|n| (1..=1_000_000).contains(n));
                    spec.outstanding = parsed.ok_or_else(|| wrong("write a number from 1 to 1000000"))?;
                }
                "arrivals" => {
                    arrivals = match value {
                        "poisson" => Arrivals::Poisson,
                        "constant" => Arrivals::Constant,
                        _ => return Err(wrong("write poisson or constant")),
                    };
                }
                "priority" => {
                    spec.priority =
                        Some(value.parse().map_err(|_| wrong("write critical, high, normal or low"))?);
                }
                "timeout" => {
                    let parsed =
                        humantime::parse_duration(value).map_err(|_| wrong("write it as 50ms or 2s"))?;
                    spec.timeout = Some(parsed);
                }
                "tenant" => spec.tenant = Some(value.to_owned()),
                "rows" => {
                    let rows = value.parse().ok().filter(|rows| *rows > 0);
                    spec.rows = rows.ok_or_else(|| wrong("write a number from 1"))?;
                }
                _ => {
                    let name = key
                        .strip_prefix("input.")
                        .ok_or_else(|| format!("'{key}' is not known: keys are {KEYS}"))?;
                    let (datatype, shape) =
                        value.split_once(':').ok_or_else(|| wrong("write it as FP32:1x64"))?;
                    let shape = shape.split('x').map(str::parse).collect::<Result<_, _>>();
                    let shape = shape.map_err(|_| wrong("write it as FP32:1x64"))?;
                    spec.inputs.push((name.to_owned(), datatype.to_owned(), shape));
                }
            }
        }
        if spec.model.is_empty() {
            return Err(format!("'{text}' names no model: write model=NAME,rate=100"));
        }
        spec.pace = match (rate, callers) {
            (Some(_), Some(_)) => {
                return Err(format!("'{text}': rate is an open loop, callers a closed one"));
            }
            (Some(rate), None) => Pace::Open { rate, arrivals },
            (None, callers) => Pace::Closed { callers: callers.unwrap_or(1) },
        };
        if spec.name.is_empty() {
            spec.name = match spec.priority {
                Some(lane) => format!("{} {lane}", spec.model),
                None => spec.model.clone(),
            };
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_one_line() {
        let spec: LoadSpec =
            "model=cnn,rate=25,priority=critical,timeout=50ms,tenant=a,rows=2,input.x=FP32:1x3x8"
                .parse()
                .unwrap();
        assert_eq!(spec.pace, Pace::Open { rate: 25.0, arrivals: Arrivals::Poisson });
        assert_eq!((spec.name.as_str(), spec.priority, spec.rows), ("cnn CRITICAL", Some(Lane::Critical), 2));
        assert_eq!(spec.timeout, Some(Duration::from_millis(50)));
        assert_eq!(spec.inputs, [("x".to_owned(), "FP32".to_owned(), vec![1, 3, 8])]);
        assert_eq!("model=m".parse::<LoadSpec>().unwrap().pace, Pace::Closed { callers: 1 });
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (text, expect) in [
            ("rate=5", "names no model"),
            ("model=m,rate=0", "requests a second"),
            ("model=m,rate=1,callers=1", "open loop"),
            ("model=m,speed=5", "keys are"),
            ("model=m,timeout=5", "50ms"),
            ("model=m,input.x=FP32", "FP32:1x64"),
            ("m", "key=value"),
        ] {
            let error = text.parse::<LoadSpec>().unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
