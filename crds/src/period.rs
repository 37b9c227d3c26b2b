//! Lengths of time as people write them: a whole number and one unit, `90s`, `10m`, `2h`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A whole number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(u32);

/// A text that is not a length of time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a length of time such as 90s, 10m or 2h")]
pub struct Error(String);

/// Units from the largest down: the canonical form takes the first that divides.
const UNITS: [(char, u32); 3] = [('h', 3600), ('m', 60), ('s', 1)];

impl Period {
    /// So many minutes; saturates.
    pub const fn minutes(count: u32) -> Self {
        Period(count.saturating_mul(60))
    }

    /// As a duration.
    pub const fn duration(self) -> SignedDuration {
        SignedDuration::from_secs(self.0 as i64)
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error(text.to_owned());
        let (unit, scale) = UNITS.iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(error)?;
        let number = text.strip_suffix(*unit).unwrap_or_default();
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let count = digits.then(|| number.parse::<u32>().ok()).flatten();
        count.and_then(|count| count.checked_mul(*scale)).map(Period).ok_or_else(error)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale));
        let (unit, scale) = unit.copied().unwrap_or(('s', 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_length_has_one_spelling() {
        for (text, canonical) in
            [("600s", "10m"), ("60m", "1h"), ("90s", "90s"), ("0m", "0s"), ("10m", "10m")]
        {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_length_is_named() {
        for text in ["", "s", "10", "-1s", "1m30s", "1.5h", "10 m", "99999999999s", "2000000h", "ä"] {
            assert_eq!(text.parse::<Period>(), Err(Error(text.into())), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn canonical_form_reads_back(seconds: u32) {
            let text = Period(seconds).to_string();
            proptest::prop_assert_eq!(text.parse::<Period>().unwrap(), Period(seconds));
        }
    }
}
