//! What was there before: a file an interface, written before each change.

use super::{TuneError, setting::Setting};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The layout of the file.
const VERSION: u32 = 2;

/// The previous values of what was changed, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    /// What was changed.
    pub(super) of: Place,
    pub(super) changes: Vec<Change>,
}

/// Which interface of which namespace of which boot: the name alone does not tell.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// The kernel's id of this boot: another forgot every setting.
    pub(super) boot: String,
    /// The network namespace, by its inode.
    pub(super) namespace: u64,
    /// A later interface of the same name has another.
    pub(super) ifindex: u32,
}

impl Place {
    /// An interface of this thread's namespace.
    pub(super) fn here(ifindex: u32) -> io::Result<Self> {
        Ok(Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .to_owned(),
            namespace: fs::metadata("/proc/thread-self/ns/net")?.ino(),
            ifindex,
        })
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) setting: Setting,
    pub(super) from: String,
    pub(super) to: String,
}

impl State {
    pub(super) fn new(of: Place) -> Self {
        Self {
            version: VERSION,
            of,
            changes: Vec::new(),
        }
    }

    /// The state of an interface; `None` when nothing of it was changed.
    pub(super) fn load(folder: &Path, interface: &str) -> Result<Option<Self>, TuneError> {
        let path = path(folder, interface);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        };
        match serde_json::from_str::<Self>(&text) {
            Ok(state) if state.version == VERSION => Ok(Some(state)),
            Ok(state) => {
                let said = format!("version {}, known is {VERSION}", state.version);
                Err(failed(path, said))
            }
            Err(error) => Err(failed(path, error)),
        }
    }

    /// Writes it whole, or leaves the former; without a change there is no file.
    pub(super) fn save(&self, folder: &Path, interface: &str) -> Result<(), TuneError> {
        let path = path(folder, interface);
        let written = if self.changes.is_empty() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        } else {
            self.write(folder, &path)
        };
        written.map_err(|error| failed(path, error))
    }

    fn write(&self, folder: &Path, path: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    }

    /// The change of a setting, if there is one.
    pub(super) fn change_of(&self, setting: &Setting) -> Option<&Change> {
        self.changes
            .iter()
            .find(|change| change.setting == *setting)
    }

    /// What a setting was changed to, if it was.
    pub(super) fn changed_to(&self, setting: &Setting) -> Option<&str> {
        Some(&self.change_of(setting)?.to)
    }

    /// Says how a change is undone, where that is known only afterwards.
    pub(super) fn came_from(&mut self, setting: &Setting, from: String) {
        if let Some(change) = self.changes.iter_mut().find(|c| c.setting == *setting) {
            change.from = from;
        }
    }

    /// Notes a change that is about to be made; the oldest value stays.
    pub(super) fn note(&mut self, setting: &Setting, from: &str, to: &str) {
        let known = self.changes.iter().position(|c| c.setting == *setting);
        let from = match known {
            Some(index) => self.changes.remove(index).from,
            None => from.to_owned(),
        };
        self.changes.push(Change {
            setting: setting.clone(),
            from,
            to: to.to_owned(),
        });
    }

    /// Notes a value that may change along with others: cards start anew and forget. It is put back last.
    pub(super) fn guard(&mut self, setting: Setting, now: String) {
        if self.changed_to(&setting).is_none() {
            let change = Change {
                setting,
                to: now.clone(),
                from: now,
            };
            self.changes.insert(0, change);
        }
    }

    /// Forgets guarded values that did not change, and notes what the others became.
    pub(super) fn settle(&mut self, read: impl Fn(&Setting) -> Option<String>) {
        self.changes.retain_mut(|change| {
            if change.from != change.to {
                return true;
            }
            match read(&change.setting) {
                Some(now) if now != change.from => {
                    change.to = now;
                    true
                }
                _ => false,
            }
        });
    }
}

fn failed(path: PathBuf, said: impl ToString) -> TuneError {
    let said = said.to_string();
    TuneError::State { path, said }
}

/// The file of an interface.
pub(super) fn path(folder: &Path, interface: &str) -> PathBuf {
    folder.join(format!("{interface}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::setting::Kind;

    fn of(ifindex: u32) -> Place {
        Place::here(ifindex).unwrap()
    }

    #[test]
    fn the_oldest_value_is_kept_and_the_file_goes_with_the_last_change() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tune");
        assert_eq!(State::load(&folder, "eth0").unwrap(), None);
        let mut state = State::new(of(7));
        let queues = Setting::Channels(Kind::Combined);
        state.note(&queues, "2", "4");
        state.note(&queues, "4", "8");
        state.note(&Setting::File("/sys/x".into()), "a b", "c");
        state.save(&folder, "eth0").unwrap();
        let loaded = State::load(&folder, "eth0").unwrap().unwrap();
        assert_eq!(loaded, state);
        assert_eq!(
            (&*loaded.changes[0].from, &*loaded.changes[0].to),
            ("2", "8")
        );
        assert_eq!(loaded.changed_to(&queues), Some("8"));
        state.changes.clear();
        state.save(&folder, "eth0").unwrap();
        assert_eq!(State::load(&folder, "eth0").unwrap(), None);
        state.save(&folder, "eth0").unwrap();
    }

    #[test]
    fn values_that_changed_along_are_put_back_last() {
        let mut state = State::new(of(7));
        state.guard(Setting::RxUsecs, "3".into());
        state.guard(Setting::Spread, "1".into());
        state.guard(Setting::AdaptiveRx, "off".into());
        state.note(&Setting::Ring(Kind::Rx), "512", "2048");
        // What is changed on purpose comes in its turn, with the value of before all.
        state.note(&Setting::RxUsecs, "50", "20");
        state.guard(Setting::RxUsecs, "20".into());
        state.settle(|setting| match setting {
            Setting::Spread => Some("2".into()),
            Setting::AdaptiveRx => Some("off".into()),
            _ => None,
        });
        let settled: Vec<_> = state.changes.iter().map(|c| (&*c.from, &*c.to)).collect();
        assert_eq!(settled, [("1", "2"), ("512", "2048"), ("3", "20")]);
    }

    #[test]
    fn a_file_that_is_not_one_of_ours_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{}",
            r#"{"version":3,"of":{"boot":"","namespace":1,"ifindex":1},"changes":[]}"#,
            r#"{"version":2,"of":{"boot":"","namespace":1,"ifindex":1},
                "changes":[{"setting":"all","from":"","to":""}]}"#,
        ] {
            fs::write(folder.path().join("eth0.json"), text).unwrap();
            let error = State::load(folder.path(), "eth0").unwrap_err();
            assert!(error.to_string().contains("eth0.json"), "{error}");
        }
    }
}
