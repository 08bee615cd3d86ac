//! The objects of the API, made from the catalog's records and the reports of pods. Everything in
//! here is pure.
//!
//! [`source`] reads the records, [`seen`] the reports. [`judge`] says how an object is, [`ledger`]
//! remembers since when, [`observer`] follows the changes, [`describe`] and [`summary`] make the
//! messages. [`query`] chooses and pages, with [`selector`] and [`cursor`].

pub mod condition;
pub mod cursor;
pub mod describe;
pub mod judge;
pub mod key;
pub mod ledger;
pub mod observer;
pub mod query;
pub mod ring;
pub mod seen;
pub mod selector;
pub mod source;
pub mod summary;
