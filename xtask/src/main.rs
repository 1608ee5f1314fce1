//! Developer commands, run as `cargo xtask COMMAND`.
//!
//! | command | does |
//! |---|---|
//! | `test [FILTER…] [--require NAME,…]` | every test of the workspace, then a table of what was skipped and why; checks `docs/acceptance.md` |
//! | `ci` | formatting, lints, documentation, licences, tests, the demo: what `main` always passes |
//! | `bench [NAME…]` | the benchmarks; each figure is printed with the baseline of the same run |
//! | `bench --driver NAME [PART…]` | those of one driver of the state tree: memory, sqlite or postgres |
//! | `postgres [FILTER…]` | the state tree's suite on a PostgreSQL of its own |
//! | `faults [--seconds S] [--servers N] [--seed S] …` | real processes on a real database, killed, stopped and cut off; what breaks a guarantee is told |
//! | `acceptance` | writes `docs/acceptance.md` anew from the tests that there are |
//! | `deny` | licences, sources and forbidden crates alone |
//! | `install-tools` | installs the tools that `ci` needs beyond the toolchain |

mod acceptance;
mod bench;
mod binaries;
mod cases;
mod ci;
mod faults;
mod process;
mod test;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((command, rest)) => match command.as_str() {
            "test" => test::run(rest),
            "ci" => ci::run(rest),
            "bench" => bench::run(rest),
            "postgres" => faults::postgres(rest),
            "faults" => faults::run(rest),
            "acceptance" => acceptance::write(),
            "deny" => tools::deny(),
            "install-tools" => tools::install(),
            other => Err(format!(
                "there is no command {other:?}; there are test, ci, bench, postgres, faults, deny, acceptance and install-tools"
            )),
        },
        None => {
            Err("which command? There are test, ci, bench, postgres, faults, deny, acceptance and install-tools"
                .to_owned())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
