//! Which objects a caller wants: filters, pages, views.

use crate::control::objects::cursor::{CursorError, Mark, PageCursor};
use crate::control::objects::describe::{Describe, Object};
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::objects::selector::{Selector, SelectorError};
use crate::control::objects::source::{Keys, Source};
use crate::control::proto::{self, Phase, View};

/// Size of a page that does not say.
pub const PAGE_SIZE: u32 = 100;
/// Largest page.
pub const PAGE_SIZE_MAX: u32 = 1000;
/// Objects that one page looks at: a filter that fits few of many gives short pages.
const LOOKED_AT_MAX: usize = 20_000;

/// Why a query makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("a page has at most {PAGE_SIZE_MAX} objects, not {size}")]
    PageSize { size: u32 },
    #[error("the page token is not one of this cluster")]
    PageToken(#[from] CursorError),
    #[error("the page token belongs to a query with other filters")]
    OtherFilters,
    #[error("the catalog was restored since the page token was made; list again")]
    OtherHistory,
    #[error("{number} is no phase that this version knows")]
    Phase { number: i32 },
}

/// A checked query.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    selector: Selector,
    /// Empty: any.
    name: String,
    /// Empty: any.
    phases: Vec<Phase>,
    /// Further demands of the method, in words that differ for others.
    within: String,
    pub view: View,
    page_size: usize,
    page: Option<PageCursor>,
}

/// Some of the objects.
pub struct Page<T> {
    pub objects: Vec<T>,
    /// Missing: these were the last.
    pub next: Option<String>,
    /// What a watch goes on from that is to see all changes since the first page.
    pub mark: Mark,
}

impl Filter {
    /// Checks a query. `within`: what else the request demands.
    pub fn new(query: Option<proto::Query>, within: &str) -> Result<Filter, QueryError> {
        let query = query.unwrap_or_default();
        let page_size = match query.page_size {
            0 => PAGE_SIZE,
            size if size > PAGE_SIZE_MAX => return Err(QueryError::PageSize { size }),
            size => size,
        };
        let phase = |number: &i32| {
            Phase::try_from(*number).map_err(|_| QueryError::Phase { number: *number })
        };
        let page = match query.page_token.as_str() {
            "" => None,
            token => Some(PageCursor::decode(token)?),
        };
        let filter = Filter {
            selector: Selector::parse(&query.selector)?,
            name: query.name,
            phases: query.phases.iter().map(phase).collect::<Result<_, _>>()?,
            within: within.to_owned(),
            view: View::try_from(query.view).unwrap_or_default(),
            page_size: page_size as usize,
            page,
        };
        match &filter.page {
            Some(page) if page.filters != filter.hash() => Err(QueryError::OtherFilters),
            _ => Ok(filter),
        }
    }

    /// The key behind which this page begins.
    pub fn after(&self, kind: Kind) -> Result<Option<ObjectKey>, QueryError> {
        let last = |page: &PageCursor| ObjectKey::decode(kind, &page.last).ok_or(CursorError);
        Ok(self.page.as_ref().map(last).transpose()?)
    }

    /// Of these keys behind `after`, the one that is asked for by name, if one is.
    pub fn narrow<'a>(
        &self,
        source: Source<'a>,
        kind: Kind,
        after: Option<ObjectKey>,
        keys: Keys<'a>,
    ) -> Keys<'a> {
        if self.name.is_empty() {
            return keys;
        }
        let named = source.key_of(kind, &self.name).into_iter();
        Box::new(named.filter(move |key| after.as_ref().is_none_or(|after| key > after)))
    }

    /// True when an object fits.
    pub fn fits<T: Object>(&self, object: &T) -> bool {
        self.has_name(&object.meta().name)
            && object.is_within(&self.within)
            && (self.phases.is_empty() || self.phases.contains(&object.phase()))
            && self.selector.selects(&object.meta().labels)
    }

    /// True when the end of an object with this name is told. Of objects that belong to one thing
    /// for good, it is not: nobody knows any more to what it belonged.
    pub fn tells_end_of(&self, name: &str) -> bool {
        !self.is_within_one() && self.has_name(name)
    }

    /// True when only objects are asked for that belong to one thing.
    pub fn is_within_one(&self) -> bool {
        !self.within.is_empty()
    }

    /// True when the filter asks for this name, or for none.
    pub fn has_name(&self, name: &str) -> bool {
        self.name.is_empty() || self.name == name
    }

    /// The same for equal filters, on every pod.
    fn hash(&self) -> u64 {
        let phases: Vec<String> =
            self.phases.iter().map(|phase| phase.as_str_name().into()).collect();
        let parts = [&self.selector.to_string(), &self.name, &phases.join(","), &self.within];
        let text = parts.map(|part| format!("{}:{part}", part.len())).concat();
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// One page. `keys`: those of the objects in question, behind [`Filter::after`]; `now`: the moment.
pub fn list<T: Object>(
    from: &Describe<'_>,
    filter: &Filter,
    now: Mark,
    keys: Keys<'_>,
) -> Result<Page<T>, QueryError> {
    let mark = match &filter.page {
        None => now,
        Some(page) if page.mark.history != now.history => return Err(QueryError::OtherHistory),
        Some(page) => page.mark,
    };
    let mut keys = filter.narrow(from.source, T::KIND, filter.after(T::KIND)?, keys);
    let (mut objects, mut last, mut looked_at) = (Vec::new(), None, 0);
    for key in &mut keys {
        looked_at += 1;
        if let Some(object) = T::describe(from, &key, filter.view).filter(|it| filter.fits(it)) {
            objects.push(object);
        }
        last = Some(key);
        if objects.len() == filter.page_size || looked_at == LOOKED_AT_MAX {
            break;
        }
    }
    let has_more = keys.next().is_some();
    let next = last
        .filter(|_| has_more)
        .map(|last| PageCursor { mark, filters: filter.hash(), last: last.encode() }.encode());
    Ok(Page { objects, next, mark })
}
