//! Which parts the demo has, and in which order they start and stop.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_api::{Role, TokenCreate};
use tidegate_client::{Client, Options, Token};
use tokio::sync::mpsc;

use super::super::story::REGIONS;
use super::super::{ANY_PORT, schema};
use super::logs;
use super::part::{OnDeath, Part};
use super::process::Plan;
use crate::arguments::DemoArguments;
use crate::failure::Failure;
use crate::output::{Output, Paint, say};

/// How long the servers are without a lease's work when one of them dies, in seconds: as short as suits a story.
const LEASE_SECONDS: u64 = 3;

/// How long the story's client tries on with a server that has died.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the agents may take to host their regions with all nodes.
const HOSTED_LIMIT: Duration = Duration::from_secs(60);

/// How long the first admin token may take, once the server that prints it is ready.
const TOKEN_LIMIT: Duration = Duration::from_secs(5);

/// The parts that run, in the order in which they were started.
#[derive(Debug)]
pub(super) struct Parts {
    folder: PathBuf,
    output: Output,
    running: Vec<Part>,
    tokens: (mpsc::Sender<String>, mpsc::Receiver<String>),
    gone: (mpsc::Sender<Failure>, mpsc::Receiver<Failure>),
}

/// What the story needs of the parts, once all run.
pub(super) struct Stage {
    /// Speaks to the first server, as an admin.
    pub(super) client: Client,
    /// The servers' addresses; at least one.
    pub(super) servers: Vec<String>,
    /// Where the admin's token is.
    pub(super) token_file: PathBuf,
    /// The address of the reading application.
    pub(super) application: String,
}

impl Parts {
    /// None yet.
    pub(super) fn new(folder: &Path, output: Output) -> Result<Self, Failure> {
        std::fs::create_dir_all(logs(folder))?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("tokens"))?;
        Ok(Parts {
            folder: folder.to_owned(),
            output,
            running: Vec::new(),
            tokens: mpsc::channel(1),
            gone: mpsc::channel(1),
        })
    }

    /// Starts all of them. Those that run when one fails are to be stopped.
    pub(super) async fn start(&mut self, arguments: &DemoArguments) -> Result<Stage, Failure> {
        let mut servers = vec![self.start_server(1, arguments).await?];
        let token_file = self.take_admin_token().await?;
        if arguments.database.is_some() {
            servers.push(self.start_server(2, arguments).await?);
        }
        let mut options = Options::new(&servers[0]);
        options.token = Some(Token::read(&token_file)?);
        options.patience = PATIENCE;
        let client = Client::with_options(options)?;
        // Before there are agents, so that these know it from the first.
        let reader = self.make_token(&client, "application", Role::Reader, None).await?;
        let mut places = Vec::new();
        for region in REGIONS {
            places.extend(self.start_region(region, &client, &servers).await?);
        }
        self.until_hosted(&client).await?;
        let mut words = vec!["demo-application".to_owned(), "--listen".to_owned(), ANY_PORT.to_string()];
        words.extend(["--token-file".to_owned(), reader.display().to_string()]);
        for place in places {
            words.extend(["--place".to_owned(), place]);
        }
        let plan = self.plan("application", words.into_iter().map(OsString::from).collect());
        let application = self.start_part(plan, OnDeath::EndDemo).await?;
        Ok(Stage { client, servers, token_file, application })
    }

    /// Waits until a part is gone for good.
    pub(super) async fn fallen(&mut self) -> Failure {
        match self.gone.1.recv().await {
            Some(failure) => failure,
            // One sender is kept here.
            None => std::future::pending().await,
        }
    }

    /// Name, process id and address of each.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.running.iter().map(|part| (part.name.as_str(), part.process(), part.url.as_str()))
    }

    /// Ends all of them, those that need others before those.
    pub(super) async fn stop(self) {
        for part in self.running.into_iter().rev() {
            part.stop().await;
        }
    }

    fn plan(&self, name: &str, arguments: Vec<OsString>) -> Plan {
        let log = logs(&self.folder).join(format!("{name}.log"));
        Plan { name: name.to_owned(), arguments, database: None, log }
    }

    async fn start_part(&mut self, plan: Plan, on_death: OnDeath) -> Result<String, Failure> {
        let senders = (self.tokens.0.clone(), self.gone.0.clone());
        let part = Part::start(plan, on_death, senders, self.output).await?;
        if !self.output.is_json() {
            let mark = self.output.error_style.mark(Paint::Good);
            say(&format!("{mark} {} listening on {}", part.name, part.url));
        }
        let url = part.url.clone();
        self.running.push(part);
        Ok(url)
    }

    async fn start_server(&mut self, number: usize, arguments: &DemoArguments) -> Result<String, Failure> {
        let name = format!("server-{number}");
        let data = self.folder.join(&name);
        let config = self.folder.join(format!("{name}.toml"));
        std::fs::write(&config, configuration(&name))?;
        let listen = if number == 1 { arguments.listen } else { ANY_PORT };
        let mut words: Vec<OsString> = vec!["server".into(), "--listen".into(), listen.to_string().into()];
        words.extend(["--data".into(), data.into(), "--config".into(), config.into()]);
        if arguments.database.is_some() {
            // All servers have to reach one store.
            let artifacts = self.folder.join("artifacts");
            std::fs::create_dir_all(&artifacts)?;
            words.extend(["--artifacts".into(), folder_url(&artifacts)?.into()]);
        }
        let mut plan = self.plan(&name, words);
        plan.database.clone_from(&arguments.database);
        self.start_part(plan, OnDeath::StartAgain).await
    }

    /// Keeps the token that the first server has shown, once.
    async fn take_admin_token(&mut self) -> Result<PathBuf, Failure> {
        let Ok(Some(token)) = tokio::time::timeout(TOKEN_LIMIT, self.tokens.1.recv()).await else {
            return Err(Failure::new(
                "the demo's server showed no admin token",
                "Only the first start on a folder does, and a demo begins with nothing.",
                "The demo ends, and all of its processes with it.",
                "Name another folder with --data, or none.",
            ));
        };
        let file = self.folder.join("tokens").join("admin.token");
        write_private(&file, &token)?;
        Ok(file)
    }

    /// Makes a token, and keeps it in a file.
    async fn make_token(
        &self,
        client: &Client,
        name: &str,
        role: Role,
        region: Option<&str>,
    ) -> Result<PathBuf, Failure> {
        let create = TokenCreate {
            name: name.to_owned(),
            role,
            team: None,
            region: region.map(str::to_owned),
            expires_in_ms: None,
        };
        let file = self.folder.join("tokens").join(format!("{name}.token"));
        write_private(&file, &client.create_token(&create).await?.secret)?;
        Ok(file)
    }

    /// The agent of a region and the node beside it; where to read there.
    async fn start_region(
        &mut self,
        region: &str,
        client: &Client,
        servers: &[String],
    ) -> Result<[String; 2], Failure> {
        let agent = format!("agent-{region}");
        let token = self.make_token(client, &agent, Role::Region, Some(region)).await?;
        let token: OsString = token.into();

        let mut words: Vec<OsString> = vec!["agent".into(), "--listen".into(), ANY_PORT.to_string().into()];
        words.extend(["--region".into(), region.into(), "--name".into(), (&agent).into()]);
        words.extend(["--control-plane".into(), servers.join(",").into(), "--nodes".into(), "1".into()]);
        words.extend(["--data".into(), self.folder.join(&agent).into(), "--token-file".into(), token.clone()]);
        let at_agent = self.start_part(self.plan(&agent, words), OnDeath::StartAgain).await?;

        let node = format!("node-{region}");
        let mut words: Vec<OsString> = vec!["node".into(), "--listen".into(), ANY_PORT.to_string().into()];
        words.extend(["--name".into(), (&node).into(), "--agent".into(), (&at_agent).into()]);
        words.extend(["--data".into(), self.folder.join(&node).into(), "--token-file".into(), token]);
        let at_node = self.start_part(self.plan(&node, words), OnDeath::StartAgain).await?;
        Ok([format!("{region}={at_agent}"), format!("{region}={at_node}")])
    }

    /// Waits until each region is hosted, with the node beside its agent.
    async fn until_hosted(&mut self, client: &Client) -> Result<(), Failure> {
        let hosted = async {
            for region in REGIONS {
                while client.region(region).await?.host.is_none_or(|host| host.nodes.len() < 2) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(())
        };
        tokio::select! {
            biased;
            fallen = self.fallen() => Err(fallen),
            hosted = tokio::time::timeout(HOSTED_LIMIT, hosted) => hosted.unwrap_or_else(|_| {
                Err(Failure::new(
                    "the demo's agents do not host their regions",
                    format!("They were not heard of, with all nodes, within {} s.", HOSTED_LIMIT.as_secs()),
                    "The demo ends, and all of its processes with it.",
                    &format!("Read what they said, in {}.", logs(&self.folder).display()),
                ))
            }),
        }
    }
}

/// What a server is told: agents host the regions, and everybody is asked for a token.
fn configuration(name: &str) -> String {
    let schema = schema();
    let mut text = format!(
        "[server]\nname = \"{name}\"\nschema = \"{schema}\"\nlease_seconds = {LEASE_SECONDS}\n\n\
         [access]\nauthentication = \"required\"\n"
    );
    for region in REGIONS {
        // Writing to a string does not fail.
        let _ = write!(text, "\n[[regions]]\nname = \"{region}\"\nagent = true\n");
    }
    text
}

fn folder_url(folder: &Path) -> Result<String, Failure> {
    reqwest::Url::from_directory_path(folder).map(String::from).map_err(|()| {
        Failure::usage(
            format!("{} can't be written as a URL", folder.display()),
            "It is not an absolute path.",
            "Name another folder with --data.",
        )
    })
}

/// Writes a file that its owner alone may read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")
}

#[cfg(test)]
mod tests {
    use tidegate_server::ConfigFile;

    use super::*;

    #[test]
    fn servers_are_told_what_they_can_read() {
        let file = ConfigFile::parse(&configuration("server-1"), "server-1.toml").unwrap();
        assert_eq!(file.server.name.as_deref(), Some("server-1"));
        assert!(file.regions.iter().all(|region| region.agent), "{:?}", file.regions);
        assert_eq!(file.regions.len(), REGIONS.len());
    }

    #[test]
    fn a_token_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.token");
        write_private(&file, "tg_a_b").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "tg_a_b\n");
    }
}
