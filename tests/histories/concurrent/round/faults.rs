//! Random faults of links, processes and the server, all at once.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    Children, Links, Server,
    link::{Direction, Link},
};
use crate::concurrent::history::{Journal, Note};

/// The targets of faults, shared by the threads that inject them.
pub struct Target {
    pub journal: Arc<Journal>,
    pub server: Server,
    pub links: Links,
    pub children: Children,
    pub ended: AtomicBool,
}

type Fault = fn(&Target, &mut fastrand::Rng);

/// Starts the threads. They end when `ended` is set, after resuming what they have stopped.
pub fn begin(target: &Arc<Target>, rng: &mut fastrand::Rng) -> Vec<JoinHandle<()>> {
    let every: [(u64, Fault); 6] = [
        (400, fault_link),
        (400, fault_link),
        (400, fault_backend),
        (400, fault_backend),
        (2500, fault_child),
        (12_000, fault_server),
    ];
    let threads = every.into_iter().map(|(pause, fault)| {
        let (target, mut rng) = (target.clone(), rng.fork());
        thread::spawn(move || {
            loop {
                sleep(&target, rng.u64(0..2 * pause));
                if target.ended.load(SeqCst) {
                    return;
                }
                fault(&target, &mut rng);
            }
        })
    });
    threads.collect()
}

/// Ends the holding of messages.
pub fn end(target: &Target) {
    let held = target.links.iter().map(Link::release_all).sum::<u64>();
    (0..held).for_each(|_| note(target, "claims and COMMITs held"));
}

fn note(target: &Target, what: &str) {
    target.journal.note("", Note::Fault { what: what.to_owned() });
}

/// Sleeps this long, or until the end of the round.
fn sleep(target: &Target, milliseconds: u64) {
    for _ in 0..milliseconds.div_ceil(20) {
        if target.ended.load(SeqCst) {
            return;
        }
        thread::sleep(Duration::from_millis(milliseconds.min(20)));
    }
}

/// Milliseconds: mostly short, sometimes longer than any time limit.
fn random_duration(rng: &mut fastrand::Rng) -> u64 {
    match rng.u32(0..4) {
        0 => rng.u64(0..5000),
        1 => rng.u64(0..1500),
        _ => rng.u64(0..150),
    }
}

fn fault_link(target: &Target, rng: &mut fastrand::Rng) {
    let (link, duration) = (rng.choice(&target.links).unwrap(), random_duration(rng));
    let directions: &[Direction] = match rng.u32(0..8) {
        0 => {
            note(target, "links cut");
            return link.cut();
        }
        1 => {
            note(target, "links delayed");
            link.delay(Duration::from_micros(rng.u64(0..30_000)));
            sleep(target, duration);
            return link.delay(Duration::ZERO);
        }
        2 | 3 => &[Direction::ToServer],
        4 => &[Direction::ToClient],
        _ => &[Direction::ToServer, Direction::ToClient],
    };
    // While new connections stall too, nothing at all is done.
    let new_ones = rng.u32(0..3) == 0;
    let duration = if new_ones { duration.min(700) } else { duration };
    let stalled = if new_ones { "links stalled" } else { "connections stalled, new ones not" };
    note(target, stalled);
    directions.iter().for_each(|direction| link.stall(*direction, new_ones));
    sleep(target, duration);
    if rng.u32(0..4) == 0 {
        note(target, "clients' ends cut in a stall");
        link.cut_clients();
        sleep(target, duration);
    }
    directions.iter().for_each(|direction| link.resume(*direction));
}

fn fault_backend(target: &Target, rng: &mut fastrand::Rng) {
    let Some(pid) = rng.choice(backends(target)) else { return };
    if rng.u32(0..6) == 0 {
        note(target, "server processes ended");
        send(pid, Signal::TERM);
        return;
    }
    note(target, "server processes stopped");
    send(pid, Signal::STOP);
    sleep(target, random_duration(rng));
    send(pid, Signal::CONT);
}

/// The server's processes that serve a client; only the busy ones, if there are any.
fn backends(target: &Target) -> Vec<u32> {
    let Some(server) = target.server.lock().unwrap().pid() else { return Vec::new() };
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
    let children = children.unwrap_or_default();
    let titles = children.split_whitespace().filter_map(|pid| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let title = title.trim_matches('\0').trim().to_owned();
        title.contains("127.0.0.1(").then_some((pid.parse().ok()?, title))
    });
    let (idle, busy): (Vec<_>, Vec<_>) = titles.partition(|(_, title)| title.ends_with(" idle"));
    let chosen = if busy.is_empty() { idle } else { busy };
    chosen.into_iter().map(|(pid, _)| pid).collect()
}

/// Sends a signal; a process that has ended is ignored.
fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, signal));
}

fn fault_child(target: &Target, rng: &mut fastrand::Rng) {
    let number = rng.usize(0..target.children.len());
    // Locked, so that a stopped process is neither killed nor requested to end.
    let mut child = target.children[number].lock().unwrap();
    if rng.bool() {
        note(target, "processes killed");
        child.kill_and_start(&target.journal, rng);
    } else {
        note(target, "processes stopped");
        send(child.pid(), Signal::STOP);
        sleep(target, random_duration(rng));
        send(child.pid(), Signal::CONT);
    }
}

fn fault_server(target: &Target, rng: &mut fastrand::Rng) {
    let mut server = target.server.lock().unwrap();
    note(target, "servers killed");
    server.kill();
    sleep(target, rng.u64(0..400));
    server.start_again().unwrap();
}
