//! The registry: asks every source for its samples, and writes them as OpenMetrics text.

use std::collections::HashMap;
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry;

use crate::telemetry::metrics::list::{Kind, Metric, all};
use crate::telemetry::metrics::numbers::{BOUNDS_US, HistogramValue};

/// A part of the program with metrics.
pub trait Source: Send + Sync {
    /// Adds the samples as of now. Called by the threads of the control plane; must not block.
    fn collect(&self, into: &mut Samples);
}

/// The value of one series.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Count(u64),
    Seconds(f64),
    Histogram(Box<HistogramValue>),
}

#[derive(Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// The samples of all metrics, in the order of the list.
#[derive(Debug)]
pub struct Samples(Vec<Vec<Sample>>);

impl Samples {
    /// Adds a series; `labels` has a value for each label of the metric, in its order.
    pub fn put(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        let family = all().position(|listed| std::ptr::eq(listed, metric));
        let family = family.unwrap_or_else(|| panic!("{} is not listed", metric.name));
        assert_eq!(labels.len(), metric.labels.len(), "labels of {}", metric.name);
        let is_histogram = matches!(value, Value::Histogram(_));
        assert_eq!(is_histogram, metric.kind == Kind::Histogram, "the type of {}", metric.name);
        let labels = labels.iter().map(|value| (*value).to_owned());
        let labels = metric.labels.iter().copied().zip(labels).collect();
        self.0[family].push(Sample { labels, value });
    }

    pub fn count(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.put(metric, labels, Value::Count(value));
    }

    pub fn histogram(&mut self, metric: &'static Metric, labels: &[&str], value: HistogramValue) {
        self.put(metric, labels, Value::Histogram(Box::new(value)));
    }
}

/// All metrics of the process.
#[derive(Default)]
pub struct Registry {
    sources: Mutex<Vec<Arc<dyn Source>>>,
}

impl Registry {
    pub fn add(&self, source: Arc<dyn Source>) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// The text of all metrics as of now.
    pub fn render(&self) -> String {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut samples = Samples(all().map(|_| Vec::new()).collect());
        sources.iter().for_each(|source| source.collect(&mut samples));
        let mut page = registry::Registry::default();
        page.register_collector(Box::new(samples));
        let mut out = String::new();
        text::encode(&mut out, &page).expect("a string takes all text");
        out
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        for (metric, samples) in all().zip(&self.0).filter(|(_, samples)| !samples.is_empty()) {
            let unit = metric.unit.as_ref();
            let mut family = encoder.encode_descriptor(
                metric.name,
                metric.help,
                unit,
                metric.kind.metric_type(),
            )?;
            for sample in samples {
                // The labels of an information are those of its only line.
                let labels = &sample.labels;
                match metric.kind {
                    Kind::Info => family.encode_info(labels)?,
                    _ if labels.is_empty() => sample.encode_as(metric.kind, &mut family)?,
                    kind => sample.encode_as(kind, &mut family.encode_family(labels)?)?,
                }
            }
        }
        Ok(())
    }
}

/// Exemplars are not used.
type NoExemplar = Exemplar<NoLabelSet, f64>;

impl Sample {
    fn encode_as(&self, kind: Kind, encoder: &mut MetricEncoder<'_>) -> Result<(), Error> {
        match (&self.value, kind) {
            (Value::Histogram(value), _) => {
                let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
                let bounds = bounds.chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(value.buckets).collect();
                let exemplars = None::<&HashMap<usize, NoExemplar>>;
                encoder.encode_histogram(value.sum_seconds, value.count(), &buckets, exemplars)
            }
            (Value::Count(value), Kind::Counter) => {
                encoder.encode_counter(value, None::<&NoExemplar>)
            }
            (Value::Seconds(value), Kind::Counter) => {
                encoder.encode_counter(value, None::<&NoExemplar>)
            }
            (Value::Count(value), _) => encoder.encode_gauge(value),
            (Value::Seconds(value), _) => encoder.encode_gauge(value),
        }
    }
}
