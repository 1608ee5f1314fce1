//! A run by a plan: injects what the plan says while servers write, lets everything come to rest, and judges it.

use std::time::{Duration, Instant};

use super::evidence::Evidence;
use super::fleet::Fleet;
use super::plan::{aimed, plan};
use super::settings::Settings;
use super::verdict::Verdict;

/// Makes a run and judges it.
pub(crate) async fn run(settings: &Settings) -> (Verdict, Evidence) {
    let fleet = Fleet::start(settings, &[]).await;
    let length = Duration::from_secs(settings.seconds);
    let mut actions = plan(settings.seed, &settings.kinds, settings.servers, settings.every, settings.lease, length);
    if settings.aimed {
        aimed(settings.seed, &mut actions);
    }
    let (fleet, told) = fleet
        .drive(move |fleet| {
            let started = Instant::now();
            for (at, action) in actions {
                std::thread::sleep(at.saturating_sub(started.elapsed()));
                fleet.do_to(action);
            }
            std::thread::sleep(length.saturating_sub(started.elapsed()));
            fleet.come_to_rest()
        })
        .await;
    fleet.judge(told).await
}
