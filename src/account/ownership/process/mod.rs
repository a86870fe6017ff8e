//! Whether an owner's process still runs, where the opener can see that: on the same host, in the
//! same PID namespace of Linux.
//!
//! What cannot be read counts as alive: then the heartbeat decides. So it does on other systems, and
//! across containers, whose PID namespaces differ.

use std::{fs, io::ErrorKind, path::Path, process, sync::Mutex};

use sha2::{Digest, Sha256};

use super::{lock, random_id};

const ROOT: &str = "/";

const PROC: &str = "/proc";

/// Distinguishes this process from its copy in a cloned host, whose other values are the same.
static ID: ProcessId = ProcessId::new();

/// A random id, with the number of the process that drew it.
struct ProcessId(Mutex<Option<(u32, [u8; 16])>>);

impl ProcessId {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The id of the process with this number. One that was forked from another draws its own.
    fn of(&self, pid: u32) -> [u8; 16] {
        let mut drawn = lock(&self.0);
        let (_, id) = drawn.filter(|(by, _)| *by == pid).unwrap_or_else(|| (pid, random_id()));
        *drawn = Some((pid, id));
        id
    }
}

/// A process, as its heartbeat's row describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Random, the same in copies of the process.
    pub(crate) id: Vec<u8>,
    /// `None` where processes cannot be looked up.
    pub(crate) place: Option<Place>,
}

/// Where a process runs, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Hash of the host's boot id, its name and `/etc/machine-id`, and of the namespaces that give `pid`
    /// and `started` a meaning.
    pub(crate) host: Vec<u8>,
    pub(crate) pid: i64,
    /// In clock ticks since the host's start.
    pub(crate) started: i64,
}

impl Process {
    /// This process.
    pub(crate) fn current() -> Self {
        let (is_linux, pid) = (cfg!(target_os = "linux"), process::id());
        let place = is_linux.then(|| Place::of_self(Path::new(ROOT), pid)).flatten();
        Self { id: ID.of(pid).to_vec(), place }
    }

    /// Whether the other process has certainly ended.
    pub(crate) fn sees_the_end_of(&self, other: &Self) -> bool {
        let (Some(here), Some(there)) = (&self.place, &other.place) else { return false };
        self.id != other.id && here.sees_the_end_of(there, Path::new(ROOT))
    }
}

impl Place {
    /// Whether the process there has ended, as this process sees it from here.
    fn sees_the_end_of(&self, there: &Self, root: &Path) -> bool {
        // The first was read a while ago, and the files may have been hidden since.
        self.host == there.host && there.has_ended(root) && self.is_of_self(root)
    }

    fn is_of_self(&self, root: &Path) -> bool {
        let pid = u32::try_from(self.pid).ok();
        pid.and_then(|pid| Self::of_self(root, pid)).as_ref() == Some(self)
    }

    fn of_self(root: &Path, pid: u32) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(root.join(name)).ok();
        let link = |name: &str| fs::read_link(root.join(name)).ok();
        if !is_of_own_namespace(&read("proc/self/status")?, pid)
            || !shows_all_processes(&read("proc/self/mountinfo")?)
        {
            return None;
        }
        let boot = read("proc/sys/kernel/random/boot_id").filter(|boot| !boot.trim().is_empty())?;
        let mut hash = Sha256::new();
        hash.update(boot.trim());
        // Hosts that were restored from one snapshot of the memory have the same boot id.
        for name in [Some(read("proc/sys/kernel/hostname")?), read("etc/machine-id")] {
            hash.update([0]);
            hash.update(name.unwrap_or_default().trim());
        }
        for namespace in [Some(link("proc/self/ns/pid")?), link("proc/self/ns/time")] {
            // Kernels before 5.6 have no time namespaces.
            hash.update([0]);
            hash.update(namespace.unwrap_or_default().as_os_str().as_encoded_bytes());
        }
        let started = Stat::parse(&read("proc/self/stat")?)?.started;
        Some(Self { host: hash.finalize().to_vec(), pid: pid.into(), started })
    }

    fn has_ended(&self, root: &Path) -> bool {
        match fs::read_to_string(root.join(format!("proc/{}/stat", self.pid))) {
            Ok(stat) => Stat::parse(&stat)
                .is_some_and(|stat| stat.is_zombie || stat.started != self.started),
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }
}

/// Whether the directory describes the PID namespace of the process: it would list the process's
/// number in each namespace below its own.
fn is_of_own_namespace(status: &str, pid: u32) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.is_some_and(|pids| pids.split_whitespace().eq([pid.to_string().as_str()]))
}

/// Whether the processes of other users are visible, and not hidden by a mount option.
fn shows_all_processes(mountinfo: &str) -> bool {
    let mut mounts = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some(PROC));
    // The last one covers the others.
    mounts.next_back().is_some_and(|mount| {
        let options = mount.split([' ', ',']).filter_map(|option| option.strip_prefix("hidepid="));
        let mut shown = options.map(|value| matches!(value, "0" | "off"));
        mount.contains(" - proc ") && shown.all(|is_shown| is_shown)
    })
}

/// What is needed of `/proc/<pid>/stat`.
struct Stat {
    /// The process has ended, but its parent has not yet taken notice.
    is_zombie: bool,
    started: i64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may contain any character. Behind it: the fields from the third on.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let (state, threads, started) = (fields.first()?, fields.get(17)?, fields.get(19)?);
        // A process whose first thread has ended runs on as long as it has others.
        let is_zombie = matches!(*state, "Z" | "X") && threads.parse::<i64>().ok()? <= 1;
        Some(Self { is_zombie, started: started.parse().ok()? })
    }
}

#[cfg(test)]
mod tests;
