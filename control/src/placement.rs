//! Which cores the workers stay on, and why there.

use crate::{
    config::{Config, Workers},
    doctor,
};
use std::io;
use virga_transport::{
    io::topology::{self, Seat},
    share::WORKERS_MAX,
};

/// Where a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The core that it stays on, if any.
    pub core: Option<usize>,
    /// Why there.
    pub why: String,
}

/// One for each worker of a node.
///
/// # Errors
/// When the kernel does not tell which CPUs this process may use.
pub fn of(config: &Config) -> io::Result<Vec<Place>> {
    let asked = match &config.node.workers {
        Workers::Number(workers) => {
            let anywhere = Place {
                core: None,
                why: "on whichever core the kernel gives it".to_owned(),
            };
            return Ok(vec![anywhere; *workers]);
        }
        Workers::Cores(_) => "worker_cores",
        Workers::Auto => "auto",
    };
    let place = |seat: &Seat| Place {
        core: Some(seat.core),
        why: format!("{asked}: {seat}"),
    };
    let places: Vec<_> = seats(config)?.iter().map(place).collect();
    for (worker, Place { core, why }) in places.iter().enumerate() {
        tracing::info!(worker, core, why, "a worker has its core");
    }
    Ok(places)
}

/// The cores that workers stay on; none where the configuration names none.
pub(crate) fn seats(config: &Config) -> io::Result<Vec<Seat>> {
    let workers = &config.node.workers;
    if matches!(workers, Workers::Number(_)) {
        return Ok(Vec::new());
    }
    let cpus = match workers {
        // Which cores is said; this only tells of them.
        Workers::Cores(_) => topology::allowed().unwrap_or_default(),
        Workers::Number(_) | Workers::Auto => topology::allowed()?,
    };
    let interfaces = doctor::configured(config);
    let near = topology::numa_of_interfaces(interfaces.iter().map(String::as_str));
    let cores = match workers {
        Workers::Cores(cores) => cores.clone(),
        Workers::Number(_) | Workers::Auto => {
            let mut cores = topology::order(&cpus, near);
            cores.truncate(topology::workers(&cpus).min(usize::from(WORKERS_MAX)));
            cores
        }
    };
    Ok(topology::describe(&cpus, near, &cores))
}
