//! Every setting of a server, for `tidegate config show`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tidegate_api::{Setting, SettingOrigin};
use tidegate_dataset::location::StorePlan;

use super::{Options, advertised};
use crate::access;
use crate::access::config::Authentication;
use crate::config::{ServerLimits, default_regions};
use crate::database;

/// Every setting with where it came from, by its name in the file.
pub(super) fn settings(
    options: &Options,
    address: SocketAddr,
    limits: &ServerLimits,
    plan: &StorePlan,
    is_required: bool,
) -> BTreeMap<String, Setting> {
    let server = &options.config.server;
    let mut settings = limits.settings(&server.limits);
    settings.extend(server.cluster_hooks.settings());
    settings.extend(plan.settings().clone());
    if options.artifacts.is_some()
        && let Some(url) = settings.get_mut("artifacts.url")
    {
        url.origin = SettingOrigin::Flag;
    }
    let authentication = if is_required { Authentication::Required } else { Authentication::Off };
    let (access, tls) = (&options.config.access, &options.config.tls);
    settings.extend(access::config::settings(authentication, access, tls, &server.hosts));
    let mut set = |name: &str, value: String, origin: SettingOrigin| {
        settings.insert(name.to_owned(), Setting { value, origin });
    };
    set("server.data", options.data.display().to_string(), SettingOrigin::Flag);
    let listen = match (options.listen, server.listen) {
        (Some(_), _) => SettingOrigin::Flag,
        (None, Some(_)) => SettingOrigin::File,
        (None, None) => SettingOrigin::Default,
    };
    set("server.listen", address.to_string(), listen);
    if let Some(advertised) = advertised(options, address) {
        let origin = match (&options.advertise, &server.advertise) {
            (Some(_), _) => SettingOrigin::Flag,
            (None, Some(_)) => SettingOrigin::File,
            (None, None) => SettingOrigin::Default,
        };
        set("server.advertise", advertised, origin);
    }
    if let Some(path) = &server.ca_file {
        set("server.ca_file", path.display().to_string(), SettingOrigin::File);
    }
    let named = if server.name.is_some() { SettingOrigin::File } else { SettingOrigin::Default };
    set("server.name", database::server_name(options, address), named);
    let shared = match (&options.database, &server.database) {
        (Some(_), _) => SettingOrigin::Flag,
        (None, Some(_)) => SettingOrigin::File,
        (None, None) => SettingOrigin::Default,
    };
    // The address may hold a password, so it is not shown.
    let shown = if shared == SettingOrigin::Default { "sqlite, below server.data" } else { "postgres" };
    set("server.database", shown.to_owned(), shared);
    if let Some(path) = &options.config_path {
        set("config", path.display().to_string(), SettingOrigin::Flag);
    }
    let origin = if options.config.regions.is_empty() { SettingOrigin::Default } else { SettingOrigin::File };
    let sections = if options.config.regions.is_empty() { default_regions() } else { options.config.regions.clone() };
    for region in sections {
        let value = format!("{} nodes, {} are enough", region.nodes, region.enough());
        set(&format!("regions.{}", region.name), value, origin);
    }
    settings
}
