//! Figures: samples of one thing, what is told of them, and whether that is what was aimed at. A missed target
//! is told and is no failure: a machine may be slow. Nothing is left out, rounded away or averaged.

use serde_json::{Value, json};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Mebibytes,
    /// Of a core.
    Percent,
    Times,
}

impl Unit {
    fn render(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Mebibytes => format!("{value:.2} MiB"),
            Self::Percent => format!("{value:.1} %"),
            Self::Times => format!("{value:.0}"),
        }
    }
}

/// Which of the numbers a target is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Median,
    Max,
}

/// The most that a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    pub(super) of: Of,
    pub(super) at_most: f64,
}

/// Samples of one thing, with or without a target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) unit: Unit,
    pub(super) samples: Vec<f64>,
    pub(super) target: Option<Target>,
}

impl Figure {
    pub(super) fn new(what: impl Into<String>, unit: Unit, samples: Vec<f64>) -> Self {
        Self { what: what.into(), unit, samples, target: None }
    }

    /// With the most that it should be.
    pub(super) fn at_most(mut self, of: Of, at_most: f64) -> Self {
        self.target = Some(Target { of, at_most });
        self
    }

    /// With its samples, as it is kept.
    pub(super) fn raw(&self) -> Value {
        json!({
            "what": self.what, "samples": self.samples, "median": self.median(), "p99": self.p99(),
            "min": self.min(), "max": self.max(), "met": self.met(),
            "target": self.target.map(|target| target.at_most),
        })
    }

    pub(super) fn median(&self) -> Option<f64> {
        nearest_rank(&self.samples, 50)
    }

    /// Nearest rank: with fewer than a hundred samples it is the largest.
    pub(super) fn p99(&self) -> Option<f64> {
        nearest_rank(&self.samples, 99)
    }

    pub(super) fn min(&self) -> Option<f64> {
        nearest_rank(&self.samples, 0)
    }

    pub(super) fn max(&self) -> Option<f64> {
        nearest_rank(&self.samples, 100)
    }

    /// Whether the target is met; `None` without one, or without samples.
    pub(super) fn met(&self) -> Option<bool> {
        let target = self.target?;
        let value = match target.of {
            Of::Median => self.median(),
            Of::Max => self.max(),
        }?;
        Some(value <= target.at_most)
    }

    fn verdict(&self) -> String {
        let Some(target) = self.target else { return String::new() };
        let of = match target.of {
            Of::Median => "median",
            Of::Max => "max",
        };
        let word = match self.met() {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "not measured",
        };
        format!("{of} <= {}: {word}", self.unit.render(target.at_most))
    }

    fn cells(&self) -> [String; 7] {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| self.unit.render(value));
        [
            self.what.clone(),
            self.samples.len().to_string(),
            number(self.median()),
            number(self.p99()),
            number(self.min()),
            number(self.max()),
            self.verdict(),
        ]
    }

    /// One line for a person who watches.
    pub(super) fn line(&self) -> String {
        let [what, count, median, p99, min, max, verdict] = self.cells();
        let verdict = if verdict.is_empty() { verdict } else { format!("  [{verdict}]") };
        format!("{what}: median {median}, p99 {p99}, min {min}, max {max}, n {count}{verdict}")
    }
}

const HEAD: [&str; 7] = ["what", "n", "median", "p99", "min", "max", "target"];

/// All figures side by side, for a terminal.
pub(super) fn render(figures: &[Figure]) -> String {
    let rows: Vec<[String; 7]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(figures.iter().map(Figure::cells)).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (position, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            // Words to the left, numbers to the right.
            line.push_str(&match position {
                0 => format!("{cell:<width$}"),
                6 => format!("  {cell}"),
                _ => format!("  {cell:>width$}"),
            });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The same for a document.
pub(super) fn markdown(figures: &[Figure]) -> String {
    let mut text = format!("| {} |\n|---|---:|---:|---:|---:|---:|---|\n", HEAD.join(" | "));
    for figure in figures {
        text.push_str(&format!("| {} |\n", figure.cells().join(" | ")));
    }
    text
}

/// The smallest sample that `percent` of all do not exceed.
pub(super) fn nearest_rank(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(samples: &[f64]) -> Figure {
        Figure::new("x", Unit::Seconds, samples.to_vec()).at_most(Of::Median, 4.5)
    }

    #[test]
    fn nearest_ranks() {
        let samples: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        let figure = Figure::new("x", Unit::Times, samples);
        let all = [figure.median(), figure.p99(), figure.min(), figure.max()];
        assert_eq!(all, [Some(10.0), Some(20.0), Some(1.0), Some(20.0)]);
        let many: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(nearest_rank(&many, 99), Some(198.0));
        assert_eq!(nearest_rank(&[], 50), None);
    }

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        assert_eq!(figure(&[4.0, 4.5, 9.0]).met(), Some(true));
        assert_eq!(figure(&[4.0, 4.51, 9.0]).met(), Some(false));
        assert_eq!(figure(&[]).met(), None);
        assert!(figure(&[]).line().contains("not measured"), "{}", figure(&[]).line());
        let worst = Figure::new("x", Unit::Seconds, vec![1.0, 6.1]).at_most(Of::Max, 6.0);
        assert!(worst.line().ends_with("[max <= 6.00 s: MISSED]"), "{}", worst.line());
    }

    #[test]
    fn rows_stand_under_their_heads() {
        let text = render(&[figure(&[4.0]), Figure::new("a longer one", Unit::Mebibytes, vec![14.5])]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].find("target"), lines[1].find("median <="), "{text}");
        assert!(lines[2].starts_with("a longer one") && lines[2].contains("14.50 MiB"), "{text}");
    }
}
