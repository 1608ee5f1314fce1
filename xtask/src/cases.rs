//! The acceptance cases that there are: two documents, sections named by a letter, cases numbered from 1.

/// A section of an acceptance document.
pub(crate) struct Section {
    pub(crate) letter: char,
    pub(crate) title: &'static str,
    pub(crate) cases: u32,
    /// The cases that matter most.
    pub(crate) starred: &'static [u32],
}

/// An acceptance document.
pub(crate) struct Document {
    pub(crate) title: &'static str,
    pub(crate) sections: &'static [Section],
}

/// What `tidegate-state` must do; its tests live in that crate.
pub(crate) const STATE_TREE: Document = Document {
    title: "The state tree",
    sections: &[
        Section { letter: 'S', title: "Snapshots and entities", cases: 10, starred: &[1, 3] },
        Section { letter: 'T', title: "Transactions", cases: 20, starred: &[1, 6, 14, 19] },
        Section { letter: 'R', title: "Records", cases: 10, starred: &[1, 3] },
        Section {
            letter: 'D',
            title: "Drivers: conformance and recovery",
            cases: 43,
            starred: &[1, 2, 6, 12, 13, 14, 15, 16, 17, 31, 32, 35, 41],
        },
        Section { letter: 'N', title: "Local hooks", cases: 15, starred: &[2, 9] },
        Section {
            letter: 'K',
            title: "Cluster hooks",
            cases: 51,
            starred: &[1, 2, 3, 5, 9, 11, 13, 15, 17, 21, 30, 44, 45, 46, 47],
        },
        Section { letter: 'X', title: "Real-process fault runs", cases: 17, starred: &[1, 3, 4, 5, 10] },
        Section { letter: 'U', title: "Test kit and linter", cases: 4, starred: &[] },
    ],
};

/// What a push, its hooks and its regions must do; tested in every other crate.
pub(crate) const HOOKS_AND_ROLLOUTS: Document = Document {
    title: "Hooks and rollouts",
    sections: &[
        Section { letter: 'H', title: "Hooks framework", cases: 37, starred: &[2, 5, 9, 10, 15, 19, 26, 29, 34] },
        Section { letter: 'R', title: "Rollout, happy paths", cases: 17, starred: &[1, 3, 6, 8] },
        Section { letter: 'F', title: "Failures and partial outcomes", cases: 22, starred: &[1, 2, 3, 5, 9, 14] },
        Section { letter: 'B', title: "Rollback, roll-forward, freezes", cases: 19, starred: &[1, 2, 4, 5, 15] },
        Section { letter: 'E', title: "Embedded clients", cases: 10, starred: &[1, 4] },
        Section { letter: 'C', title: "Control plane fail-over and concurrency", cases: 21, starred: &[1, 2, 4, 10] },
        Section { letter: 'G', title: "Shipped hooks", cases: 41, starred: &[12, 13, 16, 17, 25, 28] },
        Section { letter: 'D', title: "Dataset: build and load", cases: 16, starred: &[2, 7, 8, 9] },
        Section { letter: 'N', title: "Engines", cases: 12, starred: &[1] },
    ],
};

impl Document {
    /// The case that a test's name carries (`k09_zombie_completion_is_refused` carries K9), if it is one of this document.
    pub(crate) fn case_of(&self, test: &str) -> Option<(char, u32)> {
        let function = test.rsplit("::").next()?;
        let (id, _) = function.split_once('_')?;
        let letter = id.chars().next()?.to_ascii_uppercase();
        let digits = id.get(1..)?.trim_end_matches(|end: char| end.is_ascii_lowercase());
        let number: u32 = digits.parse().ok()?;
        let section = self.sections.iter().find(|section| section.letter == letter)?;
        (1..=section.cases).contains(&number).then_some((letter, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_carries_the_case_that_its_name_begins_with() {
        assert_eq!(STATE_TREE.case_of("memory::k09_zombie_completion_is_refused"), Some(('K', 9)));
        assert_eq!(HOOKS_AND_ROLLOUTS.case_of("h5_hanging_hook_is_cut_at_its_timeout"), Some(('H', 5)));
        assert_eq!(STATE_TREE.case_of("t20b_asleep"), Some(('T', 20)));
        for none in ["k99_no_such_case", "key_order", "h5", "parses_a_path", "é1_x"] {
            assert_eq!(STATE_TREE.case_of(none), None, "{none}");
        }
    }
}
