//! Byte quantities as exact integers.
//!
//! Kubernetes accepts many spellings of one number (`1024Mi`, `1Gi`, `1073741824`). Comparing spellings would see
//! differences where there are none, so a quantity is parsed once and always written in one canonical form.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u64);

/// Why a text is not a byte quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not of the form `<number><suffix>`.
    #[error("'{0}' is not a quantity of bytes such as 8Gi or 500M")]
    Form(String),
    /// Larger than 2^64 - 1 bytes.
    #[error("'{0}' is larger than this program can count")]
    Range(String),
    /// A fraction of a byte.
    #[error("'{0}' is not a whole number of bytes")]
    Fraction(String),
}

/// Suffixes from the largest down, powers of two first: the canonical form takes the first that divides.
const SUFFIXES: [(&str, u64); 13] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("E", 1_000_000_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
    ("", 1),
];

impl Quantity {
    /// So many times 2^30 bytes; saturates.
    pub const fn gibibytes(count: u64) -> Self {
        Quantity(count.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let form = || Error::Form(text.to_owned());
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at_checked(split).ok_or_else(form)?;
        let scale =
            SUFFIXES.iter().find(|(name, _)| *name == suffix).map(|(_, scale)| *scale).ok_or_else(form)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 {
            return Err(form());
        }
        let range = || Error::Range(text.to_owned());
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| range())? };
        let mut bytes = u128::from(whole) * u128::from(scale);
        if !fraction.is_empty() {
            let digits: u128 = fraction.parse().map_err(|_| form())?;
            let unit = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| form())?);
            let scaled = digits * u128::from(scale);
            if !scaled.is_multiple_of(unit) {
                return Err(Error::Fraction(text.to_owned()));
            }
            bytes += scaled / unit;
        }
        u64::try_from(bytes).map(Quantity).map_err(|_| range())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (suffix, scale) = SUFFIXES
            .iter()
            .find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale))
            .copied()
            .unwrap_or(("", 1));
        write!(f, "{}{suffix}", self.0 / scale)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_has_one_spelling() {
        for (text, canonical) in [
            ("1024Mi", "1Gi"),
            ("1073741824", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1Ei", "1Ei"),
            ("500M", "500M"),
            ("0", "0"),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_named() {
        for text in ["", "Gi", ".", "1..2", "-1Gi", "1 Gi", "1gi", "ä"] {
            assert_eq!(text.parse::<Quantity>(), Err(Error::Form(text.into())), "{text}");
        }
        assert_eq!("17Ei".parse::<Quantity>(), Err(Error::Range("17Ei".into())));
        assert_eq!("0.3".parse::<Quantity>(), Err(Error::Fraction("0.3".into())));
    }

    proptest::proptest! {
        #[test]
        fn canonical_form_reads_back(bytes: u64) {
            let text = Quantity(bytes).to_string();
            proptest::prop_assert_eq!(text.parse::<Quantity>().unwrap(), Quantity(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
