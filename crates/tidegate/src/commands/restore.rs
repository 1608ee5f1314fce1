//! `tidegate restore`.

use tidegate_server::backup::{AtHand, NamedArtifact, Restoration, Restored};

use super::backup::{failure_of, place_of};
use super::{confirm, local_user};
use crate::arguments::RestoreArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, counted, moment, plain, say};

/// How many artifacts are named on the terminal; programs are told of all.
const NAMED_MAX: usize = 20;

const FAILED: &str = "the backup was not restored";

pub(super) async fn run(arguments: RestoreArguments, output: Output) -> Result<Exit, Failure> {
    let place = place_of(arguments.place)?;
    let included = arguments.artifacts_from.as_deref();
    let prepared = Restoration::prepare(&place, &arguments.from, included, &local_user()).await;
    let restoration = prepared.map_err(|error| failure_of(FAILED, &error))?;
    say(&announcement(&restoration, output.error_style));
    refuse_another(restoration.at_hand(), arguments.replace_installation.as_deref())?;
    confirm("Restore it?", arguments.yes)?;
    let restored = restoration.carry_out().await.map_err(|error| failure_of(FAILED, &error))?;
    output.result(&restored, text)?;
    // The state is restored; what could not be copied is named, and can be copied by restoring once more.
    Ok(if restored.not_copied.is_empty() { Exit::Done } else { Exit::Failed })
}

/// A wrong address in a script must not cost another installation its state.
fn refuse_another(at_hand: &AtHand, named: Option<&str>) -> Result<(), Failure> {
    match at_hand {
        AtHand::Installed(there) if !there.same_installation && named != Some(&there.installation) => {
            Err(Failure::usage(
                FAILED,
                format!("What is there is the state of another installation, {}.", there.installation),
                &format!(
                    "Name the database or the folder of the backup's installation. If that state is to be replaced, add \
                     --replace-installation {}.",
                    there.installation
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// What is about to happen.
fn announcement(restoration: &Restoration, style: Style) -> String {
    let header = restoration.header();
    let (stores, pushes) = restoration.stores_and_pushes();
    let taken_at = u64::try_from(header.taken_at.0).unwrap_or(0);
    let mut lines = vec![
        format!(
            "the backup: revision {} of installation {}, taken at {}, with {}",
            header.revision,
            header.installation,
            moment(taken_at),
            content(stores, pushes)
        ),
        format!("it replaces: {}", replaced(restoration.at_hand())),
    ];
    if restoration.keeps_nothing() {
        lines
            .push("what it replaces is not kept: take a backup of it first if anything of it may be needed".to_owned());
    }
    if !restoration.knows_artifacts() {
        lines.push("where the artifacts are was not named, so they were not looked at".to_owned());
    }
    if !restoration.included().is_empty() {
        let count = counted(restoration.included().len() as u64, "artifact");
        lines.push(format!("{count} will be copied into the artifact store"));
    }
    lines.extend(missing(restoration.missing(), style));
    if let Some(why) = restoration.other_store() {
        lines.push(format!(
            "{} the artifact store is not the one that the backup was taken with, so no server starts with it: {}",
            style.mark(Paint::Held),
            plain(why)
        ));
    }
    lines.join("\n")
}

fn content(stores: u64, pushes: u64) -> String {
    let pushes = if pushes == 1 { "1 push".to_owned() } else { format!("{pushes} pushes") };
    format!("{} and {pushes}", counted(stores, "store"))
}

fn replaced(at_hand: &AtHand) -> String {
    match at_hand {
        AtHand::Absent => "nothing; there is no state yet".to_owned(),
        AtHand::Unreadable { why } => format!("a database that can't be read ({})", plain(why)),
        AtHand::Installed(there) => format!(
            "revision {} of {}, last changed at {}, with {}",
            there.revision,
            if there.same_installation {
                "the same installation".to_owned()
            } else {
                format!("ANOTHER installation, {}", there.installation)
            },
            moment(there.changed_at),
            content(there.stores, there.pushes)
        ),
    }
}

fn missing(artifacts: &[NamedArtifact], style: Style) -> Vec<String> {
    if artifacts.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "{} {} missing; the versions can be served only by regions that hold them:",
        style.mark(Paint::Bad),
        if artifacts.len() == 1 { "1 artifact is".to_owned() } else { format!("{} artifacts are", artifacts.len()) }
    )];
    let named = artifacts.iter().take(NAMED_MAX);
    lines.extend(named.map(|artifact| {
        format!("  version {} of {}: {}", artifact.version, plain(&artifact.store), artifact.artifact)
    }));
    if artifacts.len() > NAMED_MAX {
        lines.push(format!("  and {} more (--output json names all)", artifacts.len() - NAMED_MAX));
    }
    lines
}

fn text(restored: &Restored, style: Style) -> String {
    let mut lines = vec![format!(
        "{} restored: revision {}, as of {}, with {}",
        style.mark(Paint::Good),
        restored.from_revision,
        moment(restored.taken_at),
        content(restored.stores, restored.pushes)
    )];
    if let Some(kept) = &restored.kept {
        lines.push(format!(
            "  what it replaced is kept in {}; remove it when it is not needed any more",
            plain(&kept.display().to_string())
        ));
    }
    if !restored.copied.is_empty() {
        lines.push(format!("  {} copied", counted(restored.copied.len() as u64, "artifact")));
    }
    for failed in &restored.not_copied {
        let NamedArtifact { store, version, .. } = &failed.artifact;
        let mark = style.mark(Paint::Bad);
        lines.push(format!("  {mark} version {version} of {} was not copied: {}", plain(store), plain(&failed.why)));
    }
    match restored.revoked {
        Some(0) => {}
        Some(count) => {
            lines.push(format!("  {} that were revoked since are revoked again", counted(count, "token")));
        }
        None if matches!(restored.replaced, AtHand::Absent) => {}
        None => lines.push(format!(
            "  {} tokens that were revoked after that hold again: look at `tidegate token list`",
            style.mark(Paint::Held)
        )),
    }
    lines.push("  version numbers go on far above all that were given out, so that none is used twice".to_owned());
    lines.join("\n")
}
