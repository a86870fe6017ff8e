//! Criterion measures one contender after the other, and a machine's speed drifts meanwhile. So the
//! contenders are interleaved: each is measured for a short time in each of several rounds.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode};

use super::{Scale, contenders::Contender};

pub fn criterion(scale: Scale) -> Criterion {
    let milliseconds = |milliseconds| Duration::from_millis(milliseconds);
    Criterion::default()
        .without_plots()
        .sample_size(10)
        .nresamples(2_000)
        .warm_up_time(milliseconds(scale.pick(1, 10, 50)))
        .measurement_time(milliseconds(scale.pick(1, 60, 300)))
        .configure_from_args()
}

/// Measures a case for each contender in each of `rounds` rounds. `measure` returns the time of the given
/// number of iterations.
pub fn interleaved<T>(
    criterion: &mut Criterion,
    case: &str,
    rounds: usize,
    contenders: &[(Contender, T)],
    mut measure: impl FnMut(&Contender, &T, u64) -> Duration,
) {
    let mut group = criterion.benchmark_group(case);
    // The same number of iterations in each sample, so that all do the same work.
    group.sampling_mode(SamplingMode::Flat);
    for round in 0..rounds {
        for (contender, subject) in contenders {
            group.bench_function(BenchmarkId::new(contender.name(), round), |bencher| {
                bencher.iter_custom(|iterations| measure(contender, subject, iterations));
            });
        }
    }
    group.finish();
}
