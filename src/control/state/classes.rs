//! Commands about classes.

use crate::control::command::{NewClass, Outcome};
use crate::control::names::check_name;
use crate::control::state::error::CatalogError;
use crate::control::state::pods::check_labels;
use crate::control::state::rows::Class;
use crate::control::state::tables::Tables;

/// Overcommit below this would leave disks empty, and above it means nothing.
const OVERCOMMIT_PERCENT: std::ops::RangeInclusive<u32> = 10..=1_000_000;
/// The times after which I/O may be made to fail. A shard may take a second or two to find another
/// leader: with less, every restart of a pod would be an error.
const IO_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1_000..=24 * 3600 * 1000;

/// Makes a class, or finds the same one.
pub(super) fn create(
    tables: &mut Tables,
    now_ms: u64,
    name: String,
    new: NewClass,
) -> Result<Outcome, CatalogError> {
    check_name(&name).map_err(|source| CatalogError::BadName { name: name.clone(), source })?;
    check(&new)?;
    match tables.classes.get(&name) {
        Some(known) if as_new(known) == new => Ok(Outcome::Done),
        Some(_) => Err(CatalogError::ClassTaken { name }),
        None => {
            tables.put(name, class(new, 1, now_ms));
            Ok(Outcome::Done)
        }
    }
}

/// Changes a class that is as of revision `based_on`; 0: whatever it is.
pub(super) fn update(
    tables: &mut Tables,
    name: String,
    new: NewClass,
    based_on: u64,
) -> Result<Outcome, CatalogError> {
    check(&new)?;
    let row = tables.classes.row(&name).ok_or_else(|| no_such_class(tables, &name))?;
    check_based_on(based_on, row.revision)?;
    let known = as_new(&row.value);
    if known == new {
        return Ok(Outcome::Done);
    }
    let is_other = NewClass { labels: new.labels.clone(), ..known } != new;
    let generation = row.value.generation + u64::from(is_other);
    let created_ms = row.value.created_ms;
    tables.put(name, class(new, generation, created_ms));
    Ok(Outcome::Done)
}

/// Removes a class. Looks at all volumes, which is well for something that rare.
pub(super) fn delete(tables: &mut Tables, name: &str) -> Result<Outcome, CatalogError> {
    if !tables.classes.contains_key(name) {
        return Err(no_such_class(tables, name));
    }
    if let Some(user) = tables.volumes.values().find(|volume| volume.class == name) {
        let (name, volume) = (name.to_owned(), user.name.clone());
        return Err(CatalogError::ClassInUse { name, volume });
    }
    tables.remove::<Class>(&name.to_owned());
    Ok(Outcome::Done)
}

pub(super) fn no_such_class(tables: &Tables, name: &str) -> CatalogError {
    let known: Vec<&str> = tables.classes.keys().map(String::as_str).take(20).collect();
    CatalogError::NoSuchClass { name: name.to_owned(), known: known.join(", ") }
}

/// An update is carried out on what its author has seen.
pub(super) fn check_based_on(based_on: u64, revision: u64) -> Result<(), CatalogError> {
    match based_on == 0 || based_on == revision {
        true => Ok(()),
        false => Err(CatalogError::Conflict { based_on, revision }),
    }
}

/// 0: I/O waits for ever.
pub(super) fn check_io_timeout(ms: u64) -> Result<(), CatalogError> {
    match ms == 0 || IO_TIMEOUT_MS.contains(&ms) {
        true => Ok(()),
        false => Err(CatalogError::BadIoTimeout),
    }
}

fn check(new: &NewClass) -> Result<(), CatalogError> {
    let must = |holds: bool, what| if holds { Ok(()) } else { Err(CatalogError::BadClass(what)) };
    must(matches!(new.replicas, 1 | 3 | 5), "it has 1, 3 or 5 replicas")?;
    must(
        OVERCOMMIT_PERCENT.contains(&new.overcommit_percent),
        "its overcommit is between 10 and 1000000 percent",
    )?;
    check_io_timeout(new.io_timeout_ms)?;
    must(check_name(&new.failure_domain).is_ok(), "its failure domain is `node` or a label")?;
    let is_word = new.disk_class.is_empty() || check_name(&new.disk_class).is_ok();
    must(is_word, "its disk class is a name")?;
    check_labels(&new.labels)
}

fn class(new: NewClass, generation: u64, created_ms: u64) -> Class {
    let NewClass {
        replicas,
        failure_domain,
        disk_class,
        overcommit_percent,
        io_timeout_ms,
        iops_max,
        bytes_per_second_max,
        labels,
    } = new;
    Class {
        replicas,
        failure_domain,
        disk_class,
        overcommit_percent,
        io_timeout_ms,
        iops_max,
        bytes_per_second_max,
        labels,
        generation,
        created_ms,
    }
}

fn as_new(class: &Class) -> NewClass {
    let Class {
        replicas,
        failure_domain,
        disk_class,
        overcommit_percent,
        io_timeout_ms,
        iops_max,
        bytes_per_second_max,
        labels,
        generation: _,
        created_ms: _,
    } = class.clone();
    NewClass {
        replicas,
        failure_domain,
        disk_class,
        overcommit_percent,
        io_timeout_ms,
        iops_max,
        bytes_per_second_max,
        labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::CatalogCommand;
    use crate::control::state::CatalogState;
    use crate::testing::catalog_fixture::{cluster, new_volume};

    fn fast() -> NewClass {
        NewClass {
            replicas: 3,
            failure_domain: "rack".to_owned(),
            overcommit_percent: 150,
            ..NewClass::default()
        }
    }

    fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
        state.apply(2_000, command).outcome
    }

    fn create(class: NewClass) -> CatalogCommand {
        CatalogCommand::CreateClass { request_id: String::new(), name: "fast".to_owned(), class }
    }

    fn update(class: NewClass, based_on: u64) -> CatalogCommand {
        let (request_id, name) = (String::new(), "fast".to_owned());
        CatalogCommand::UpdateClass { request_id, name, class, based_on }
    }

    #[test]
    fn classes_are_made_once_and_changed_by_who_has_seen_them() {
        let mut state = cluster(3);
        assert_eq!(state.classes.len(), 3, "there are some from the beginning");
        apply(&mut state, create(fast())).unwrap();
        let first = state.revision();
        apply(&mut state, create(fast())).expect("it is what is there");
        assert_eq!(state.revision(), first);
        let other = NewClass { replicas: 5, ..fast() };
        let taken = CatalogError::ClassTaken { name: "fast".to_owned() };
        assert_eq!(apply(&mut state, create(other.clone())), Err(taken));

        apply(&mut state, update(other.clone(), first)).unwrap();
        let second = state.revision();
        let conflict = CatalogError::Conflict { based_on: first, revision: second };
        assert_eq!(apply(&mut state, update(fast(), first)), Err(conflict));
        assert_eq!(state.classes["fast"].generation, 2);
        let labelled = NewClass { labels: [("a".to_owned(), "b".to_owned())].into(), ..other };
        apply(&mut state, update(labelled, 0)).unwrap();
        assert_eq!(state.classes["fast"].generation, 2, "labels are not wanted, they describe");
        for bad in [
            NewClass { replicas: 2, ..fast() },
            NewClass { overcommit_percent: 0, ..fast() },
            NewClass { failure_domain: String::new(), ..fast() },
        ] {
            let refused = apply(&mut state, update(bad, 0));
            assert!(matches!(refused, Err(CatalogError::BadClass(_))), "{refused:?}");
        }
        state.check_invariants();
    }

    #[test]
    fn a_class_goes_when_no_volume_names_it() {
        let mut state = cluster(3);
        apply(&mut state, create(fast())).unwrap();
        let delete = |name: &str| CatalogCommand::DeleteClass {
            request_id: String::new(),
            name: name.to_owned(),
        };
        apply(&mut state, delete("fast")).unwrap();
        assert!(matches!(
            apply(&mut state, delete("fast")),
            Err(CatalogError::NoSuchClass { known, .. }) if known.contains("replicated")
        ));
        let disks: Vec<_> = state.disks.keys().copied().collect();
        let placement = crate::control::command::Placement { disks, shards: vec![vec![0, 1, 2]] };
        let volume = new_volume("demo", 1 << 30, 1 << 30, 3);
        let class = volume.class.clone();
        let make = CatalogCommand::CreateVolume { request_id: String::new(), volume, placement };
        apply(&mut state, make).unwrap();
        let refused = apply(&mut state, delete(&class));
        assert!(matches!(refused, Err(CatalogError::ClassInUse { .. })), "{refused:?}");
    }
}
