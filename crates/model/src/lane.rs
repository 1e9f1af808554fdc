//! Priority classes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::shown;

/// A priority class. Ordered: the smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Lane {
    /// An emergency scan.
    Critical,
    /// A person is waiting.
    High,
    /// The default.
    Normal,
    /// Batch jobs: whatever is left over, but never nothing.
    Low,
}

/// Neither a lane's name nor its number.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("priority '{0}' is not one of CRITICAL, HIGH, NORMAL, LOW or 1 to 4")]
pub struct UnknownLane(String);

impl Lane {
    /// From the most to the least urgent.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Position in [`Lane::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name, as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "CRITICAL",
            Self::High => "HIGH",
            Self::Normal => "NORMAL",
            Self::Low => "LOW",
        }
    }

    /// The lane for a number as the Open Inference Protocol uses it: 0 is unset, 1 the highest, above 4 is LOW.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::Critical),
            2 => Some(Self::High),
            3 => Some(Self::Normal),
            _ => Some(Self::Low),
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Lane {
    type Err = UnknownLane;

    fn from_str(text: &str) -> Result<Self, UnknownLane> {
        let by_name = Self::ALL.into_iter().find(|lane| text.eq_ignore_ascii_case(lane.as_str()));
        // As people count them. Above 4 are the protocol's numbers alone, whose levels a server may have fewer of.
        let by_number = || text.parse().ok().filter(|number| *number <= 4).and_then(Self::from_number);
        by_name.or_else(by_number).ok_or_else(|| UnknownLane(shown(text, 32).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_both_work() {
        assert_eq!("critical".parse(), Ok(Lane::Critical));
        assert_eq!("4".parse(), Ok(Lane::Low));
        assert_eq!(Lane::from_number(9), Some(Lane::Low), "as the protocol has it");
        for text in ["5", "7", "18446744073709551615", "-1"] {
            assert!(text.parse::<Lane>().is_err(), "{text}");
        }
        assert!("0".parse::<Lane>().is_err());
        assert!("urgent".parse::<Lane>().is_err());
    }

    #[test]
    fn the_most_urgent_sorts_first() {
        assert!(Lane::ALL.is_sorted());
    }
}
