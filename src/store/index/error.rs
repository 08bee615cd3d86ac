//! Errors of an index.

/// The reason why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the index store failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the index holds a record that cannot be decoded: {what}")]
    Corrupt { what: &'static str },
}
