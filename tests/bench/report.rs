//! The table of what was measured.

use std::fmt;
use std::time::Duration;

/// What a number must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtMost(limit) => measured <= limit,
            Self::AtLeast(limit) => measured >= limit,
        }
    }
}

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    limit: String,
    verdict: &'static str,
}

/// Rows in the order in which they were measured.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// A number that has a limit.
    pub(crate) fn judge(&mut self, what: &str, measured: f64, unit: &str, limit: Limit) {
        let (sign, number) = match limit {
            Limit::AtMost(number) => ("<=", number),
            Limit::AtLeast(number) => (">=", number),
        };
        self.push(Row {
            what: what.to_owned(),
            measured: shown(measured, unit),
            limit: format!("{sign} {}", shown(number, unit)),
            verdict: if limit.holds(measured) { "ok" } else { "OVER" },
        });
    }

    /// A number that stands behind others.
    pub(crate) fn note(&mut self, what: &str, measured: f64, unit: &str) {
        let measured = shown(measured, unit);
        self.push(Row { what: what.to_owned(), measured, limit: String::new(), verdict: "" });
    }

    /// A measure that could not be made.
    pub(crate) fn failed(&mut self, what: &str) {
        let (measured, limit) = ("not measured: see above".to_owned(), String::new());
        self.push(Row { what: what.to_owned(), measured, limit, verdict: "FAILED" });
    }

    fn push(&mut self, row: Row) {
        eprintln!("  {}: {} {}", row.what, row.measured, row.verdict);
        self.0.push(row);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<62} {:>14} {:>16}", "what", "measured", "limit")?;
        for Row { what, measured, limit, verdict } in &self.0 {
            writeln!(f, "{what:<62} {measured:>14} {limit:>16}  {verdict}")?;
        }
        let over = self.0.iter().filter(|row| !matches!(row.verdict, "ok" | "")).count();
        if over == 0 {
            writeln!(f, "\nall within their limits")
        } else {
            writeln!(f, "\n{over} OVER")
        }
    }
}

fn shown(number: f64, unit: &str) -> String {
    let digits = match number.abs() {
        n if n >= 1000.0 => 0,
        n if n >= 20.0 => 1,
        _ => 2,
    };
    let text = format!("{number:.digits$} {unit}");
    text.trim_end().to_owned()
}

/// The middle one of an odd number of measures.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
