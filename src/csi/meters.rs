//! Metrics of the driver: its requests by method and code.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tonic::Code;

use crate::control::api_meters::{Answers, code_name};
use crate::csi::identity::DriverName;
use crate::telemetry::metrics::numbers::Histogram;
use crate::telemetry::metrics::{Samples, Source, list};

/// Series at a time. The methods of the specification and their codes are fewer.
const SERIES_MAX: usize = 256;

/// See the module.
pub struct CsiMeters {
    driver: DriverName,
    /// By method and code.
    times: Mutex<BTreeMap<(String, i32), Histogram>>,
}

impl CsiMeters {
    pub fn new(driver: DriverName) -> CsiMeters {
        CsiMeters { driver, times: Mutex::default() }
    }
}

impl Answers for CsiMeters {
    fn answered(&self, path: &str, code: Code, took: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (path.to_owned(), code as i32);
        // Anybody can invent names of methods.
        let is_known = code != Code::Unimplemented && times.len() < SERIES_MAX;
        if is_known || times.contains_key(&key) {
            times.entry(key).or_default().record(took, 1);
        }
    }
}

impl Source for CsiMeters {
    fn collect(&self, into: &mut Samples) {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, code), histogram) in times.iter() {
            let labels = [self.driver.as_str(), method, code_name(Code::from(*code))];
            into.histogram(&list::CSI_OPERATIONS, &labels, histogram.value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_are_none_make_no_series() {
        let meters = CsiMeters::new("csi.example.org".parse().unwrap());
        for number in 0..2 * SERIES_MAX {
            let path = format!("/csi.v1.Controller/Invented{number}");
            meters.answered(&path, Code::Unimplemented, Duration::ZERO);
        }
        assert_eq!(meters.times.lock().unwrap().len(), 0);
        for number in 0..2 * SERIES_MAX {
            meters.answered(&format!("/{number}"), Code::Ok, Duration::ZERO);
        }
        assert_eq!(meters.times.lock().unwrap().len(), SERIES_MAX);
    }
}
