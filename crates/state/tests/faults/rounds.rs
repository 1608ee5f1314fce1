//! X6: rounds of acknowledged writes, each followed at once by the death of all servers, every other time of the database
//! too, and at times with the written-behind entities gone.

use super::chaos::Sql;
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::plan::Action;
use super::settings::Settings;
use super::verdict::Verdict;

/// Writes of a round, of all servers together.
const WRITES: usize = 20;

/// Makes the rounds and judges them.
pub(crate) async fn run(settings: &Settings) -> (Verdict, Evidence) {
    let rounds = settings.rounds;
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, told) = fleet
        .drive(move |fleet| {
            let played = (0..rounds).try_for_each(|round| play(fleet, round));
            let told = fleet.come_to_rest();
            played.and(told)
        })
        .await;
    fleet.judge(told).await
}

fn play(fleet: &mut Fleet, round: u64) -> Result<(), String> {
    fleet.hear_all("up")?;
    if !round.is_multiple_of(2) {
        // The slots have owners then, and the next runs begin at once: they are what dies.
        fleet.ask(0, "settle", "settled")?;
    }
    let share = WRITES.div_ceil(fleet.servers());
    fleet.ask_all(&format!("burst {share}"), "burst")?;
    fleet.kill_all();
    if round.is_multiple_of(2) {
        fleet.do_to(Action::StopDatabase { crash: true });
        fleet.do_to(Action::StartDatabase);
    }
    if round % 10 == 4 {
        fleet.note("entities emptied".to_owned());
        let statement = format!("DELETE FROM {}.entities", fleet.schema);
        Sql::connect(fleet)?.run(&statement)?;
    }
    for server in 0..fleet.servers() {
        fleet.do_to(Action::Start(server));
    }
    Ok(())
}
