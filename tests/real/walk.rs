//! A random walk against a model: whatever is done in whatever order, each restore brings exactly what
//! was asked for, and every commit that was acknowledged can be reached again.
//!
//! `make walk SEED=1-50 STEPS=30` takes other seeds and more steps. A walk that fails prints
//! its seed, and the fewest steps that still fail.

mod model;
mod run;
mod steps;

use std::env;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::strategy::Strategy as _;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use self::run::Walk;
use self::steps::step;

/// How long the steps of a walk that has failed are shortened: in a run of all tests, and by hand.
const SHORTENED_FOR: [Duration; 2] = [Duration::from_mins(2), Duration::from_mins(30)];

/// Walks, and answers how many restores there were.
#[track_caller]
fn walk(seed: u64, length: usize, shorten: Duration) {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 10_000,
        max_shrink_time: u32::try_from(shorten.as_millis()).unwrap(),
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, random);
    let walked = runner.run(&vec(option::weighted(0.9999, step().no_shrink()), length), |steps| {
        let mut walk = Walk::begin();
        for (number, step) in
            steps.iter().enumerate().filter_map(|(n, step)| Some((n, step.as_ref()?)))
        {
            eprintln!("seed {seed}, step {number}: {step:?}");
            walk.take(*step);
        }
        walk.end();
        eprintln!("seed {seed}: {} restores, every one right", walk.restores);
        Ok(())
    });
    match walked {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => {
            let left: Vec<_> = steps.iter().flatten().collect();
            panic!("seed {seed} of {length} steps fails: {why}\nthe fewest steps: {left:#?}")
        }
        Err(error) => panic!("seed {seed}: {error}"),
    }
}

/// With the seeds and steps of the environment (`SEED` may be `1-50`); by default a short walk.
#[test]
fn walks_from_the_seed_of_the_environment() {
    let text = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
    let seed = text("HEADREST_WALK_SEED");
    let steps = text("HEADREST_WALK_STEPS").map_or(20, |steps| steps.parse().unwrap());
    let shorten = SHORTENED_FOR[usize::from(seed.is_some())];
    let seed = seed.unwrap_or_else(|| "1".to_owned());
    let (first, last) = seed.split_once('-').unwrap_or((&seed, &seed));
    for seed in first.parse().unwrap()..=last.parse::<u64>().unwrap() {
        walk(seed, steps, shorten);
    }
}

#[test]
fn walks_with_the_second_seed() {
    walk(2, 20, SHORTENED_FOR[0]);
}

#[test]
fn walks_with_the_third_seed() {
    walk(3, 20, SHORTENED_FOR[0]);
}

#[test]
fn walks_with_the_fourth_seed() {
    walk(4, 20, SHORTENED_FOR[0]);
}
