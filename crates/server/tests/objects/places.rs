//! All servers of an installation have to reach one store: another one is refused, whatever it is called.

use std::path::Path;

use tidegate_api::SettingOrigin;
use tidegate_client::Client;
use tidegate_dataset::location::{Environment, StoreSettings};
use tidegate_server::{Options, Server, StartError};

use crate::bucket::{Bucket, KEY, SECRET};
use crate::world::{World, options};

fn folder_options(data: &Path, artifacts: &Path) -> Options {
    let mut options = Options::new(data);
    options.listen = Some("127.0.0.1:0".parse().unwrap());
    options.artifacts = Some(format!("file://{}", artifacts.display()));
    options
}

async fn refused(options: Options) -> StartError {
    let Err(error) = Server::start(options).await else { panic!("it must not start") };
    error
}

#[tokio::test]
async fn a_server_on_another_folder_than_the_installations_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (data, one, other) = (folder.path().join("data"), folder.path().join("one"), folder.path().join("other"));
    Server::start(folder_options(&data, &one)).await.unwrap().shutdown().await;
    let error = refused(folder_options(&data, &other)).await;
    assert!(matches!(error, StartError::OtherStore { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("this server's artifact store is not the installation's"), "{text}");
    for named in [&one, &other] {
        assert!(text.contains(&named.display().to_string()), "{text}");
    }
    // By another name it is the same store still; and moved as a whole.
    std::os::unix::fs::symlink(&one, folder.path().join("alias")).unwrap();
    Server::start(folder_options(&data, &folder.path().join("alias"))).await.unwrap().shutdown().await;
    std::fs::remove_dir_all(&other).unwrap();
    std::fs::rename(&one, &other).unwrap();
    Server::start(folder_options(&data, &other)).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_server_on_another_bucket_or_prefix_is_refused_and_nothing_is_left_there() {
    let mut world = World::start().await;
    world.server.take().unwrap().shutdown().await;
    let other = Bucket::start().await;
    let mut elsewhere = options(world.folder.path(), &other);
    assert!(matches!(refused(elsewhere.clone()).await, StartError::OtherStore { .. }));
    elsewhere.config.artifacts =
        StoreSettings { url: Some(world.bucket.settings().url.unwrap() + "/deeper"), ..world.bucket.settings() };
    let error = refused(elsewhere).await;
    assert!(matches!(error, StartError::OtherStore { .. }), "{error}");
    assert!(!other.file("probe").exists() && !world.bucket.file("deeper").exists());
    let again = Server::start(options(world.folder.path(), &world.bucket)).await.unwrap();
    again.shutdown().await;
}

#[tokio::test]
async fn what_is_told_about_the_store_lets_an_agent_tell_it_from_others() {
    let world = World::start().await;
    let told = reqwest::get(format!("{}/v1/artifact-store", world.client.url())).await.unwrap();
    let told: tidegate_api::ArtifactStoreView = told.json().await.unwrap();
    assert!(told.is_bucket && told.name.starts_with("s3://dat/t at "), "{told:?}");
    world.bucket.store().check_probe(&told.probe).await.unwrap();
    assert!(Bucket::start().await.store().check_probe(&told.probe).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn config_show_says_what_is_in_force_and_where_it_came_from_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    std::fs::create_dir_all(home.join(".aws")).unwrap();
    let profile = format!("[ours]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(home.join(".aws/credentials"), profile).unwrap();
    std::fs::write(home.join(".aws/config"), "[profile ours]\nregion = eu-central-1\n").unwrap();
    let bucket = Bucket::start().await;
    let mut options = options(folder.path(), &bucket);
    options.artifacts = options.config.artifacts.url.take();
    options.environment = Environment::of([("HOME", home.to_str().unwrap()), ("AWS_PROFILE", "ours")]);
    let server = Server::start(options).await.unwrap();
    let config = Client::new(&server.url()).unwrap().config().await.unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains(SECRET) && !shown.contains(KEY), "{shown}");
    let of = |name: &str| {
        let setting = &config.server.settings[&format!("artifacts.{name}")];
        (setting.value.as_str(), setting.origin)
    };
    assert_eq!(of("url"), ("s3://dat/t", SettingOrigin::Flag));
    assert_eq!(of("endpoint"), (bucket.endpoint.as_str(), SettingOrigin::File));
    assert_eq!(of("region"), ("eu-central-1", SettingOrigin::Environment));
    assert_eq!(of("retries"), ("10", SettingOrigin::Default));
    let credentials = format!("profile `ours` of {}", home.join(".aws/credentials").display());
    assert_eq!(of("credentials"), (credentials.as_str(), SettingOrigin::Environment));
    server.shutdown().await;
}
