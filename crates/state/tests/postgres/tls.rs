//! Encrypted connections: a server with a certificate of an authority of the test's own, which takes no others.

use std::net::{IpAddr, Ipv4Addr};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
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
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.subject_alt_names.push(rcgen::SanType::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST)));
    let certificate = params.signed_by(&key, &own).unwrap();
    leave(&plain, "server.crt", certificate.pem().trim()).await;
    leave(&plain, "server.key", key.serialize_pem().trim()).await;
    leave(&plain, "pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 reject").await;
    sql(&plain, "ALTER SYSTEM SET ssl = on").await;
    sql(&plain, "SELECT pg_reload_conf()").await;
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

super::with_postgres! {
    d11_sslmode_is_as_libpq_has_it,
}
