//! The connection to the server, as the command line and the environment say.

use std::path::PathBuf;

use tidegate_client::{Client, Options, Token};

use crate::arguments::GlobalArguments;
use crate::failure::Failure;

/// Holds the token itself. There is no flag that does: everybody on a machine can read what its programs were started with.
const TOKEN: &str = "TIDEGATE_TOKEN";

/// A client for the server that is meant, with the token that there is. A file that is named on the command line comes
/// before the environment.
pub(crate) fn client(global: &GlobalArguments) -> Result<Client, Failure> {
    let mut options = Options::new(&global.url);
    options.ca.clone_from(&global.ca);
    options.token = token(global.token_file.as_ref())?;
    Ok(Client::with_options(options)?)
}

fn token(file: Option<&PathBuf>) -> Result<Option<Token>, Failure> {
    if let Some(file) = file {
        return Ok(Some(Token::read(file)?));
    }
    match std::env::var(TOKEN) {
        Ok(text) if !text.trim().is_empty() => Ok(Some(Token::new(&text)?)),
        Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(
            format!("{TOKEN} is no token"),
            "It is not even text.",
            "Set it to a token, tg_ID_SECRET, or name a file with --token-file.",
        )),
    }
}
