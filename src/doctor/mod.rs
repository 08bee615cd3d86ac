//! `holdfast doctor`: looks for what keeps Holdfast from working well on a machine.
//!
//! [`look`] reads the machine, [`machine`] judges it, which is pure. `kubernetes::doctor` judges
//! the objects of a Kubernetes cluster, with the same words.

pub mod look;
pub mod machine;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Good,
    /// It could not be looked at.
    Unknown,
    /// It works, and worse than it could.
    Warning,
    /// Something does not work, or will not.
    Bad,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Unknown => "unknown",
            Verdict::Warning => "warning",
            Verdict::Bad => "bad",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    /// Name of the check.
    pub check: &'static str,
    /// The state that was found.
    pub found: String,
    /// Why it matters; empty when all is good.
    pub why: String,
    /// The remedy; empty when all is good.
    pub fix: String,
}

impl Finding {
    pub fn good(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(Verdict::Good, check, found, "", "")
    }

    pub fn unknown(check: &'static str, found: impl Into<String>, fix: &str) -> Finding {
        Finding::new(Verdict::Unknown, check, found, "", fix)
    }

    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        why: &str,
        fix: impl Into<String>,
    ) -> Finding {
        Finding::new(Verdict::Warning, check, found, why, fix)
    }

    pub fn bad(
        check: &'static str,
        found: impl Into<String>,
        why: &str,
        fix: impl Into<String>,
    ) -> Finding {
        Finding::new(Verdict::Bad, check, found, why, fix)
    }

    fn new(
        verdict: Verdict,
        check: &'static str,
        found: impl Into<String>,
        why: &str,
        fix: impl Into<String>,
    ) -> Finding {
        let (found, why, fix) = (found.into(), why.to_owned(), fix.into());
        Finding { verdict, check, found, why, fix }
    }
}
