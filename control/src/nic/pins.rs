//! Where a node's programs, maps and links are pinned.
//!
//! ```text
//! /sys/fs/bpf/virga/NODE/
//!     maps-v1-65536/   layout version and size of the route table: another layout, another folder
//!     programs/        virga, virga_pass
//!     links/           one an interface; INTERFACE.pass where only the minimal program is attached
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use virga_ebpf::limits::LAYOUT_VERSION;

/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
/// `f_type` of bpffs (linux/magic.h).
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

/// A node's folder in bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Of the node of that name; the name is validated by the configuration.
    #[must_use]
    pub fn of(node: &str) -> Self {
        Self {
            root: Path::new(BPFFS).join("virga").join(node),
        }
    }

    /// The node's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Maps of the current layout, with room for that many destinations.
    #[must_use]
    pub fn maps(&self, destinations_max: u32) -> PathBuf {
        self.root
            .join(format!("maps-v{LAYOUT_VERSION}-{destinations_max}"))
    }

    /// A program's pin.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// The pin of an interface's link.
    #[must_use]
    pub fn link(&self, interface: &str, program: &str) -> PathBuf {
        // bpffs refuses names with a dot other than its own, and interface names may hold some.
        let interface = interface.replace('.', "_");
        let suffix = if program == super::PASS { "-pass" } else { "" };
        self.root.join("links").join(format!("{interface}{suffix}"))
    }

    /// Names of the pinned links.
    #[must_use]
    pub fn links(&self) -> Vec<PathBuf> {
        entries(&self.root.join("links"))
    }

    /// Makes the folders, or says what is missing.
    ///
    /// # Errors
    /// When bpffs is not mounted or cannot be written.
    pub fn create(&self, destinations_max: u32) -> io::Result<()> {
        if !is_mounted() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no BPF file system at {BPFFS}: run `mount -t bpf bpf {BPFFS}`"),
            ));
        }
        for folder in [
            self.maps(destinations_max),
            self.root.join("programs"),
            self.root.join("links"),
        ] {
            fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    /// Removes maps of other layouts and sizes: nothing refers to them once all links are updated.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_other_maps(&self, destinations_max: u32) -> io::Result<()> {
        let current = self.maps(destinations_max);
        for folder in entries(&self.root) {
            let is_maps = folder
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("maps-"));
            if is_maps && folder != current {
                remove_tree(&folder)?;
            }
        }
        Ok(())
    }

    /// Removes everything: links first, so that programs detach. True if there was something.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> io::Result<bool> {
        if !self.root.exists() {
            return Ok(false);
        }
        for link in self.links() {
            fs::remove_file(link)?;
        }
        remove_tree(&self.root)?;
        // The parent goes with its last node; another node's folder keeps it.
        if let Some(parent) = self.root.parent() {
            match fs::remove_dir(parent) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Whether a BPF file system is mounted where pins go.
#[must_use]
pub fn is_mounted() -> bool {
    rustix::fs::statfs(BPFFS).is_ok_and(|s| u64::try_from(s.f_type) == Ok(BPFFS_MAGIC))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = read.filter_map(|e| e.ok().map(|e| e.path())).collect();
    paths.sort();
    paths
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for path in entries(folder) {
        if path.is_dir() {
            remove_tree(&path)?
        } else {
            fs::remove_file(&path)?
        }
    }
    fs::remove_dir(folder)
}
