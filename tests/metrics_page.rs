//! `docs/metrics.md` says what the code has. To write it anew: `UPDATE_GOLDEN=1 cargo test
//! --release --test metrics_page`, then read the difference.

use std::path::Path;

use holdfast::telemetry::metrics::page;

#[test]
fn the_page_of_metrics_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = page::markdown();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    let hint = "UPDATE_GOLDEN=1 cargo test --release --test metrics_page";
    assert!(text == page, "docs/metrics.md differs from the code; write it anew: {hint}");
}
