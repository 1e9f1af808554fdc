//! Goes over everything that a config sets, and collects what is not heeded.

use std::fmt;

use prost_reflect::{DynamicMessage, MapKey, Value};
use torchlane_proto::inference::{ModelConfig, model_config::SchedulingChoice, model_instance_group::Kind};

use super::{
    ConfigError,
    fields::{Fate, fate},
    parameters,
};

/// A field of a config that is not heeded. Answers are right all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Its full name, as `instance_group[0].gpus`.
    pub field: String,
    /// Why, or what to use instead.
    pub why: String,
}

impl Warning {
    pub(super) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "config.pbtxt: {}: {}", self.field, self.why)
    }
}

/// Everything that is not heeded.
///
/// # Errors
/// The first field that is refused.
pub(super) fn all(message: &DynamicMessage, config: &ModelConfig) -> Result<Vec<Warning>, ConfigError> {
    let mut warnings = Vec::new();
    fields_of(message, &Place::default(), &mut warnings)?;
    by_value(config, &mut warnings);
    parameters::judge(&config.parameters, &mut warnings);
    Ok(warnings)
}

/// Where a value stands.
#[derive(Debug, Clone, Default)]
struct Place {
    /// By the names of fields alone, as the table has it.
    path: String,
    /// With positions and keys, for people.
    shown: String,
}

impl Place {
    fn field(&self, name: &str) -> Self {
        let below = |place: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
        Self { path: below(&self.path), shown: below(&self.shown) }
    }

    fn item(&self, which: impl fmt::Debug) -> Self {
        Self { path: self.path.clone(), shown: format!("{}[{which:?}]", self.shown) }
    }
}

fn fields_of(message: &DynamicMessage, at: &Place, warnings: &mut Vec<Warning>) -> Result<(), ConfigError> {
    for (field, value) in message.fields() {
        let place = at.field(field.name());
        match fate(&place.path) {
            Some(Fate::Mapped | Fate::Idle) => {}
            Some(Fate::Warned(why)) => warnings.push(Warning::new(place.shown, why)),
            Some(Fate::Refused(why)) => return Err(ConfigError::refused(place.shown, why)),
            None => inside(value, &place, warnings)?,
        }
    }
    Ok(())
}

fn inside(value: &Value, at: &Place, warnings: &mut Vec<Warning>) -> Result<(), ConfigError> {
    match value {
        Value::Message(message) => fields_of(message, at, warnings),
        Value::List(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(position, item)| inside(item, &at.item(position), warnings)),
        Value::Map(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            entries.into_iter().try_for_each(|(key, item)| {
                let place = match key {
                    MapKey::String(key) => at.item(key),
                    other => at.item(other),
                };
                inside(item, &place, warnings)
            })
        }
        // A test sees to it that the table has every field; better a word too many than none.
        _ => {
            warnings.push(Warning::new(&at.shown, "torchlane does not know this field"));
            Ok(())
        }
    }
}

/// Fields that are mapped, but for some values.
fn by_value(config: &ModelConfig, warnings: &mut Vec<Warning>) {
    for (position, group) in config.instance_group.iter().enumerate() {
        if group.kind() == Kind::Gpu {
            let why = "there is no GPU: the model runs on the CPU, and the count is not heeded";
            warnings.push(Warning::new(format!("instance_group[{position}].kind"), why));
        }
    }
    let Some(SchedulingChoice::DynamicBatching(batching)) = &config.scheduling_choice else { return };
    if batching.priority_levels > 4 {
        let why = format!("there are four lanes: levels 4 to {} are all LOW", batching.priority_levels);
        warnings.push(Warning::new("dynamic_batching.priority_levels", why));
    }
}
