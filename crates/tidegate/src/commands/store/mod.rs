//! `tidegate store …`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tidegate_api::{OverridesUpdate, RollbackRequest, StoreCreate, StorePatch, StoreView, VersionView};
use tidegate_client::Client;

use super::{confirm, name_and_value};
use crate::arguments::{HooksCommand, SchemaCommand, StoreCommand, parse_duration};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, count, plain, table, tree};

pub(super) async fn run(command: StoreCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        StoreCommand::Create { name, key, partitions, team, on_new_push } => {
            let mut settings = match on_new_push {
                Some(policy) => patch_of(&[("on_new_push".to_owned(), policy)])?,
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
            let settings = settings.iter().map(|text| name_and_value(text)).collect::<Result<Vec<_>, _>>()?;
            let store = client.update_store(&name, &patch_of(&settings)?).await?;
            output.result(&store, |store, style| show(store, &[], style))?;
        }
        StoreCommand::Hooks(command) => {
            let (store, update) = match command {
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
        StoreCommand::Rollback { name, region, to, reason, yes } => {
            let place = region.as_deref().map_or("all regions".to_owned(), |region| format!("region {region}"));
            let target = to.map_or("what was served before".to_owned(), |version| format!("version {version}"));
            confirm(&format!("Roll {} back in {place} to {target}?", plain(&name)), yes)?;
            let answer = client.roll_back_store(&name, &RollbackRequest { region, version: to, reason }).await?;
            output.result(&answer, |answer, style| {
                let line = |(region, version): (&String, &Option<u64>)| {
                    let version = version.map_or("no version".to_owned(), |version| format!("version {version}"));
                    format!("{} {} goes back to {version}\n", style.mark(Paint::Good), plain(region))
                };
                answer.regions.iter().map(line).collect()
            })?;
        }
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

/// `limits.push_ms=3600000`, or `limits.push_ms=1h`, becomes `{"limits": {"push_ms": 3600000}}`; the server's own type then
/// says what is allowed.
fn patch_of(settings: &[(String, String)]) -> Result<StorePatch, Failure> {
    let mut patch = Map::new();
    for (name, text) in settings {
        let duration = || parse_duration(text).ok().filter(|_| name.ends_with("_ms"));
        let milliseconds = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let value = serde_json::from_str(text).unwrap_or_else(|_| {
            duration().map_or_else(|| Value::from(text.as_str()), |time| milliseconds(time).into())
        });
        match name.split_once('.') {
            None => {
                patch.insert(name.clone(), value);
            }
            Some((group, field)) => {
                let group = patch.entry(group).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(fields) = group {
                    fields.insert(field.to_owned(), value);
                }
            }
        }
    }
    serde_json::from_value(Value::Object(patch)).map_err(|error| {
        let named: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
        Failure::usage(
            format!("{} can't be set", named.join(", ")),
            in_our_words(&error.to_string(), settings),
            "There are team, schema_mode, auto_register_schemas, allow_empty, retention, keep_rejected_ms, grace_ms, keep_pushes, golden_keys, on_new_push, embedded_swap, embedded_dead_percent_max, limits.… and freshness.….",
        )
    })
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

/// What the reader of JSON says about a setting, with the setting's name and value as they were typed.
fn in_our_words(said: &str, settings: &[(String, String)]) -> String {
    let quoted = said.split('`').nth(1).unwrap_or_default();
    let field_is = |(name, _): &&(String, String)| name == quoted || name.rsplit('.').next() == Some(quoted);
    if said.starts_with("unknown field") {
        let name = settings.iter().find(field_is).map_or(quoted, |(name, _)| name);
        return format!("There is no setting {name}.");
    }
    if said.starts_with("unknown variant") {
        let allowed: Vec<&str> = said.split('`').skip(3).step_by(2).collect();
        let name = settings.iter().find(|(_, value)| value == quoted).map_or("the setting", |(name, _)| name);
        return format!("{name} can't be {quoted}; it is one of {}.", allowed.join(", "));
    }
    match settings {
        [(name, value)] => format!("{name} can't be {value:?}: it is of another kind."),
        _ => "One of the values is of another kind than its setting.".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn settings_are_those_of_the_server() {
        let patch =
            patch_of(&[setting("retention", "3"), setting("limits.push_ms", "60000"), setting("on_new_push", "queue")]);
        let patch = patch.unwrap_or_else(|_| panic!("refused"));
        assert_eq!(patch.retention, Some(3));
        assert_eq!(patch.limits.and_then(|limits| limits.push_ms), Some(60_000));
        let patch = patch_of(&[setting("limits.push_ms", "1h30m"), setting("grace_ms", "2h")]);
        let patch = patch.unwrap_or_else(|_| panic!("refused"));
        assert_eq!(patch.limits.and_then(|limits| limits.push_ms), Some(5_400_000));
        assert_eq!(patch.grace_ms, Some(7_200_000));
        assert!(patch_of(&[setting("limits.push_ms", "soon")]).is_err());
        assert!(patch_of(&[setting("retentoin", "3")]).is_err());
        assert!(patch_of(&[setting("retention", "many")]).is_err());
        let said = |name: &str, value: &str| {
            let settings = [setting(name, value)];
            let error = patch_of(&settings).err().unwrap();
            error.why().to_owned()
        };
        assert_eq!(said("retentoin", "3"), "There is no setting retentoin.");
        assert_eq!(said("limits.push", "3"), "There is no setting limits.push.");
        assert_eq!(
            said("on_new_push", "perhaps"),
            "on_new_push can't be perhaps; it is one of refuse, queue, supersede."
        );
        assert_eq!(said("retention", "many"), "retention can't be \"many\": it is of another kind.");
    }
}
