//! What is done to links, processes and the server, at random, all at once.

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
    link::{Link, Way},
};
use crate::concurrent::history::{Journal, Note};

/// What the threads that do harm share.
pub struct Harm {
    pub journal: Arc<Journal>,
    pub server: Server,
    pub links: Links,
    pub children: Children,
    pub ended: AtomicBool,
}

type Fault = fn(&Harm, &mut fastrand::Rng);

/// Begins; ends when told so, and then all goes on that was stopped.
pub fn begin(harm: &Arc<Harm>, rng: &mut fastrand::Rng) -> Vec<JoinHandle<()>> {
    let every: [(u64, Fault); 6] = [
        (400, harm_link),
        (400, harm_link),
        (400, harm_backend),
        (400, harm_backend),
        (2500, harm_child),
        (12_000, harm_server),
    ];
    let threads = every.into_iter().map(|(pause, fault)| {
        let (harm, mut rng) = (harm.clone(), rng.fork());
        thread::spawn(move || {
            loop {
                sleep(&harm, rng.u64(0..2 * pause));
                if harm.ended.load(SeqCst) {
                    return;
                }
                fault(&harm, &mut rng);
            }
        })
    });
    threads.collect()
}

/// From now on nothing is held.
pub fn end(harm: &Harm) {
    let held = harm.links.iter().map(Link::let_pass).sum::<u64>();
    (0..held).for_each(|_| note(harm, "claims and COMMITs held"));
}

fn note(harm: &Harm, what: &str) {
    harm.journal.note("", Note::Fault { what: what.to_owned() });
}

/// So many milliseconds, or until the end.
fn sleep(harm: &Harm, milliseconds: u64) {
    for _ in 0..milliseconds.div_ceil(20) {
        if harm.ended.load(SeqCst) {
            return;
        }
        thread::sleep(Duration::from_millis(milliseconds.min(20)));
    }
}

/// Mostly short, sometimes longer than any limit.
fn while_it_lasts(rng: &mut fastrand::Rng) -> u64 {
    match rng.u32(0..4) {
        0 => rng.u64(0..5000),
        1 => rng.u64(0..1500),
        _ => rng.u64(0..150),
    }
}

fn harm_link(harm: &Harm, rng: &mut fastrand::Rng) {
    let (link, lasts) = (rng.choice(&harm.links).unwrap(), while_it_lasts(rng));
    let ways: &[Way] = match rng.u32(0..8) {
        0 => {
            note(harm, "links cut");
            return link.cut();
        }
        1 => {
            note(harm, "links delayed");
            link.delay(Duration::from_micros(rng.u64(0..30_000)));
            sleep(harm, lasts);
            return link.delay(Duration::ZERO);
        }
        2 | 3 => &[Way::ToServer],
        4 => &[Way::ToClient],
        _ => &[Way::ToServer, Way::ToClient],
    };
    // Where new connections stand still as well, nothing at all is done.
    let new_ones = rng.u32(0..3) == 0;
    let lasts = if new_ones { lasts.min(700) } else { lasts };
    let stalled = if new_ones { "links stalled" } else { "connections stalled, new ones not" };
    note(harm, stalled);
    ways.iter().for_each(|way| link.stall(*way, new_ones));
    sleep(harm, lasts);
    if rng.u32(0..4) == 0 {
        note(harm, "clients' ends cut in a stall");
        link.cut_clients();
        sleep(harm, lasts);
    }
    ways.iter().for_each(|way| link.go_on(*way));
}

fn harm_backend(harm: &Harm, rng: &mut fastrand::Rng) {
    let Some(pid) = rng.choice(backends(harm)) else { return };
    if rng.u32(0..6) == 0 {
        note(harm, "server processes ended");
        send(pid, Signal::TERM);
        return;
    }
    note(harm, "server processes stopped");
    send(pid, Signal::STOP);
    sleep(harm, while_it_lasts(rng));
    send(pid, Signal::CONT);
}

/// The server's processes that have a client; those that do something, if there are any.
fn backends(harm: &Harm) -> Vec<u32> {
    let Some(server) = harm.server.lock().unwrap().pid() else { return Vec::new() };
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

/// One that is gone takes no signal.
fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, signal));
}

fn harm_child(harm: &Harm, rng: &mut fastrand::Rng) {
    let number = rng.usize(0..harm.children.len());
    // A stopped one cannot be killed meanwhile, nor end.
    let mut child = harm.children[number].lock().unwrap();
    if rng.bool() {
        note(harm, "processes killed");
        child.kill_and_start(&harm.journal, rng);
    } else {
        note(harm, "processes stopped");
        send(child.pid(), Signal::STOP);
        sleep(harm, while_it_lasts(rng));
        send(child.pid(), Signal::CONT);
    }
}

fn harm_server(harm: &Harm, rng: &mut fastrand::Rng) {
    let mut server = harm.server.lock().unwrap();
    note(harm, "servers killed");
    server.kill();
    sleep(harm, rng.u64(0..400));
    server.start_again().unwrap();
}
