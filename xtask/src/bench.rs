//! `cargo xtask bench`: the benchmarks of all crates. Each prints medians, and beside every figure the baseline of the same
//! run that it is a ratio of, since the disks and neighbours of a machine change from hour to hour.

use crate::process::{self, cargo};
use crate::tools;

/// The benchmarks of the state tree that are about one driver, by its name.
const DRIVERS: [(&str, &[&str]); 3] =
    [("memory", &["state"]), ("sqlite", &["driver_sqlite", "hooks"]), ("postgres", &["postgres"])];

/// Names of benchmarks; or `--driver NAME`, and then the parts of that driver's benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let mut command = cargo();
    command.args(["bench", "--workspace"]);
    let (names, parts): (Vec<&str>, &[String]) = match arguments {
        [] => (Vec::new(), &[]),
        [flag, driver, parts @ ..] if flag == "--driver" => (benches_of(driver)?.to_vec(), parts),
        names => (names.iter().map(String::as_str).collect(), &[]),
    };
    if names.is_empty() {
        command.arg("--benches");
    }
    if names.is_empty() || names.contains(&"postgres") {
        tools::postgres()?;
    }
    for name in names {
        command.args(["--bench", name]);
    }
    if !parts.is_empty() {
        command.arg("--").args(parts);
    }
    process::run(&mut command)
}

fn benches_of(driver: &str) -> Result<&'static [&'static str], String> {
    let known = DRIVERS.iter().find(|(name, _)| *name == driver).map(|(_, benches)| *benches);
    known.ok_or_else(|| {
        let drivers = DRIVERS.map(|(name, _)| name).join(", ");
        format!("there is no driver {driver:?}; there are {drivers}")
    })
}

#[cfg(test)]
mod tests {
    use super::benches_of;

    #[test]
    fn a_driver_goes_by_its_name() {
        assert_eq!(benches_of("postgres"), Ok(&["postgres"][..]));
        assert!(benches_of("oracle").is_err());
    }
}
