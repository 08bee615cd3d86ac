//! One kind of object of the catalog's state: an ordered map of rows. A copy is cheap and shares
//! memory, so readers and snapshots keep theirs while commands go on.

use std::borrow::Borrow;
use std::ops::{Index, RangeBounds};

use rpds::RedBlackTreeMapSync;

/// An object, and the revision that changed it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<V> {
    pub revision: u64,
    /// Of the encoded row; see `Tables::fingerprint`.
    pub(super) hash: u64,
    pub value: V,
}

impl<V> Row<V> {
    pub(super) fn new(revision: u64, hash: u64, value: V) -> Row<V> {
        Row { revision, hash, value }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Table<K: Ord, V>(RedBlackTreeMapSync<K, Row<V>>);

impl<K: Ord + Clone, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table(RedBlackTreeMapSync::new_sync())
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub fn row<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Row<V>>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(|row| &row.value)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    pub fn len(&self) -> usize {
        self.0.size()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All objects, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, row)| (key, &row.value))
    }

    pub fn rows(&self) -> impl Iterator<Item = (&K, &Row<V>)> {
        self.0.iter()
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|row| &row.value)
    }

    /// The objects with these keys, ordered.
    pub fn range(&self, keys: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.range(keys).map(|(key, row)| (key, &row.value))
    }

    /// Puts a row, and returns the one before.
    pub(super) fn put(&mut self, key: K, row: Row<V>) -> Option<Row<V>> {
        let before = self.0.get(&key).cloned();
        self.0.insert_mut(key, row);
        before
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<Row<V>> {
        let before = self.0.get(key).cloned();
        self.0.remove_mut(key);
        before
    }
}

impl<K: Ord + Clone + Borrow<Q>, Q: Ord + ?Sized, V: Clone> Index<&Q> for Table<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key was found in this state")
    }
}
