//! Lines for the person at the terminal. The one place that writes to standard output; a closed pipe is no
//! reason to stop building, so write errors are ignored here on purpose.

use std::io::Write;

/// Writes one line to standard output.
pub fn say(line: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", line.as_ref());
    let _ = out.flush();
}

/// Writes one line to standard error.
pub fn complain(line: impl AsRef<str>) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{}", line.as_ref());
}
