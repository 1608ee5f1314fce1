//! Encrypted connections: a server with a certificate of an authority of the test's own, which takes no others.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use tidegate_state::driver::DriverError;

use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::testing::postgres::PostgresServer;

use super::support::*;

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Has the database's own user write a file into its data folder, and nobody else read it.
async fn leave(store: &PostgresStore, name: &str, text: &str) {
    sql(
        store,
        &format!("COPY (SELECT unnest(string_to_array('{text}', E'\\n'))) TO PROGRAM 'umask 077; cat > {name}'"),
    )
    .await;
}

/// Has the database take encrypted connections alone, which it lets in by this method, with a certificate of this authority;
/// it trusts certificates of those who come if they are of the same one.
async fn encrypt(plain: &PostgresStore, authority: &CertifiedIssuer<'static, KeyPair>, method: &str) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.subject_alt_names.push(rcgen::SanType::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST)));
    let certificate = params.signed_by(&key, authority).unwrap();
    leave(plain, "server.crt", certificate.pem().trim()).await;
    leave(plain, "server.key", key.serialize_pem().trim()).await;
    leave(plain, "root.crt", authority.pem().trim()).await;
    let access = format!("hostssl all all 127.0.0.1/32 {method}\nhost all all 127.0.0.1/32 reject");
    leave(plain, "pg_hba.conf", &access).await;
    sql(plain, "ALTER SYSTEM SET ssl_ca_file = 'root.crt'").await;
    sql(plain, "ALTER SYSTEM SET ssl = on").await;
    sql(plain, "SELECT pg_reload_conf()").await;
}

/// A certificate for a user of the database and its key, as files in the folder.
fn client_certificate(folder: &Path, user: &str, authority: &CertifiedIssuer<'static, KeyPair>) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    let certificate = params.signed_by(&key, authority).unwrap();
    let files = (folder.join(format!("{user}.crt")), folder.join(format!("{user}.key")));
    std::fs::write(&files.0, certificate.pem()).unwrap();
    std::fs::write(&files.1, key.serialize_pem()).unwrap();
    files
}

/// Writes through a connection of this kind; the error if it can't be made.
async fn write_by(address: &str, schema: &str) -> Result<(), DriverError> {
    let store = store(address, schema);
    store.driver().open(&[]).await?;
    let (state, _) = open(&store, "server").await;
    increment(&state, "n").await.unwrap();
    state.close().await;
    Ok(())
}

/// D11: each `sslmode` as libpq has it: what is verified, what is refused, and what is said then.
async fn d11_sslmode_is_as_libpq_has_it() {
    let server = PostgresServer::start(&[]).unwrap();
    let schema = server.fresh_schema();
    let plain = store(&server.url(), &schema);
    plain.driver().open(&[]).await.unwrap();
    let (own, other) = (authority(), authority());
    encrypt(&plain, &own, "trust").await;
    let folder = tempfile::tempdir().unwrap();
    let root = |name: &str, issuer: &CertifiedIssuer<'static, KeyPair>| {
        let file = folder.path().join(name);
        std::fs::write(&file, issuer.pem()).unwrap();
        file.display().to_string()
    };
    let (right, wrong) = (root("right.crt", &own), root("wrong.crt", &other));
    let port = server.port();
    let address = |host: &str, rest: &str| format!("postgres://tidegate@{host}:{port}/postgres?{rest}");

    eventually("the server has read its configuration", async || {
        write_by(&address("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={right}")), &schema).await.is_ok()
    })
    .await;
    for (host, rest) in [
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={right}")),
        // The certificate is for the address, not for this name.
        ("localhost", format!("sslmode=verify-ca&sslrootcert={right}")),
    ] {
        write_by(&address(host, &rest), &schema).await.unwrap_or_else(|error| panic!("{host} {rest}: {error}"));
    }
    for (host, rest, told) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={wrong}"), "sslrootcert"),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={wrong}"), "sslrootcert"),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={wrong}"), "sslrootcert"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}"), "certificate"),
        ("127.0.0.1", "sslmode=disable".to_owned(), "pg_hba.conf"),
    ] {
        let refused = write_by(&address(host, &rest), &schema).await;
        let Err(DriverError::Configuration(text)) = &refused else { panic!("{host} {rest}: {refused:?}") };
        assert!(text.contains(told), "{host} {rest}: {text}");
    }
}

/// D11: a database that asks for a certificate of who comes: let in by `sslcert` and `sslkey`; refused without them, or with
/// another user's, saying what to give.
async fn d11_a_client_certificate_lets_its_user_in_and_nobody_else() {
    let server = PostgresServer::start(&[]).unwrap();
    let schema = server.fresh_schema();
    let plain = store(&server.url(), &schema);
    plain.driver().open(&[]).await.unwrap();
    let own = authority();
    encrypt(&plain, &own, "cert").await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.crt");
    std::fs::write(&root, own.pem()).unwrap();
    let port = server.port();
    let address = |shown: Option<&(PathBuf, PathBuf)>| {
        let root = root.display();
        let without = format!("postgres://tidegate@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={root}");
        shown.map_or(without.clone(), |(certificate, key)| {
            format!("{without}&sslcert={}&sslkey={}", certificate.display(), key.display())
        })
    };
    let (right, other) =
        (client_certificate(folder.path(), "tidegate", &own), client_certificate(folder.path(), "somebody", &own));

    eventually("the server has read its configuration", async || {
        write_by(&address(Some(&right)), &schema).await.is_ok()
    })
    .await;
    for shown in [None, Some(&other)] {
        let refused = write_by(&address(shown), &schema).await;
        let Err(DriverError::Configuration(text)) = &refused else { panic!("{shown:?}: {refused:?}") };
        for told in ["certificate", "sslcert=FILE", "sslkey=FILE", "tidegate"] {
            assert!(text.contains(told), "{shown:?}: {told} is not in: {text}");
        }
    }
    // A key that is not there is told before anything is connected to.
    let absent = (right.0.clone(), folder.path().join("absent.key"));
    let refused = PostgresStore::new(&address(Some(&absent)), options(&schema)).map(|_| ());
    let Err(DriverError::Configuration(text)) = &refused else { panic!("{refused:?}") };
    assert!(text.contains("absent.key"), "{text}");
    // What was refused has changed nothing for whoever shows the right one.
    write_by(&address(Some(&right)), &schema).await.unwrap();
}

super::with_postgres! {
    d11_a_client_certificate_lets_its_user_in_and_nobody_else,
    d11_sslmode_is_as_libpq_has_it,
}
