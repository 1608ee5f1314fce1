//! A command line that can't be read: what is said about it, and which help has the rest.

use std::ffi::OsString;

use clap::{ArgAction, Command, CommandFactory};

use super::Arguments;

/// The end of what clap says, in whose place the very command's help is named.
const CLAPS_ADVICE: &str = "For more information, try";

/// What to print about `error`, which was found in these arguments (the program's name is the first).
pub(crate) fn explain(error: &clap::Error, arguments: &[OsString], rich: bool) -> String {
    let rendered = error.render();
    let said = if rich { rendered.ansi().to_string() } else { rendered.to_string() };
    let said = said.split(CLAPS_ADVICE).next().unwrap_or_default().trim_end();
    let command = meant(arguments);
    format!("{said}\n\n  what to do: Mend the command line; `{command} --help` says what it takes.")
}

/// The command that the arguments name, as far as they name one: `tidegate store set`.
fn meant(arguments: &[OsString]) -> String {
    let mut root = Arguments::command();
    root.build();
    let mut command = &root;
    let mut name = root.get_name().to_owned();
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if word.starts_with('-') {
            if takes_next(command, word) {
                words.next();
            }
            continue;
        }
        match command.find_subcommand(word) {
            Some(found) => {
                command = found;
                name = format!("{name} {}", found.get_name());
            }
            // What follows belongs to this command.
            None => break,
        }
    }
    name
}

/// Whether the word after this option is its value.
fn takes_next(command: &Command, option: &str) -> bool {
    let is_it = |argument: &&clap::Arg| match option.strip_prefix("--") {
        Some(long) => argument.get_long() == Some(long),
        None => {
            option.strip_prefix('-').is_some_and(|short| argument.get_short().is_some_and(|it| short == it.to_string()))
        }
    };
    command
        .get_arguments()
        .find(is_it)
        .is_some_and(|found| matches!(found.get_action(), ArgAction::Set | ArgAction::Append))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(words: &[&str]) -> String {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        let error = Arguments::try_parse_from(&arguments).err().unwrap_or_else(|| panic!("{words:?} is read"));
        explain(&error, &arguments, false)
    }

    #[test]
    fn f11_a_wrong_command_line_ends_with_the_help_of_the_very_command() {
        for (words, help) in [
            (vec!["tidegate", "store", "set", "things"], "`tidegate store set --help`"),
            (vec!["tidegate", "push", "things"], "`tidegate push --help`"),
            (vec!["tidegate", "push", "list", "more"], "`tidegate push list --help`"),
            (vec!["tidegate", "--url", "http://h:1", "store", "rollbck"], "`tidegate store --help`"),
            (vec!["tidegate", "store", "--url", "list", "create", "x"], "`tidegate store create --help`"),
            (vec!["tidegate", "frob"], "`tidegate --help`"),
        ] {
            let said = said(&words);
            assert!(said.contains(help) && said.starts_with("error:"), "{help}: {said}");
            assert!(!said.contains(CLAPS_ADVICE), "{said}");
        }
    }
}
