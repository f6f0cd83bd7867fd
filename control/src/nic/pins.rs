//! Where a node's programs, maps and links are pinned.
//!
//! ```text
//! /sys/fs/bpf/virga/NODE/
//!     maps-v3-65536/   layout version and size of the route table: another layout, another folder
//!     programs/        virga, virga_pass
//!     links/           one an interface: NAME-INDEX-MODE, MODE being native or generic
//! ```

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
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

    /// The pin of a link on an interface: the one that is there for its index and mode, whatever the
    /// interface was called then, or where a new one goes.
    #[must_use]
    pub fn link(&self, interface: &str, ifindex: u32, mode: &str) -> PathBuf {
        let suffix = format!("-{ifindex}-{mode}");
        let there = self.links_on(ifindex);
        let there = there
            .into_iter()
            .find(|p| p.to_string_lossy().ends_with(&suffix));
        // bpffs refuses names with a dot, and interface names may hold some.
        let name = format!("{}{suffix}", interface.replace('.', "_"));
        there.unwrap_or_else(|| self.root.join("links").join(name))
    }

    /// The pins of links on an interface, in whatever mode.
    #[must_use]
    pub fn links_on(&self, ifindex: u32) -> Vec<PathBuf> {
        let on = ["native", "generic"].map(|mode| format!("-{ifindex}-{mode}"));
        let mut links = self.links();
        links.retain(|pin| {
            let pin = pin.to_string_lossy();
            on.iter().any(|suffix| pin.ends_with(suffix))
        });
        links
    }

    /// Whether nothing is pinned here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        entries(&self.root).is_empty()
    }

    /// Locks the node's folder: one daemon a node, and no detaching under it. `None`: another holds it,
    /// or has just removed it.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn lock(&self) -> io::Result<Option<fs::File>> {
        let folder = fs::File::open(&self.root)?;
        match rustix::fs::flock(
            &folder,
            rustix::fs::FlockOperation::NonBlockingLockExclusive,
        ) {
            Ok(()) => {
                let inode = |m: fs::Metadata| (m.dev(), m.ino());
                let held = inode(folder.metadata()?);
                let is_there = fs::metadata(&self.root).is_ok_and(|m| inode(m) == held);
                Ok(is_there.then_some(folder))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the pins of links that are not `wanted`: their programs detach. Returns them.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_other_links(&self, wanted: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
        let mut others = self.links();
        others.retain(|pin| !wanted.contains(pin));
        for pin in &others {
            fs::remove_file(pin)?;
        }
        Ok(others)
    }

    /// The pinned links.
    #[must_use]
    pub fn links(&self) -> Vec<PathBuf> {
        entries(&self.root.join("links"))
    }

    /// Makes the node's folder, or says what is missing.
    ///
    /// # Errors
    /// When bpffs is not mounted or cannot be written.
    pub fn create_root(&self) -> io::Result<()> {
        if !is_mounted() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                Absent::find().to_string(),
            ));
        }
        // Whoever could open the folder could lock it: parent and folder are this user's alone.
        for folder in self.root.parent().into_iter().chain([self.root.as_path()]) {
            make_own(folder)?;
        }
        Ok(())
    }

    /// Makes the folders in it.
    ///
    /// # Errors
    /// When bpffs cannot be written.
    pub fn create(&self, destinations_max: u32) -> io::Result<()> {
        for folder in [
            self.maps(destinations_max),
            self.root.join("programs"),
            self.root.join("links"),
        ] {
            fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    /// The newest layout of pinned maps, where this version does not know it yet.
    #[must_use]
    pub fn newer_layout(&self) -> Option<u32> {
        let newest = entries(&self.root).into_iter().filter_map(|folder| {
            let name = folder.file_name()?.to_str()?;
            let (layout, _) = name.strip_prefix("maps-v")?.split_once('-')?;
            layout.parse().ok()
        });
        newest.max().filter(|layout| *layout > LAYOUT_VERSION)
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
        // The parent goes with its last node; another node's folder keeps it, and a service's stays its own.
        if let Some(parent) = self.root.parent()
            && is_own(&fs::metadata(parent)?)
        {
            use io::ErrorKind::{DirectoryNotEmpty, PermissionDenied, ResourceBusy};
            match fs::remove_dir(parent).map_err(|error| (error.kind(), error)) {
                Ok(()) | Err((DirectoryNotEmpty | PermissionDenied | ResourceBusy, _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Whether a BPF file system is mounted where pins go; a service may have the folder of nodes alone.
#[must_use]
pub fn is_mounted() -> bool {
    let is_bpffs = |path: &Path| {
        rustix::fs::statfs(path).is_ok_and(|s| u64::try_from(s.f_type) == Ok(BPFFS_MAGIC))
    };
    let root = Path::new(BPFFS);
    is_bpffs(root) || is_bpffs(&root.join("virga"))
}

/// Why there is no BPF file system where pins go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Nobody mounted one.
    NotMounted,
    /// `ip netns exec` mounted another /sys over it, for the namespace of that name.
    Hidden(String),
}

impl Absent {
    /// Looks at this process's mounts.
    #[must_use]
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let is_namespace = |name: &str| Path::new("/run/netns").join(name).exists();
        match netns_exec(&mounts).filter(|name| is_namespace(name)) {
            Some(name) => Self::Hidden(name.into()),
            None => Self::NotMounted,
        }
    }

    /// The line that fixes it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::NotMounted => format!("mount -t bpf bpf {BPFFS}"),
            Self::Hidden(name) => {
                format!("nsenter --net=/run/netns/{name} virga node run --config FILE")
            }
        }
    }
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotMounted => write!(f, "no BPF file system at {BPFFS}: run `{}`", self.fix()),
            Self::Hidden(_) => write!(
                f,
                "`ip netns exec` hides the BPF file system at {BPFFS}: start with `{}` instead",
                self.fix()
            ),
        }
    }
}

/// The namespace that `ip netns exec` entered: it names the sysfs that it mounts after it.
fn netns_exec(mountinfo: &str) -> Option<&str> {
    // proc_pid_mountinfo(5): id, parent, device, root, mount point, options, tags, "-", type, source.
    let on_sys = |line: &&str| line.split(' ').nth(4) == Some("/sys");
    let (_, mounted) = mountinfo.lines().rfind(on_sys)?.split_once(" - ")?;
    let mut fields = mounted.split(' ');
    let (kind, source) = (fields.next()?, fields.next()?);
    (kind == "sysfs" && source != "sysfs").then_some(source)
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

fn is_own(there: &fs::Metadata) -> bool {
    there.uid() == rustix::process::geteuid().as_raw()
}

/// Makes a folder that is this user's alone. bpffs lets anyone write into its root: what somebody else
/// put there is refused, and a link to elsewhere is not followed.
fn make_own(folder: &Path) -> io::Result<()> {
    let refused = |why: String| {
        let text = format!("{} {why} remove it", folder.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    match fs::symlink_metadata(folder) {
        Ok(there) if !there.is_dir() => return refused("is no folder:".to_owned()),
        Ok(there) if !is_own(&there) => {
            return refused(format!(
                "belongs to user {}: run as that user, or",
                there.uid()
            ));
        }
        Ok(_) => {}
        Err(_) => fs::create_dir(folder)?,
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_or_a_file_where_the_folder_should_be_is_refused_and_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (place.path().join("elsewhere"), place.path().join("virga"));
        fs::create_dir(&elsewhere).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let error = make_own(&link).unwrap_err();
        assert!(error.to_string().contains("is no folder"), "{error}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&elsewhere), 0o755);

        let own = place.path().join("own");
        make_own(&own).unwrap();
        make_own(&own).unwrap();
        assert_eq!(mode(&own), 0o700);
    }

    #[test]
    fn a_sysfs_that_is_named_after_a_namespace_is_that_of_ip_netns_exec() {
        let host = "22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                    33 22 0:29 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700\n";
        assert_eq!(netns_exec(host), None);
        let inside = format!("{host}95 60 0:61 / /sys rw,relatime - sysfs router rw\n");
        assert_eq!(netns_exec(&inside), Some("router"));
        assert_eq!(netns_exec("22 28 0:20 / /sys rw - tmpfs router rw\n"), None);
        assert_eq!(netns_exec(""), None);
    }
}
