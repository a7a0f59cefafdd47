//! Speed and size against plain pgBackRest, on a real PostgreSQL (`make bench`). It prints numbers
//! beside their limits and always ends well: a busy machine is no failure.
#![expect(clippy::disallowed_methods, reason = "measures start programs and read clocks")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "that is what it is for")]
#![expect(clippy::cast_precision_loss, reason = "three digits are enough")]

#[expect(dead_code, clippy::unwrap_used, reason = "the harness is made for the tests")]
#[path = "../support/mod.rs"]
mod support;

mod backup;
mod by_hand;
mod container;
mod http;
mod memory;
mod report;
mod restore;

use std::panic::{AssertUnwindSafe, catch_unwind};

use report::Report;

type Measure = fn(&mut Report);

fn main() {
    let mut report = Report::default();
    let measures: [(&str, Measure); 7] = [
        ("backups", backup::measure),
        ("restores of an empty cluster", restore::measure_empty),
        ("restores of a 1 GiB cluster", restore::measure_large),
        ("restores to a moment", restore::measure_moment),
        ("requests", http::measure),
        ("memory after jobs", memory::measure),
        ("the image", container::measure),
    ];
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, measure) in measures {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        eprintln!("measuring {name} ...");
        // Whatever it started is ended while it unwinds.
        if catch_unwind(AssertUnwindSafe(|| measure(&mut report))).is_err() {
            report.failed(name);
        }
    }
    print!("{report}");
}
