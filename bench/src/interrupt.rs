//! An interrupt ends a measurement where it stands, so that all that it made is taken away again.

#[path = "../../control/examples/demo/interrupt.rs"]
mod signals;

use crate::report::Skip;
pub(crate) use signals::listen;

/// An error once one has come.
pub(crate) fn check() -> Result<(), Skip> {
    if signals::has_come() {
        return Err(Skip::Failed("interrupted".to_owned()));
    }
    Ok(())
}
