//! Decides in O(n log n) whether a register with unique values is linearizable, by zones:
//! P. B. Gibbons and E. Korach, "Testing Shared Memories", SIAM Journal on Computing 26 (1997).
//!
//! A value's cluster is its write and all reads that returned it. If the first end of these operations is
//! before their last beginning, the register had the value in between: a forward zone. Otherwise all of
//! them overlap, and any moment in between is possible: a backward zone. There is an order if and only if
//! no two forward zones overlap, and no backward zone lies within a forward one.

/// The write of one value, and all reads of it.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub value: String,
    /// The earliest end of these operations.
    pub first_end: u64,
    /// The latest beginning of these operations.
    pub last_begin: u64,
}

impl Cluster {
    pub fn new(value: &str, begun: u64, ended: u64) -> Self {
        Self { value: value.to_owned(), first_end: ended, last_begin: begun }
    }

    pub fn read(&mut self, begun: u64, ended: u64) {
        self.first_end = self.first_end.min(ended);
        self.last_begin = self.last_begin.max(begun);
    }

    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }
}

/// Pairs of clusters that contradict each other: not every pair, but at least one if there is any.
pub fn conflicts(clusters: &[Cluster]) -> Vec<(&Cluster, &Cluster)> {
    let (mut forward, backward): (Vec<_>, Vec<_>) =
        clusters.iter().partition(|cluster| cluster.is_forward());
    forward.sort_by_key(|zone| zone.first_end);
    let mut found = Vec::new();
    // For each zone in order, the one with the latest `last_begin` up to it.
    let mut reach: Vec<&Cluster> = Vec::with_capacity(forward.len());
    for zone in &forward {
        let furthest = reach.last().copied();
        if let Some(before) = furthest.filter(|before| zone.first_end < before.last_begin) {
            found.push((before, *zone));
        }
        let further = furthest.filter(|before| before.last_begin > zone.last_begin);
        reach.push(further.unwrap_or(zone));
    }
    for zone in backward {
        let count = forward.partition_point(|other| other.first_end < zone.last_begin);
        let around = count.checked_sub(1).map(|last| reach[last]);
        if let Some(around) = around.filter(|other| zone.first_end < other.last_begin) {
            found.push((around, zone));
        }
    }
    found
}

#[test]
fn zones_decide_whether_there_is_an_order() {
    let cluster = |value, (begun, ended), reads: &[(u64, u64)]| {
        let mut cluster = Cluster::new(value, begun, ended);
        reads.iter().for_each(|(begun, ended)| cluster.read(*begun, *ended));
        cluster
    };
    let order = |clusters: &[Cluster]| conflicts(clusters).is_empty();
    let first = cluster("first", (0, 10), &[(20, 30)]);
    assert!(order(&[first.clone(), cluster("second", (25, 40), &[(50, 60)])]));
    // Overlapping writes may have either order.
    assert!(order(&[first.clone(), cluster("second", (5, 15), &[])]));
    assert!(order(&[first.clone(), cluster("unanswered", (12, u64::MAX), &[])]));
    // Lost, or read too late: written between two operations of another value.
    assert!(!order(&[first.clone(), cluster("second", (12, 18), &[])]));
    assert!(!order(&[first.clone(), cluster("second", (12, 18), &[(40, 50)])]));
    // The second zone overlaps the end of the first, or contains it.
    assert!(!order(&[first.clone(), cluster("second", (5, 15), &[(40, 50)])]));
    assert!(!order(&[first, cluster("second", (1, 5), &[(40, 50)])]));
}
