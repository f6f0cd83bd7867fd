//! The `[[channel_authorities]]` blocks: whose signed channels count, beside those of the file.

use super::{
    Entity, channels, file,
    peers::Roster,
    problem::{Report, Section},
    rules::Checker,
    values,
};
use toml::Spanned;
use virga_transport::ChannelName;

/// One `[[channel_authorities]]` block: whose signed channels count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Who signs.
    pub entity: Entity,
    /// The channel, with all below it, that it may declare; none where it may declare any.
    pub within: Option<ChannelName>,
}

/// Applies every rule to the blocks; complete only when nothing is wrong.
pub(super) fn resolve(
    blocks: Vec<Spanned<file::ChannelAuthority>>,
    own_name: Option<&str>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Vec<Authority> {
    let mut authorities = Vec::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let section = Section::new(format!("channel_authorities[{index}]"), block.span());
        let block = block.into_inner();
        let word = report.required(&section, "entity", block.entity, "\"edge-a\"");
        let words = word.map(|word| Spanned::new(word.span(), vec![word]));
        let entities = channels::entities(&section, "entity", words, roster, report);
        let mut check = Checker {
            section: &section,
            report,
        };
        let is_all = block.within.is_none();
        // A node name that is wrong is reported where it stands; here any serves.
        let within = check.text("within", block.within, |text| {
            ChannelName::expand(text, own_name.unwrap_or("node")).or_else(|error| {
                values::fault(
                    error.to_string(),
                    "write levels with single slashes between, such as \"sensors/$node\"",
                )
            })
        });
        if is_all || within.is_some() {
            let one = |entity| Authority {
                entity,
                within: within.clone(),
            };
            authorities.extend(entities.into_iter().map(one));
        }
    }
    authorities
}
