//! A status as the text that a scrape gets: OpenMetrics 1.0.

use super::{Kind, Rows, Series, Value, table};
use crate::api::status::Status;
use prometheus_client::{
    collector::Collector,
    encoding::{
        CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue,
        GaugeValueEncoder, MetricEncoder, NoLabelSet, text,
    },
    metrics::MetricType,
    registry::{Registry, Unit},
};
use std::{borrow::Cow, fmt};

/// The text's media type.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every series with its values.
#[must_use]
pub fn of(status: &Status) -> String {
    let each = table::all().map(|series| (*series, series.rows(status)));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Values(each.collect())));
    let mut text = String::new();
    // A text takes all that is written to it.
    let _written = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Values(Vec<(Series, Rows)>);

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (series, rows) in &self.0 {
            encode(&mut encoder, series, rows)?;
        }
        Ok(())
    }
}

fn encode(encoder: &mut DescriptorEncoder<'_>, series: &Series, rows: &Rows) -> fmt::Result {
    let (name, kind) = match series.kind {
        Kind::Counter => (series.name.trim_end_matches("_total"), MetricType::Counter),
        Kind::Gauge => (series.name, MetricType::Gauge),
    };
    // The name of a series that has a unit ends with it, in its metadata too.
    let (name, unit) = match name
        .strip_suffix(series.unit)
        .and_then(|n| n.strip_suffix('_'))
    {
        Some(name) => (name, Some(Unit::Other(series.unit.to_owned()))),
        None => (name, None),
    };
    let help = series.help.trim_end_matches('.');
    let mut encoder = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
    for (values, value) in rows.iter() {
        let values = values.iter().map(|value| escaped(value));
        let labels: Vec<_> = series.labels.iter().copied().zip(values).collect();
        if labels.is_empty() {
            encode_value(&mut encoder, series.kind, value)?;
        } else {
            encode_value(&mut encoder.encode_family(&labels)?, series.kind, value)?;
        }
    }
    Ok(())
}

/// A label's value as it stands between quotes.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n").into()
}

fn encode_value(encoder: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> fmt::Result {
    match kind {
        Kind::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
        Kind::Gauge => encoder.encode_gauge(&value),
    }
}

impl EncodeCounterValue for Value {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => EncodeCounterValue::encode(value, encoder),
            Self::Real(value) => EncodeCounterValue::encode(value, encoder),
        }
    }
}

impl EncodeGaugeValue for Value {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        match *self {
            Self::Real(value) => EncodeGaugeValue::encode(&value, encoder),
            Self::Whole(value) => match i64::try_from(value) {
                Ok(value) => EncodeGaugeValue::encode(&value, encoder),
                Err(_) => EncodeGaugeValue::encode(&(value as f64), encoder),
            },
        }
    }
}
