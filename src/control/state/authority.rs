//! Commands about the authorities. One signs; two are trusted while one is replaced:
//!
//! ```text
//! set       [1]      the key that `init` made
//! replace   [1, 2]   pods learn of the new one; the old one signs
//! switch    [2, 1]   the new one signs; pods renew their certificates
//! finish    [2]      the old one is trusted no more
//! abandon   [1]      instead of a switch
//! ```
//!
//! After a restore pods may trust others, until a `finish` says that nobody needs them.
//!
//! When a step is safe is decided before it is proposed ([`crate::control::trusting`]).

use crate::control::command::{AuthorityStep, Outcome};
use crate::control::state::error::CatalogError;
use crate::control::state::rows::{Authority, Cluster, TrustedRoot};
use crate::control::state::tables::Tables;

/// The number of a cluster's first authority.
const FIRST: u64 = 1;
/// Retired authorities that are remembered.
const RETIRED_MAX: usize = 16;

/// The catalog gets the authority's key. It gets it once.
pub(super) fn set(tables: &mut Tables, authority: Authority) -> Result<Outcome, CatalogError> {
    let same = |root: &&TrustedRoot| root.certificate == authority.certificate;
    let number = match tables.cluster.roots.iter().find(same) {
        Some(root) => root.number,
        None if tables.cluster.roots.is_empty() => {
            trust(tables, vec![root_of(FIRST, &authority)], false);
            FIRST
        }
        None => return Err(CatalogError::AuthorityExists),
    };
    let now = match tables.authorities.get(&number) {
        Some(known) if known.key.0.is_empty() => {
            let sealed =
                if authority.sealed.is_empty() { &known.sealed } else { &authority.sealed };
            Authority { sealed: sealed.clone(), ..authority }
        }
        // Its sealed form may have come to light since.
        Some(known) if known.sealed.is_empty() && !authority.sealed.is_empty() => {
            Authority { sealed: authority.sealed, ..known.clone() }
        }
        Some(_) => return Ok(Outcome::Done),
        // A catalog that was recovered without it.
        None => authority,
    };
    tables.put(number, now);
    Ok(Outcome::Done)
}

/// A new authority is trusted from now on, and signs later.
pub(super) fn replace(tables: &mut Tables, authority: Authority) -> Result<Outcome, CatalogError> {
    let mut roots = tables.cluster.roots.clone();
    if roots.iter().any(|root| root.certificate == authority.certificate) {
        return Ok(Outcome::Done);
    }
    let number = match roots[..] {
        [] => return Err(CatalogError::NoAuthority),
        [TrustedRoot { number, .. }] => number + 1,
        _ => return Err(CatalogError::AuthorityInReplacement),
    };
    if tables.cluster.retired.contains(&authority.certificate) {
        return Err(CatalogError::AuthorityRetired);
    }
    roots.push(root_of(number, &authority));
    trust(tables, roots, tables.cluster.others_trusted);
    tables.put(number, authority);
    Ok(Outcome::Done)
}

/// A repeated step changes nothing. Others are taken only from the cluster's row that they were
/// decided on.
pub(super) fn step(
    tables: &mut Tables,
    step: AuthorityStep,
    based_on: u64,
) -> Result<Outcome, CatalogError> {
    let revision = tables.cluster_revision;
    let is_current = revision == based_on;
    let check = || match is_current {
        true => Ok(()),
        false => Err(CatalogError::Conflict { based_on, revision }),
    };
    let others = tables.cluster.others_trusted;
    let [first, second] = &tables.cluster.roots[..] else {
        match step {
            AuthorityStep::Switch => return Err(CatalogError::NoReplacement),
            AuthorityStep::Finish if others => {
                check()?;
                trust(tables, tables.cluster.roots.clone(), false);
            }
            AuthorityStep::Finish | AuthorityStep::Abandon => {}
        }
        return Ok(Outcome::Done);
    };
    let (first, second) = (first.clone(), second.clone());
    let has_switched = first.number > second.number;
    match step {
        AuthorityStep::Switch if has_switched => return Ok(Outcome::Done),
        AuthorityStep::Finish if !has_switched => return Err(CatalogError::AuthorityNotInUse),
        AuthorityStep::Abandon if has_switched => return Err(CatalogError::AuthorityInUse),
        _ => check()?,
    }
    match step {
        AuthorityStep::Switch => trust(tables, vec![second, first], others),
        AuthorityStep::Finish | AuthorityStep::Abandon => {
            trust(tables, vec![first], others && step == AuthorityStep::Abandon);
            tables.remove::<Authority>(&second.number);
            retire(tables, second);
        }
    }
    Ok(Outcome::Done)
}

/// What it has signed never counts again.
fn retire(tables: &mut Tables, root: TrustedRoot) {
    let mut cluster = tables.cluster.clone();
    cluster.retired.push(root.certificate);
    let forgotten = cluster.retired.len().saturating_sub(RETIRED_MAX);
    cluster.retired.drain(..forgotten);
    tables.put_cluster(cluster);
}

/// A recovered catalog keeps the keys of those that are trusted.
pub(super) fn keep_trusted(tables: &mut Tables) {
    let trusted = |number: &u64, authority: &Authority| {
        let is_it = |root: &TrustedRoot| {
            root.number == *number && root.certificate == authority.certificate
        };
        tables.cluster.roots.iter().any(is_it)
    };
    let others = tables.authorities.iter().filter(|(number, it)| !trusted(number, it));
    let others: Vec<u64> = others.map(|(number, _)| *number).collect();
    others.iter().for_each(|number| tables.remove::<Authority>(number));
}

fn root_of(number: u64, authority: &Authority) -> TrustedRoot {
    TrustedRoot { number, certificate: authority.certificate.clone() }
}

fn trust(tables: &mut Tables, roots: Vec<TrustedRoot>, others_trusted: bool) {
    let cluster = Cluster { roots, others_trusted, ..tables.cluster.clone() };
    tables.put_cluster(cluster);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::{CatalogCommand, Hidden};
    use crate::control::state::CatalogState;
    use crate::testing::catalog_fixture::first_pod;

    fn authority(certificate: &str) -> Authority {
        Authority {
            certificate: certificate.to_owned(),
            key: Hidden("5ec2e7".to_owned()),
            sealed: String::new(),
            created_ms: 0,
        }
    }

    fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
        let outcome = state.apply(1, command).outcome;
        state.check_invariants();
        let rows: Vec<_> = state.rows().collect();
        assert_eq!(CatalogState::from_rows(rows).unwrap(), *state);
        outcome
    }

    fn set(certificate: &str) -> CatalogCommand {
        CatalogCommand::SetAuthority { authority: authority(certificate) }
    }

    fn replace(certificate: &str) -> CatalogCommand {
        CatalogCommand::ReplaceAuthority { authority: authority(certificate) }
    }

    fn step(state: &CatalogState, step: AuthorityStep) -> CatalogCommand {
        CatalogCommand::MoveAuthority { step, based_on: state.cluster_revision }
    }

    fn take(state: &mut CatalogState, next: AuthorityStep) -> Result<Outcome, CatalogError> {
        let command = step(state, next);
        apply(state, command)
    }

    /// The trusted ones, the one that signs first, and the numbers of those with keys.
    fn known(state: &CatalogState) -> (Vec<&str>, Vec<u64>) {
        let roots = state.cluster.roots.iter().map(|root| root.certificate.as_str());
        (roots.collect(), state.authorities.iter().map(|(number, _)| *number).collect())
    }

    #[test]
    fn the_authority_is_set_once_and_its_key_is_not_shown() {
        let mut state = first_pod();
        assert!(!format!("{:?} {}", set("aa"), set("aa")).contains("5ec2e7"));
        assert_eq!(apply(&mut state, replace("aa")), Err(CatalogError::NoAuthority));
        apply(&mut state, set("aa")).unwrap();
        let revision = state.revision();
        apply(&mut state, set("aa")).unwrap();
        assert_eq!(state.revision(), revision, "it is known");
        assert_eq!(apply(&mut state, set("bb")), Err(CatalogError::AuthorityExists));
        assert_eq!(known(&state), (vec!["aa"], vec![1]));
        assert!(!format!("{state:?}").contains("5ec2e7"));
    }

    #[test]
    fn an_authority_is_replaced_in_steps_that_can_be_repeated() {
        use AuthorityStep::{Abandon, Finish, Switch};
        let mut state = first_pod();
        apply(&mut state, set("aa")).unwrap();
        assert_eq!(take(&mut state, Switch), Err(CatalogError::NoReplacement));
        let replaces = |certificate| move |_: &CatalogState| replace(certificate);
        let takes = |next| move |state: &CatalogState| step(state, next);
        type Made = Box<dyn Fn(&CatalogState) -> CatalogCommand>;
        let steps: [(Made, _); 6] = [
            (Box::new(replaces("bb")), (vec!["aa", "bb"], vec![1, 2])),
            (Box::new(takes(Abandon)), (vec!["aa"], vec![1])),
            (Box::new(replaces("cc")), (vec!["aa", "cc"], vec![1, 2])),
            (Box::new(takes(Switch)), (vec!["cc", "aa"], vec![1, 2])),
            (Box::new(takes(Finish)), (vec!["cc"], vec![2])),
            (Box::new(replaces("dd")), (vec!["cc", "dd"], vec![2, 3])),
        ];
        for (make, after) in steps {
            let command = make(&state);
            apply(&mut state, command.clone()).unwrap();
            assert_eq!(known(&state), after);
            let revision = state.revision();
            apply(&mut state, command).unwrap();
            assert_eq!((known(&state), state.revision()), (after, revision), "it is repeated");
        }
        assert_eq!(apply(&mut state, replace("ee")), Err(CatalogError::AuthorityInReplacement));
        assert_eq!(take(&mut state, Finish), Err(CatalogError::AuthorityNotInUse));
        let late = step(&state, Finish);
        take(&mut state, Switch).unwrap();
        assert_eq!(take(&mut state, Abandon), Err(CatalogError::AuthorityInUse));
        let refused = apply(&mut state, late);
        assert!(matches!(refused, Err(CatalogError::Conflict { .. })), "it was decided before");
    }

    #[test]
    fn a_retired_authority_does_not_return() {
        let mut state = first_pod();
        apply(&mut state, set("aa")).unwrap();
        apply(&mut state, replace("bb")).unwrap();
        take(&mut state, AuthorityStep::Switch).unwrap();
        take(&mut state, AuthorityStep::Finish).unwrap();
        assert_eq!(apply(&mut state, replace("aa")), Err(CatalogError::AuthorityRetired));
        apply(&mut state, replace("cc")).unwrap();
        take(&mut state, AuthorityStep::Abandon).unwrap();
        assert_eq!(apply(&mut state, replace("cc")), Err(CatalogError::AuthorityRetired));
    }

    #[test]
    fn a_key_that_was_sealed_in_a_backup_comes_back() {
        let mut state = first_pod();
        let sealed = Authority { key: Hidden(String::new()), ..authority("aa") };
        apply(&mut state, CatalogCommand::SetAuthority { authority: sealed }).unwrap();
        apply(&mut state, set("aa")).unwrap();
        assert_eq!(state.authorities[&1].key, authority("aa").key);
    }
}
