//! The server that is measured on, its baseline, and a foreign transaction that is held open on it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::postgres::PostgresServer;

/// The server that is measured on.
pub(crate) struct Server {
    pub(crate) url: String,
    /// Unless the environment names another.
    own: Option<&'static PostgresServer>,
    schemas: AtomicU64,
}

impl Server {
    pub(crate) fn find() -> Result<Server, &'static str> {
        let schemas = AtomicU64::new(0);
        match std::env::var("TIDEGATE_BENCH_POSTGRES") {
            Ok(url) => Ok(Server { url, own: None, schemas }),
            Err(_) => {
                let own = tidegate_state::testing::postgres::shared()?;
                Ok(Server { url: own.url(), own: Some(own), schemas })
            }
        }
    }

    /// A store that nobody has used, and its schema.
    pub(crate) fn store(&self) -> (PostgresStore, String) {
        self.store_with(|options| options)
    }

    pub(crate) fn store_with(
        &self,
        configure: impl FnOnce(PostgresOptions) -> PostgresOptions,
    ) -> (PostgresStore, String) {
        // Another run may have left its schemas on a server that is not this run's own.
        let schema = format!("bench_{}_{}", std::process::id(), self.schemas.fetch_add(1, Ordering::Relaxed));
        (PostgresStore::new(&self.url, configure(PostgresOptions::in_schema(schema.clone()))).unwrap(), schema)
    }

    /// The server's first process, if the server is this run's own.
    pub(crate) fn process(&self) -> Option<u64> {
        let file = self.own?.folder().join("data/postmaster.pid");
        std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
    }

    /// What a query says, one value.
    pub(crate) fn ask(&self, query: &str) -> u64 {
        self.run("psql", &["-q", "-t", "-A", "-c", query, &self.url]).trim().parse().unwrap()
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let path = self.own.map_or_else(|| PathBuf::from(program), |own| own.program(program));
        let output = Command::new(path).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// One row per commit into a table without index, by so many clients; commits per second.
pub(crate) fn pgbench(server: &Server, clients: u32) -> f64 {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "INSERT INTO pgbench_rows (text) VALUES ('some text of a row');\n").unwrap();
    let make = "DROP TABLE IF EXISTS pgbench_rows; CREATE TABLE pgbench_rows (text text)";
    server.run("psql", &["-q", "-c", make, &server.url]);
    let (clients, script) = (clients.to_string(), script.path().to_str().unwrap());
    let told = server
        .run("pgbench", &["-n", "-c", &clients, "-j", "2", "-T", "3", "-M", "prepared", "-f", script, &server.url]);
    let rate = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.unwrap()
}

/// A figure and what it is of the baseline before and after it.
pub(crate) struct Measured<'server> {
    before: f64,
    server: &'server Server,
}

impl Measured<'_> {
    pub(crate) fn begin(server: &Server) -> Measured<'_> {
        Measured { before: pgbench(server, 32), server }
    }

    pub(crate) fn end(self, what: &str, rate: f64, wanted: &str) {
        let baseline = f64::midpoint(self.before, pgbench(self.server, 32));
        println!("{what}: {rate:.0}/s = {:.2} x pgbench -c 32 ({baseline:.0}/s); wanted: {wanted}", rate / baseline);
    }
}

/// A transaction of somebody else that has read every table of a schema and is not ended: nothing that dies meanwhile can be
/// cleaned up.
pub(crate) struct Foreign(Child);

impl Foreign {
    pub(crate) fn open(server: &Server, schema: &str) -> Foreign {
        let read = format!(
            "SELECT count(*) FROM pg_catalog.pg_tables t, LATERAL \
             query_to_xml(format('SELECT count(*) FROM %I.%I', t.schemaname, t.tablename), false, true, '') \
             WHERE t.schemaname = '{schema}'"
        );
        let path = server.own.map_or_else(|| PathBuf::from("psql"), |own| own.program("psql"));
        let mut psql = Command::new(path);
        psql.args(["-q", "-t", "-A", &server.url]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = psql.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n{read};").unwrap();
        child.stdin = Some(input);
        let mut read = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut read).unwrap();
        assert!(read.trim().parse::<u64>().is_ok_and(|tables| tables > 0), "the foreign transaction has read {read:?}");
        Foreign(child)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
