//! `tidegate token …`.

use tidegate_api::{TokenCreate, TokenCreated, TokenView};
use tidegate_client::Client;

use super::confirm;
use crate::arguments::TokenCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, moment, plain, say, table};

pub(super) async fn run(command: TokenCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Create { role, name, team, region, expires } => {
            let expires_in_ms = expires.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
            let create = TokenCreate { name, role: role.into(), team, region, expires_in_ms };
            let created = client.create_token(&create).await?;
            if !output.is_json() {
                say(&notice(&created, output.error_style));
            }
            // The token alone is the result, so that it can go straight into a file.
            output.result(&created, |created, _| created.secret.clone())?;
        }
        TokenCommand::List => {
            let tokens = client.tokens().await?;
            output.result(&tokens, |tokens, style| list(tokens, style))?;
        }
        TokenCommand::Revoke { id, reason, yes } => {
            confirm(&format!("Revoke token {}? What uses it stops working.", plain(&id)), yes)?;
            let reason = Some(reason.as_str()).filter(|reason| !reason.is_empty());
            let token = client.revoke_token(&id, reason).await?;
            output.result(&token, |token, style| {
                format!("{} token {} is revoked", style.mark(Paint::Good), plain(&token.name))
            })?;
        }
    }
    Ok(Exit::Done)
}

fn notice(created: &TokenCreated, style: Style) -> String {
    let token = &created.token;
    let until = token.expires_at.map_or("until it is revoked".to_owned(), |at| format!("until {}", moment(at)));
    format!(
        "{} token {} ({}) holds {until}; this is the only time that it is shown:",
        style.mark(Paint::Good),
        plain(&token.name),
        plain(&what_for(token))
    )
}

/// The role with whom it is for: `team: search`.
fn what_for(token: &TokenView) -> String {
    match token.team.as_ref().or(token.region.as_ref()) {
        Some(owner) => format!("{}: {owner}", token.role),
        None => token.role.to_string(),
    }
}

fn list(tokens: &[TokenView], style: Style) -> String {
    if tokens.is_empty() {
        return "no tokens; make one with `tidegate token create --role admin --name NAME`".to_owned();
    }
    let rows: Vec<Vec<String>> = tokens
        .iter()
        .map(|token| {
            let moment_or = |at: Option<u64>, none: &str| at.map_or(none.to_owned(), moment);
            vec![
                token.id.clone(),
                token.name.clone(),
                what_for(token),
                token.status.word().to_owned(),
                moment(token.created_at),
                token.created_by.clone(),
                moment_or(token.expires_at, "never"),
                moment_or(token.last_used_at, "never"),
            ]
        })
        .collect();
    table::render(style, &["id", "name", "role", "status", "created", "by", "expires", "last used"], &rows)
}
