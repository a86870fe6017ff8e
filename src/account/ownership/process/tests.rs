//! On directories with the files of a `/proc` and an `/etc`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::{Path, Place, Process, ProcessId, ROOT, random_id, shows_all_processes};

const MOUNT: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw\n";

/// A root directory, deleted when dropped.
struct Proc(PathBuf);

impl Proc {
    fn new(boot: &str, namespace: &str) -> Self {
        let id = random_id().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let proc = Self(std::env::temp_dir().join(format!("matrix-sdk-postgres-proc-{id}")));
        proc.write("proc/self/status", "Name:\tbot\nNSpid:\t7\n");
        proc.write("proc/self/mountinfo", MOUNT);
        proc.write("proc/sys/kernel/random/boot_id", boot);
        proc.write("proc/sys/kernel/hostname", "bot\n");
        proc.write("etc/machine-id", "id\n");
        proc.write("proc/self/stat", &stat(7, 'R', 1, 100));
        fs::create_dir(proc.0.join("proc/self/ns")).unwrap();
        symlink(namespace, proc.0.join("proc/self/ns/pid")).unwrap();
        proc
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn place(&self) -> Option<Place> {
        Place::of_self(&self.0, 7)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stat(pid: u32, state: char, threads: u32, started: u32) -> String {
    let zeros = |count| "0 ".repeat(count);
    format!("{pid} (a) R (b) {state} {}{threads} 0 {started} {}\n", zeros(16), zeros(30))
}

fn proc() -> Proc {
    Proc::new("boot\n", "pid:[1]")
}

#[test]
fn the_host_is_the_boot_the_machine_and_the_namespace() {
    let place = proc().place().unwrap();
    assert_eq!((place.pid, place.started), (7, 100));
    assert_eq!(proc().place(), Some(place.clone()));
    for other in [Proc::new("another boot", "pid:[1]"), Proc::new("boot", "pid:[2]")] {
        assert_ne!(other.place().unwrap().host, place.host);
    }
    let other = proc();
    symlink("time:[2]", other.0.join("proc/self/ns/time")).unwrap();
    assert_ne!(other.place().unwrap().host, place.host);
    for name in ["proc/sys/kernel/hostname", "etc/machine-id"] {
        let other = proc();
        other.write(name, "another\n");
        assert_ne!(other.place().unwrap().host, place.host, "{name}");
    }
    let other = proc();
    fs::remove_file(other.0.join("etc/machine-id")).unwrap();
    assert_ne!(other.place().unwrap().host, place.host);
}

#[test]
fn without_one_of_the_files_there_is_no_place() {
    for missing in [
        "proc/self/status",
        "proc/self/mountinfo",
        "proc/self/stat",
        "proc/self/ns/pid",
        "proc/sys/kernel/random/boot_id",
        "proc/sys/kernel/hostname",
    ] {
        let proc = proc();
        fs::remove_file(proc.0.join(missing)).unwrap();
        assert_eq!(proc.place(), None, "{missing}");
    }
    for (name, text) in [
        ("proc/sys/kernel/random/boot_id", "\n"),
        ("proc/self/stat", "7 (bot) R 1"),
        ("proc/self/status", "Name:\tbot\n"),
        // The directory of an outer namespace, and that of another process.
        ("proc/self/status", "NSpid:\t7\t7\n"),
        ("proc/self/status", "NSpid:\t8\n"),
        ("proc/self/mountinfo", ""),
        ("proc/self/mountinfo", "22 27 0:21 / /proc rw - tmpfs proc rw\n"),
    ] {
        let proc = proc();
        proc.write(name, text);
        assert_eq!(proc.place(), None, "{name}: {text}");
    }
}

#[test]
fn hidden_processes_do_not_count_as_ended() {
    let with = |option: &str| format!("{MOUNT}23 22 0:21 / /proc rw - proc proc rw,{option}\n");
    for option in ["hidepid=1", "hidepid=2", "hidepid=invisible", "gid=5,hidepid=ptraceable"] {
        assert!(!shows_all_processes(&with(option)), "{option}");
    }
    for option in ["hidepid=0", "hidepid=off", "gid=5"] {
        assert!(shows_all_processes(&with(option)), "{option}");
    }
    assert!(shows_all_processes(MOUNT));
}

#[test]
fn a_process_has_ended_if_there_is_none_or_a_later_one() {
    let proc = proc();
    let place = proc.place().unwrap();
    let has_ended = || place.has_ended(&proc.0);
    assert!(has_ended(), "no such process");
    for (text, expected) in [
        (stat(7, 'S', 1, 100), false),
        (stat(7, 'T', 4, 100), false),
        (stat(7, 'S', 1, 101), true),
        (stat(7, 'Z', 1, 100), true),
        // Only its first thread has ended.
        (stat(7, 'Z', 3, 100), false),
        ("unreadable".to_owned(), false),
        (String::new(), false),
    ] {
        proc.write("proc/7/stat", &text);
        assert_eq!(has_ended(), expected, "{text}");
    }
    // Not a file: an error other than that it does not exist.
    fs::remove_file(proc.0.join("proc/7/stat")).unwrap();
    fs::create_dir(proc.0.join("proc/7/stat")).unwrap();
    assert!(!has_ended());
}

/// A standby asks for hours, and what it may see changes meanwhile.
#[test]
fn a_process_that_was_hidden_since_does_not_count_as_ended() {
    let proc = proc();
    let place = proc.place().unwrap();
    let there = Place { pid: 8, ..place.clone() };
    let is_seen = || place.sees_the_end_of(&there, &proc.0);
    assert!(is_seen(), "no such process");
    for (name, text, before) in [
        ("proc/self/mountinfo", &*MOUNT.replace("proc rw\n", "proc rw,hidepid=2\n"), MOUNT),
        ("proc/self/mountinfo", "", MOUNT),
        ("proc/self/status", "NSpid:\t7\t7\n", "NSpid:\t7\n"),
        ("proc/sys/kernel/random/boot_id", "another boot\n", "boot\n"),
    ] {
        proc.write(name, text);
        assert!(!is_seen(), "{name}: {text}");
        proc.write(name, before);
        assert!(is_seen(), "{name}: {before}");
    }
}

/// A fork copies what its parent has drawn, and who has the same id counts as alive.
#[test]
fn a_forked_process_has_an_id_of_its_own() {
    let id = ProcessId::new();
    let parent = id.of(7);
    assert_eq!(id.of(7), parent);
    let child = id.of(8);
    assert_ne!(child, parent);
    assert_eq!(id.of(8), child);
}

#[test]
fn only_another_process_of_the_same_host_is_looked_up() {
    // On a system without /proc nothing is.
    let Some(place) = Place::of_self(Path::new(ROOT), std::process::id()) else { return };
    let here = Process::current();
    assert_eq!(here.place, Some(place.clone()));
    assert!(!here.sees_the_end_of(&here));
    let earlier = Place { started: place.started - 1, ..place.clone() };
    let ended = Process { id: vec![1], place: Some(earlier.clone()) };
    assert!(here.sees_the_end_of(&ended));
    let alive = Process { id: vec![1], place: Some(place) };
    assert!(!here.sees_the_end_of(&alive));
    // A copy of this process.
    assert!(!here.sees_the_end_of(&Process { place: Some(earlier.clone()), ..here.clone() }));
    let elsewhere = Place { host: vec![0; 32], ..earlier };
    assert!(!here.sees_the_end_of(&Process { place: Some(elsewhere), ..ended.clone() }));
    assert!(!here.sees_the_end_of(&Process { place: None, ..ended.clone() }));
    assert!(!Process { place: None, ..here }.sees_the_end_of(&ended));
}
