//! `[subnets]` and `[[subnet_gateways]]`: who vouches for subnets, and who says what they admit.

use super::{
    Config, Entity, PeerSubnet, SubnetGateway, channels, file,
    peers::Roster,
    problem::{Report, Section},
    rules::Checker,
    values,
};
use crate::filters::{GATEWAYS_MAX, LIFE_S_DEFAULT, LIFE_S_MAX, LIFE_S_MIN};
use std::collections::BTreeSet;
use toml::Spanned;
use virga_ebpf::{limits::FILTERS_MAX, subnet::SubnetPrefix};

/// Who vouches for subnets, and for how many seconds a filter of this node's counts.
pub(super) fn resolve(
    subnets: Option<Spanned<file::Subnets>>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> (Vec<Entity>, u32) {
    let Some(subnets) = subnets else {
        return (Vec::new(), LIFE_S_DEFAULT);
    };
    let span = subnets.span();
    let section = Section::new("subnets", span.clone());
    let file::Subnets {
        issuers,
        filter_life_s,
    } = subnets.into_inner();
    let names_nobody = issuers.as_ref().is_none_or(|all| all.get_ref().is_empty());
    if names_nobody && (issuers.is_some() || filter_life_s.is_none()) {
        let fix = "name who vouches: issuers = [\"root\"]; or remove the section";
        report.add(span, section.key("issuers"), "names nobody", fix);
    }
    let mut check = Checker {
        section: &section,
        report,
    };
    let [least, most] = [LIFE_S_MIN, LIFE_S_MAX].map(i64::from);
    let life_s = check.number("filter_life_s", filter_life_s, least, most);
    let issuers = channels::entities(&section, "issuers", issuers, roster, report);
    (issuers, life_s.unwrap_or(LIFE_S_DEFAULT))
}

/// Applies every rule to the blocks; complete only when nothing is wrong.
pub(super) fn gateways(
    blocks: Vec<Spanned<file::SubnetGateway>>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Vec<SubnetGateway> {
    let mut gateways: Vec<SubnetGateway> = Vec::new();
    let mut prefixes: BTreeSet<SubnetPrefix> = BTreeSet::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let (path, span) = (format!("subnet_gateways[{index}]"), block.span());
        let section = Section::new(path.clone(), span.clone());
        let block = block.into_inner();
        let word = report.required(&section, "entity", block.entity, "\"gateway-a\"");
        let words = word.map(|word| Spanned::new(word.span(), vec![word]));
        let entities = channels::entities(&section, "entity", words, roster, report);
        let subnet = report.required(&section, "subnet", block.subnet, "\"1.0.0.0/8\"");
        let mut check = Checker {
            section: &section,
            report,
        };
        let prefix = check.text("subnet", subnet, |text| match text.ends_with("/0") {
            false => values::subnet_prefix(text),
            true => values::fault(
                format!("{text:?} is everywhere"),
                "leave the block out: where no gateway is named, the exact pairs hold everywhere",
            ),
        });
        let (Some(entity), Some(prefix)) = (entities.into_iter().next(), prefix) else {
            continue;
        };
        let gateway = SubnetGateway { entity, prefix };
        prefixes.insert(prefix);
        if gateways.contains(&gateway) {
            report.add(span, path, "is there twice", "leave one out");
        } else if gateways.len() >= GATEWAYS_MAX {
            let what = format!("is one more than {GATEWAYS_MAX}");
            report.add(span, path, what, "name fewer gateways of each subnet");
        // This node's own subnet needs no table.
        } else if prefixes.len() > FILTERS_MAX as usize + 1 {
            let what = format!("is the gateway of one subnet more than {FILTERS_MAX} others");
            let fix = "let one prefix stand for several subnets, such as \"1.0.0.0/8\"";
            report.add(span, path, what, fix);
        } else {
            gateways.push(gateway);
        }
    }
    gateways
}

/// A gateway signs what it knows exactly.
pub(super) fn check_own(config: &Config, report: &mut Report<'_>) {
    let own = config.exact_within();
    let prefixes = config.subnet_gateways.iter().map(|one| one.prefix);
    let others: BTreeSet<_> = prefixes.filter(|prefix| Some(*prefix) != own).collect();
    if others.len() > FILTERS_MAX as usize {
        let count = others.len();
        let what = format!("name gateways of {count} other subnets, and {FILTERS_MAX} is the most");
        let fix = "let one prefix stand for several subnets, such as \"1.0.0.0/8\"";
        report.add(0..0, "subnet_gateways".to_owned(), what, fix);
    }
    let (key, subnet) = (config.keys.entity.public, config.node.subnet);
    for (index, gateway) in config.subnet_gateways.iter().enumerate() {
        if gateway.entity.key == key && Some(gateway.prefix) != own {
            let place = PeerSubnet {
                subnet,
                mask: subnet.mask(),
            };
            let what = format!(
                "names this node as a gateway, and of the blocks' subnets another is the closest around its own, {place}"
            );
            let fix = "name it as a gateway of that one, or another node here";
            report.add(0..0, format!("subnet_gateways[{index}]"), what, fix);
        }
    }
}
