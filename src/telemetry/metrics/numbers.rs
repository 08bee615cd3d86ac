//! Values that one thread counts and others read. No locks, no allocation, no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count or a state.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds to a number that only the calling thread changes: as cheap as a plain integer.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Adds to a number that several threads change.
    pub fn add_shared(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets of all histograms of times, in microseconds. Fine where a read or a
/// write takes its time (0.1 to 5 ms), coarse beyond.
pub const BOUNDS_US: [u64; 28] = [
    10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 7_000,
    10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
    30_000_000,
];

/// A histogram of times.
#[derive(Debug)]
pub struct Histogram {
    /// The last one is of all that is longer than the last bound.
    buckets: [Number; BOUNDS_US.len() + 1],
    sum_us: Number,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: std::array::from_fn(|_| Number::default()), sum_us: Number::default() }
    }
}

/// A histogram as of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramValue {
    pub sum_seconds: f64,
    pub buckets: [u64; BOUNDS_US.len() + 1],
}

impl Histogram {
    /// Adds `count` times; only the calling thread changes this histogram.
    #[inline]
    pub fn record(&self, time: Duration, count: u64) {
        let (us, bucket) = place(time);
        self.buckets[bucket].add(count);
        self.sum_us.add(us.wrapping_mul(count));
    }

    /// Adds one time to a histogram that several threads change.
    pub fn record_shared(&self, time: Duration) {
        let (us, bucket) = place(time);
        self.buckets[bucket].add_shared(1);
        self.sum_us.add_shared(us);
    }

    pub fn value(&self) -> HistogramValue {
        HistogramValue {
            sum_seconds: self.sum_us.get() as f64 / 1e6,
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].get()),
        }
    }
}

impl HistogramValue {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The time in microseconds, rounded, and its bucket.
#[inline]
fn place(time: Duration) -> (u64, usize) {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let us = nanos.saturating_add(500) / 1000;
    (us, BOUNDS_US.partition_point(|bound| *bound < us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_of_the_first_bound_that_is_not_less() {
        let histogram = Histogram::default();
        let us = [0, 10, 11, 1_000, 30_000_000, 30_000_001];
        us.iter().for_each(|us| histogram.record(Duration::from_micros(*us), 1));
        histogram.record(Duration::from_micros(12), 3);
        let value = histogram.value();
        assert_eq!(value.buckets[..2], [2, 4]);
        let of_1_ms = BOUNDS_US.iter().position(|bound| *bound == 1_000).unwrap();
        assert_eq!(value.buckets[of_1_ms], 1);
        assert_eq!(value.buckets[BOUNDS_US.len() - 1..], [1, 1]);
        assert_eq!(value.count(), 9);
        assert!((value.sum_seconds - 60.001_058).abs() < 1e-9, "{}", value.sum_seconds);
        histogram.record(Duration::MAX, 1);
        assert_eq!(histogram.value().count(), 10);
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS_US.is_sorted_by(|one, next| one < next));
    }
}
