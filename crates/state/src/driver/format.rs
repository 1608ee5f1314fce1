//! Which formats of a store a build takes over. A release runs on its own format and on that of the release before it; an
//! older one goes through the release between, a newer one is left alone.

use super::DriverError;

/// The formats that a build knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Formats {
    /// The oldest one that it brings up to date.
    pub(crate) oldest: u32,
    /// Its own.
    pub(crate) newest: u32,
}

impl Formats {
    /// Refuses a store that this build must not touch. Format 0 is a store that is not there yet.
    pub(crate) fn check(self, found: u32) -> Result<(), DriverError> {
        if found > self.newest {
            return Err(DriverError::NewerFormat { found, known: self.newest });
        }
        if found > 0 && found < self.oldest {
            return Err(DriverError::OlderFormat { found, oldest: self.oldest });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d39_a_release_takes_over_its_own_format_and_the_one_before() {
        // Release n knows the formats n - 1 and n.
        let release = |n: u32| Formats { oldest: (n - 1).max(1), newest: n };
        for n in 1..6 {
            assert!(release(n).check(0).is_ok(), "release {n} begins a store");
            for found in 1..6 {
                let checked = release(n).check(found);
                match (found, &checked) {
                    (found, Ok(())) => assert!(found == n || found + 1 == n, "release {n} took over {found}"),
                    (found, Err(DriverError::NewerFormat { found: said, known })) => {
                        assert!(found > n && *said == found && *known == n);
                    }
                    (found, Err(DriverError::OlderFormat { found: said, oldest })) => {
                        assert!(found + 1 < n && *said == found && *oldest == n - 1);
                        // The release between is the one whose own format is the oldest that this one takes over.
                        assert!(checked.unwrap_err().to_string().contains(&format!("knows format {}", n - 1)));
                    }
                    (found, Err(other)) => panic!("release {n} on format {found}: {other}"),
                }
            }
        }
    }
}
