//! A recovery that this pod is to carry out when it runs, in its directory:
//!
//! ```text
//! <data>/recovery/plan.json     [`Plan`]
//! <data>/recovery/backup.copy   a backup, if one was given
//! <data>/recovery/member.copy   what this pod's own member of the catalog had, if it can be read
//! <data>/catalog.before-ID      that member's log; ID: the first digits of the new history
//! ```
//!
//! The copies may have the authority's key, so nobody else can read them. The directory `recovery`
//! appears as a whole, and vanishes when the new catalog is durable. Until
//! then a recovery can be abandoned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::recovery::format::{Copy, FormatError, Head, pieces, read};
use crate::control::state::CatalogState;
use crate::control::state::rows::{Authority, Hidden, RowKey, encode_row};
use crate::control::sync::update::Update;
use crate::security::files::{FilesError, make_private_directory, write_private};
use crate::types::Uuid;

const FORMAT: u32 = 1;
const DIRECTORY: &str = "recovery";
const BACKUP: &str = "backup.copy";
const MEMBER: &str = "member.copy";
/// Digits of a history in the name of a directory.
const ID_DIGITS: usize = 8;

/// What is to be recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub format: u32,
    /// Of the new catalog.
    pub history: Uuid,
    /// In ms since 1970.
    pub begun_ms: u64,
}

/// A plan with its sources.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub plan: Plan,
    pub backup: Option<Copy>,
    pub member: Option<Copy>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("cannot use {}", path.display())]
    Copy {
        path: PathBuf,
        #[source]
        source: FormatError,
    },
    #[error("{} cannot be read; a newer version may have written it", path.display())]
    Plan {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is of format {found}; start the newer version that wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "a recovery was begun in {} already; start the pod to go on with it, or abandon it with \
         `holdfast catalog abandon`",
        path.display()
    )]
    Begun { path: PathBuf },
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlanError {
    let path = path.to_owned();
    move |source| PlanError::Io { action, path, source }
}

fn directory(data: &Path) -> PathBuf {
    data.join(DIRECTORY)
}

/// The place for the log of the member that there was before.
pub fn before(data: &Path, plan: &Plan) -> PathBuf {
    let id: String = plan.history.to_string().chars().take(ID_DIGITS).collect();
    data.join(format!("catalog.before-{id}"))
}

/// A copy of a state. Without tokens, which are void after a restore, and with the authority's key
/// only if `is_private`: the copy stays on this machine. Otherwise the key is sealed.
pub fn copy_of(
    state: &CatalogState,
    made_ms: u64,
    is_private: bool,
) -> (Head, impl Iterator<Item = (RowKey, bytes::Bytes)> + '_) {
    let is_in = |key: &RowKey| !matches!(key, RowKey::Token(_));
    let head = Head {
        cluster: state.cluster.uid,
        history: state.cluster.history,
        revision: state.revision(),
        made_ms,
        rows: state.rows().filter(|(key, _)| is_in(key)).count() as u64,
    };
    let rows = state.rows().filter(move |(key, _)| is_in(key)).map(move |(key, row)| {
        let authority = match &key {
            RowKey::Authority(number) if !is_private => state.authorities.row(number),
            _ => None,
        };
        let row = authority.map_or(row, |known| {
            let sealed = Authority { key: Hidden(String::new()), ..known.value.clone() };
            encode_row(known.revision, &sealed)
        });
        (key, row)
    });
    (head, rows)
}

/// A copy of all that a pod was told.
pub fn copy_of_told(whole: Update, cluster: Uuid, made_ms: u64) -> Copy {
    let rows: Vec<_> = whole.rows.into_iter().filter_map(|(key, row)| Some((key, row?))).collect();
    let (history, revision) = (whole.to.history, whole.to.revision);
    let head = Head { cluster, history, revision, made_ms, rows: rows.len() as u64 };
    Copy { head, rows }
}

/// Reads a copy of a catalog.
pub fn read_copy(path: &Path) -> Result<Copy, PlanError> {
    let bytes = fs::read(path).map_err(fail("read", path))?;
    read(&bytes).map_err(|source| PlanError::Copy { path: path.to_owned(), source })
}

/// Leaves a recovery for the pod with this directory, which does not run. Durable when it returns.
pub fn begin(
    data: &Path,
    plan: &Plan,
    backup: Option<&Copy>,
    member: Option<&CatalogState>,
) -> Result<(), PlanError> {
    let path = directory(data);
    if path.exists() {
        return Err(PlanError::Begun { path });
    }
    let new = data.join("recovery.new");
    remove(&new)?;
    make_private_directory(&new)?;
    let write = |name: &str, bytes: &[u8]| write_private(&new.join(name), bytes);
    if let Some(Copy { head, rows }) = backup {
        let bytes: Vec<u8> = pieces(head, rows.iter().cloned()).flatten().collect();
        write(BACKUP, &bytes)?;
    }
    if let Some(state) = member {
        let (head, rows) = copy_of(state, plan.begun_ms, true);
        let bytes: Vec<u8> = pieces(&head, rows).flatten().collect();
        write(MEMBER, &bytes)?;
    }
    write("plan.json", &serde_json::to_vec_pretty(plan).expect("our own types have a JSON form"))?;
    fs::rename(&new, &path).map_err(fail("create", &path))?;
    sync(data)
}

/// True when a recovery was left for the pod with this directory.
pub fn is_begun(data: &Path) -> bool {
    directory(data).exists()
}

/// The recovery that was left for the pod with this directory.
pub fn load(data: &Path) -> Result<Option<Loaded>, PlanError> {
    let path = directory(data);
    if !path.exists() {
        return Ok(None);
    }
    let file = path.join("plan.json");
    let bytes = fs::read(&file).map_err(fail("read", &file))?;
    let plan: Plan = serde_json::from_slice(&bytes)
        .map_err(|source| PlanError::Plan { path: file.clone(), source })?;
    if plan.format > FORMAT {
        return Err(PlanError::Newer { path: file, found: plan.format });
    }
    let copy = |name: &str| {
        let file = path.join(name);
        file.exists().then(|| read_copy(&file)).transpose()
    };
    Ok(Some(Loaded { plan, backup: copy(BACKUP)?, member: copy(MEMBER)? }))
}

/// Makes room for the new catalog's log at `catalog`. The old one is kept; the rest of a new one is
/// not.
pub fn set_aside(data: &Path, plan: &Plan, catalog: &Path) -> Result<(), PlanError> {
    let before = before(data, plan);
    if before.exists() {
        // Of an attempt at this recovery that was interrupted.
        remove(catalog)?;
    } else if catalog.exists() {
        fs::rename(catalog, &before).map_err(fail("rename", catalog))?;
    } else {
        // It says that what is there from now on is new.
        fs::create_dir(&before).map_err(fail("create", &before))?;
    }
    sync(data)
}

/// Ends a recovery: it is done. Durable when it returns.
pub fn done(data: &Path) -> Result<(), PlanError> {
    let (path, gone) = (directory(data), data.join("recovery.done"));
    remove(&gone)?;
    if !path.exists() {
        return sync(data);
    }
    fs::rename(&path, &gone).map_err(fail("rename", &path))?;
    sync(data)?;
    remove(&gone)
}

/// Ends a recovery as if it had never begun. False: there was none.
pub fn abandon(data: &Path, catalog: &Path) -> Result<bool, PlanError> {
    let Some(Loaded { plan, .. }) = load(data)? else { return Ok(false) };
    let before = before(data, &plan);
    if before.exists() {
        remove(catalog)?;
        // An empty one: there was no catalog.
        if fs::remove_dir(&before).is_err() {
            fs::rename(&before, catalog).map_err(fail("rename", &before))?;
        }
        sync(data)?;
    }
    done(data)?;
    Ok(true)
}

fn remove(path: &Path) -> Result<(), PlanError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(data: &Path) -> Result<(), PlanError> {
    fs::File::open(data).and_then(|data| data.sync_all()).map_err(fail("write", data))
}

/// A plan whose time is now.
pub fn new_plan(history: Uuid, begun_ms: u64) -> Plan {
    Plan { format: FORMAT, history, begun_ms }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::catalog_fixture::cluster;

    #[test]
    fn a_recovery_can_be_abandoned_until_it_is_done() {
        let root = tempfile::tempdir().unwrap();
        let (data, catalog) = (root.path(), root.path().join("catalog"));
        assert!(load(data).unwrap().is_none());
        assert!(!abandon(data, &catalog).unwrap());
        fs::create_dir(&catalog).unwrap();
        fs::write(catalog.join("log"), b"old").unwrap();
        let (plan, state) = (new_plan(Uuid([5; 16]), 7), cluster(3));
        begin(data, &plan, None, Some(&state)).unwrap();
        assert!(matches!(begin(data, &plan, None, None), Err(PlanError::Begun { .. })));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory(data)), 0o700);
        assert_eq!(mode(&directory(data).join(MEMBER)), 0o600);
        let loaded = load(data).unwrap().unwrap();
        assert_eq!((loaded.plan, loaded.backup), (plan.clone(), None));
        assert_eq!(loaded.member.unwrap().head.revision, state.revision());

        set_aside(data, &plan, &catalog).unwrap();
        fs::create_dir(&catalog).unwrap();
        fs::write(catalog.join("log"), b"half of a new one").unwrap();
        set_aside(data, &plan, &catalog).unwrap();
        assert!(!catalog.exists() && before(data, &plan).exists());
        assert!(abandon(data, &catalog).unwrap());
        assert_eq!(fs::read(catalog.join("log")).unwrap(), b"old");
        assert!(load(data).unwrap().is_none() && !before(data, &plan).exists());

        begin(data, &plan, None, None).unwrap();
        set_aside(data, &plan, &catalog).unwrap();
        done(data).unwrap();
        done(data).unwrap();
        assert!(load(data).unwrap().is_none() && before(data, &plan).exists());
    }

    #[test]
    fn a_new_catalog_does_not_outlive_a_recovery_that_was_abandoned() {
        let root = tempfile::tempdir().unwrap();
        let (data, catalog) = (root.path(), root.path().join("catalog"));
        let plan = new_plan(Uuid([5; 16]), 7);
        begin(data, &plan, None, None).unwrap();
        // There was none before.
        set_aside(data, &plan, &catalog).unwrap();
        fs::create_dir(&catalog).unwrap();
        fs::write(catalog.join("log"), b"new").unwrap();
        set_aside(data, &plan, &catalog).unwrap();
        assert!(!catalog.exists());
        fs::create_dir(&catalog).unwrap();
        fs::write(catalog.join("log"), b"new").unwrap();
        assert!(abandon(data, &catalog).unwrap());
        assert!(!catalog.exists() && !before(data, &plan).exists());
    }

    #[test]
    fn a_copy_that_leaves_the_machine_has_no_secret() {
        let mut state = cluster(1);
        let authority = Authority {
            certificate: "cafe".to_owned(),
            key: Hidden("secret".to_owned()),
            sealed: "sealed".to_owned(),
            created_ms: 1,
        };
        let token = crate::control::state::rows::Token {
            kind: "pod".to_owned(),
            secret_hash: "hash".to_owned(),
            request_id: String::new(),
            expires_s: 1 << 40,
            created_ms: 1,
        };
        use crate::control::command::CatalogCommand::{PutToken, SetAuthority};
        state.apply(1, SetAuthority { authority }).outcome.unwrap();
        state
            .apply(1, PutToken { request_id: String::new(), id: "one".to_owned(), token })
            .outcome
            .unwrap();
        let text = |is_private| {
            let (head, rows) = copy_of(&state, 1, is_private);
            let bytes: Vec<u8> = pieces(&head, rows).flatten().collect();
            assert_eq!(read(&bytes).unwrap().rows.len() as u64, head.rows);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let public = text(false);
        assert!(public.contains("sealed") && public.contains("cafe"));
        assert!(!public.contains("secret") && !public.contains("hash"), "{public}");
        assert!(text(true).contains("secret"));
    }
}
