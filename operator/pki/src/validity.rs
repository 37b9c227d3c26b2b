//! The period of a certificate: decided from the caller's clock and lifetime, never from a clock here. Refuses
//! empty and inverted periods.

use jiff::{SignedDuration, Timestamp};
use time::OffsetDateTime;

use crate::Error;

/// How far a new certificate is backdated, so that a machine whose clock is behind accepts it.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// 1950-01-01T00:00:00Z, where the time format of a certificate begins.
const FIRST_SECOND: i64 = -631_152_000;

/// The first and last second of a certificate. Fractions of a second are cut off when a certificate is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: Timestamp,
    /// Last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// The period that ends `lifetime` after `now` and starts [`CLOCK_SKEW`] before it.
    ///
    /// An end that no timestamp can hold becomes the latest one. A lifetime that is not positive gives an empty or
    /// inverted period without backdating, which is refused when it is used.
    #[must_use]
    pub fn starting(now: Timestamp, lifetime: SignedDuration) -> Self {
        if !lifetime.is_positive() {
            return Self { not_before: now, not_after: now.checked_add(lifetime).unwrap_or(Timestamp::MIN) };
        }
        Self {
            not_before: now.checked_sub(CLOCK_SKEW).unwrap_or(Timestamp::MIN),
            not_after: now.checked_add(lifetime).unwrap_or(Timestamp::MAX),
        }
    }

    /// Both ends as a certificate writes them, or why it can't.
    pub(crate) fn encode(self) -> Result<(OffsetDateTime, OffsetDateTime), Error> {
        let refuse =
            |reason| Error::Validity { not_before: self.not_before, not_after: self.not_after, reason };
        let (start, end) = (self.not_before.as_second(), self.not_after.as_second());
        if start >= end {
            return Err(refuse("it is empty: not_after must be at least one second later than not_before"));
        }
        if start < FIRST_SECOND {
            return Err(refuse("a certificate cannot start before the year 1950"));
        }
        let encode = |second| {
            OffsetDateTime::from_unix_timestamp(second).map_err(|_| refuse("it is later than the year 9999"))
        };
        Ok((encode(start)?, encode(end)?))
    }
}
