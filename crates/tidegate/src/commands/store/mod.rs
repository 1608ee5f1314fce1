//! `tidegate store …`.

mod rollback;
mod settings;

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::Value;
use tidegate_api::{OverridesUpdate, OverridesView, SchemaView, StoreCreate, StorePatch, StoreView, VersionView};
use tidegate_client::Client;

use super::{confirm, name_and_value};
use crate::arguments::{HooksCommand, PushCommand, SchemaCommand, StoreCommand};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, count, moment, plain, table, tree};

pub(super) async fn run(command: StoreCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        StoreCommand::Create { name, key, partitions, team, on_new_push } => {
            if PushCommand::has_subcommand(&name) {
                return Err(taken_by_push(&name));
            }
            let mut settings = match on_new_push {
                Some(policy) => settings::patch_of(&[("on_new_push".to_owned(), policy)])?,
                None => StorePatch::default(),
            };
            settings.team = team;
            let create = StoreCreate { name, key_columns: key, partitions, settings, ..StoreCreate::default() };
            let store = client.create_store(&create).await?;
            output.result(&store, |store, style| {
                format!(
                    "{} store {} is there; its key: {}",
                    style.mark(Paint::Good),
                    plain(&store.name),
                    plain(&store.key_columns.join(", "))
                )
            })?;
        }
        StoreCommand::List => {
            let stores = client.stores().await?;
            output.result(&stores, |stores, style| list(stores, style))?;
        }
        StoreCommand::Show { name } => {
            let store = client.store(&name).await?;
            let versions = client.versions(&name).await?;
            if output.is_json() {
                let mut whole = serde_json::to_value(&store).map_err(std::io::Error::other)?;
                whole["versions"] = serde_json::to_value(&versions).map_err(std::io::Error::other)?;
                output.result(&whole, |_, _| String::new())?;
            } else {
                output.result(&store, |store, style| show(store, &versions, style))?;
            }
        }
        StoreCommand::Set { name, settings } => {
            let changes = settings.iter().map(|text| name_and_value(text)).collect::<Result<Vec<_>, _>>()?;
            let store = client.update_store(&name, &settings::patch_of(&changes)?).await?;
            output.result(&store, |store, style| show(store, &[], style))?;
        }
        StoreCommand::Hooks(command) => {
            let (store, update) = match command {
                HooksCommand::Show { store } => {
                    let overrides = client.overrides(&store).await?;
                    output.result(&overrides, hooks)?;
                    return Ok(Exit::Done);
                }
                HooksCommand::Set { store, settings } => {
                    let set = settings.iter().map(|text| name_and_value(text)).collect::<Result<_, _>>()?;
                    (store, OverridesUpdate { set, unset: Vec::new() })
                }
                HooksCommand::Unset { store, keys } => {
                    let there = client.overrides(&store).await?.overrides;
                    if let Some(absent) = keys.iter().find(|key| !there.contains_key(*key)) {
                        return Err(not_set(&store, absent, &there));
                    }
                    (store, OverridesUpdate { set: Default::default(), unset: keys })
                }
            };
            let overrides = client.set_overrides(&store, &update).await?;
            output.result(&overrides, |overrides, _| {
                if overrides.overrides.is_empty() {
                    return "no hook settings of its own".to_owned();
                }
                overrides.overrides.iter().map(|(key, value)| format!("{} = {}\n", plain(key), plain(value))).collect()
            })?;
        }
        StoreCommand::Schema(SchemaCommand::List { store }) => {
            let known = client.schemas(&store).await?;
            output.result(&known, |known, style| schemas(known, style))?;
        }
        StoreCommand::Schema(SchemaCommand::Add { store, file }) => {
            let text = tokio::fs::read_to_string(&file).await?;
            let schema = serde_json::from_str(&text).map_err(|error| {
                Failure::usage(
                    format!("{} is no schema", file.display()),
                    error.to_string(),
                    r#"Write {"fields": [{"name": "icao", "type": "string", "nullable": false}, …]}."#,
                )
            })?;
            let schema = client.add_schema(&store, schema).await?;
            output.result(&schema, |schema, style| {
                format!("{} schema {} is registered", style.mark(Paint::Good), schema.id)
            })?;
        }
        StoreCommand::Rollback(arguments) => return rollback::run(arguments, client, output).await,
        StoreCommand::Delete { name, yes } => {
            confirm(&format!("Delete store {} and, after a grace time, its data?", plain(&name)), yes)?;
            client.delete_store(&name).await?;
            output.result(&serde_json::json!({ "deleted": name }), |_, style| {
                format!("{} store {} is deleted", style.mark(Paint::Good), plain(&name))
            })?;
        }
    }
    Ok(Exit::Done)
}

/// `push list` lists pushes, so a store of that name is one that nobody can push to without knowing how.
fn taken_by_push(name: &str) -> Failure {
    Failure::usage(
        format!("a store can't be called {name} here"),
        format!(
            "`tidegate push {name}` is a command of its own, so that pushing to the store would read `tidegate push -- {name} PATH`."
        ),
        "Choose another name.",
    )
}

/// Hook settings: the store's own, then all that are in force.
fn hooks(view: &OverridesView, style: Style) -> String {
    let mut text = format!("{}\n", style.paint(Paint::Strong, "of its own"));
    for (key, value) in &view.overrides {
        text.push_str(&format!("  {} = {}\n", plain(key), plain(value)));
    }
    if view.overrides.is_empty() {
        text.push_str("  nothing; the published settings hold\n");
    }
    text.push_str(&format!("{}\n", style.paint(Paint::Strong, "in force")));
    for (hook, settings) in &view.effective {
        for (key, value) in settings {
            text.push_str(&format!("  {}.{} = {}\n", plain(hook), plain(key), plain(value)));
        }
    }
    if view.effective.is_empty() {
        text.push_str("  nothing; no hook is configured\n");
    }
    text
}

/// Each schema with its fields.
fn schemas(known: &[SchemaView], style: Style) -> String {
    if known.is_empty() {
        return "no schema; the first push brings one, or `tidegate store schema add`".to_owned();
    }
    let mut text = String::new();
    for schema in known {
        let at = schema.registered_at.map(|at| format!(" at {}", moment(at))).unwrap_or_default();
        let by = schema.push.as_deref().map_or("by hand".to_owned(), |push| format!("by push {}", plain(push)));
        let title = style.paint(Paint::Strong, &format!("schema {}", schema.id));
        text.push_str(&format!("{title}  registered{at} {by}\n"));
        let fields = &schema.schema.fields;
        let width = fields.iter().map(|field| field.name.chars().count()).max().unwrap_or(0);
        for field in fields {
            let nullable = if field.nullable { "" } else { ", never null" };
            text.push_str(&format!("  {:<width$}  {}{nullable}\n", plain(&field.name), field.data_type));
        }
    }
    text
}

fn not_set(store: &str, key: &str, there: &BTreeMap<String, String>) -> Failure {
    let keys: Vec<&str> = there.keys().map(String::as_str).collect();
    let why = if keys.is_empty() {
        format!("Store {store} has no hook settings of its own.")
    } else {
        format!("Store {store} has {}.", keys.join(", "))
    };
    Failure::new(format!("{key} is not set"), why, "Nothing was changed.", "Name settings that the store has.")
}

fn list(stores: &[StoreView], style: Style) -> String {
    if stores.is_empty() {
        return "no stores; make one with `tidegate store create NAME --key COLUMN`".to_owned();
    }
    let rows: Vec<Vec<String>> = stores
        .iter()
        .map(|store| {
            vec![
                store.name.clone(),
                store.key_columns.join(","),
                serving(store),
                store.running.clone().unwrap_or_else(|| "-".to_owned()),
                store.last_push.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    table::render(style, &["store", "key", "serving", "running push", "last push"], &rows)
}

fn serving(store: &StoreView) -> String {
    if store.serving.is_empty() {
        return "nothing".to_owned();
    }
    store.serving.iter().map(|(region, version)| format!("{region}:v{version}")).collect::<Vec<_>>().join(" ")
}

fn show(store: &StoreView, versions: &[VersionView], style: Style) -> String {
    let minutes = |milliseconds: u64| crate::output::elapsed(i64::try_from(milliseconds).unwrap_or(i64::MAX));
    let mut text = format!("{}\n", style.paint(Paint::Strong, &plain(&store.name)));
    for (name, value) in [
        ("key", store.key_columns.join(", ")),
        ("team", store.team.clone().unwrap_or_else(|| "none".to_owned())),
        ("serving", serving(store)),
        ("running push", store.running.clone().unwrap_or_else(|| "none".to_owned())),
        ("partitions", store.partitions.to_string()),
        ("retention", format!("{} versions", store.retention)),
        ("on_new_push", word(&store.on_new_push)),
        ("schema_mode", word(&store.schema_mode)),
        ("allow_empty", store.allow_empty.to_string()),
        (
            "limits",
            format!(
                "push {}, silent region {}, silent client {}, rollback confirmation {}, value {}",
                minutes(store.limits.push_ms),
                minutes(store.limits.region_ms),
                minutes(store.limits.silence_ms),
                minutes(store.limits.confirmation_ms),
                crate::output::bytes(store.limits.value_bytes)
            ),
        ),
    ] {
        text.push_str(&format!("  {name:<13} {}\n", plain(&value)));
    }
    for (key, value) in &store.hooks {
        text.push_str(&format!("  {:<13} {} = {}\n", "hook setting", plain(key), plain(value)));
    }
    if !versions.is_empty() {
        let rows: Vec<Vec<String>> = versions
            .iter()
            .map(|version| {
                vec![
                    version.version.to_string(),
                    word(&version.status),
                    version.push.clone(),
                    version.records.map_or("-".to_owned(), count),
                    version.bytes.map_or("-".to_owned(), crate::output::bytes),
                    version.artifact_id.as_deref().map_or("-", tree::short).to_owned(),
                    version.serving.join(","),
                ]
            })
            .collect();
        text.push_str(&table::render(
            style,
            &["version", "status", "push", "records", "size", "artifact", "served in"],
            &rows,
        ));
    }
    text
}

/// The word that JSON uses for a value of an enumeration.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}
