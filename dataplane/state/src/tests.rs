//! The log on a disk that forgets: `forgetful` is the disk, `world` a log on it; `crash` takes its
//! power away, `damage` changes its bytes, `foreign` puts something else in place of its files, `running` drives it, `full` without room; `signed` is of signed events.

pub(crate) mod crash;
mod damage;
mod folder;
mod foreign;
pub(crate) mod forgetful;
mod full;
mod running;
pub(crate) mod signed;
pub(crate) mod world;
