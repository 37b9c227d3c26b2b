//! Amounts of processor time as exact integers: thousandths of a core, in one spelling.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Thousandths of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(u64);

/// A text that is not an amount of processor time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a number of cores such as 2, or of thousandths of a core such as 500m")]
pub struct Error(String);

impl Cpu {
    /// So many thousandths of a core.
    pub const fn millis(count: u64) -> Self {
        Cpu(count)
    }

    /// The number of thousandths of a core.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl FromStr for Cpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (number, scale) = text.strip_suffix('m').map_or((text, 1000), |number| (number, 1));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let count = digits.then(|| number.parse::<u64>().ok()).flatten();
        count.and_then(|count| count.checked_mul(scale)).map(Cpu).ok_or_else(|| Error(text.to_owned()))
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Cpu {
    fn schema_name() -> Cow<'static, str> {
        "Cpu".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_amount_has_one_spelling() {
        for (text, canonical) in
            [("2", "2"), ("2000m", "2"), ("500m", "500m"), ("0", "0"), ("1500m", "1500m")]
        {
            assert_eq!(text.parse::<Cpu>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_named() {
        for text in ["", "m", "-1", "+1", "1.5", "1 ", "2M", "ä", "99999999999999999999"] {
            assert_eq!(text.parse::<Cpu>(), Err(Error(text.into())), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn canonical_form_reads_back(millis: u64) {
            let text = Cpu(millis).to_string();
            proptest::prop_assert_eq!(text.parse::<Cpu>().unwrap(), Cpu(millis));
        }
    }
}
