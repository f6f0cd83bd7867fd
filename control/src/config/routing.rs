//! `[routing]`: whether this node learns from its neighbours who leads where.

use super::{file, problem::Report};
use toml::Spanned;
use virga_routing::Aggregation;

/// The `[routing]` section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingSection {
    /// Whether neighbours tell each other who leads where. Off, the file's `address` and `via` say all.
    pub is_enabled: bool,
    /// Whether other subnets are one destination each; the same in the whole mesh.
    pub aggregation: Aggregation,
}

pub(super) fn resolve(
    routing: Option<Spanned<file::Routing>>,
    report: &mut Report<'_>,
) -> RoutingSection {
    let Some(routing) = routing else {
        return RoutingSection::default();
    };
    let span = routing.span();
    let file::Routing { enabled, by_subnet } = routing.into_inner();
    let [is_enabled, is_by_subnet] =
        [&enabled, &by_subnet].map(|key| key.as_ref().is_some_and(|key| *key.get_ref()));
    if is_by_subnet && !is_enabled {
        let what = "says how routes are learned, and none are";
        let fix = "add `enabled = true`, or remove it";
        report.add(span, "routing.by_subnet", what, fix);
    }
    RoutingSection {
        is_enabled,
        aggregation: match is_by_subnet {
            true => Aggregation::BySubnet,
            false => Aggregation::Exact,
        },
    }
}
