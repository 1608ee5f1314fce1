//! Clients of an S3-compatible store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use super::LocationError;
use super::credentials::{Credentials, Renewed};
use super::settings::{Environment, setting};

/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// What object_store looks for itself, where credentials come from a role.
const ROLE_VARIABLES: [&str; 9] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
];

/// Everything that a client is made of.
#[derive(Clone, Debug)]
pub(super) struct S3Plan {
    pub(super) bucket: String,
    pub(super) prefix: String,
    pub(super) endpoint: Option<String>,
    pub(super) public_endpoint: Option<String>,
    pub(super) region: String,
    pub(super) path_style: bool,
    pub(super) allow_http: bool,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) credentials: Credentials,
    pub(super) environment: Environment,
    pub(super) retries: usize,
    pub(super) retry_time: Duration,
    pub(super) request_time: Duration,
}

/// A bucket, and the place in it.
#[derive(Clone, Debug)]
pub(crate) struct S3 {
    pub(crate) client: AmazonS3,
    /// Signs URLs for others, who may know the store by another address.
    pub(crate) signer: AmazonS3,
    pub(crate) prefix: ObjectPath,
}

pub(super) fn open(plan: &S3Plan) -> Result<S3, LocationError> {
    let client = build(plan, plan.endpoint.as_deref())?;
    let signer = match &plan.public_endpoint {
        None => client.clone(),
        Some(endpoint) => build(plan, Some(endpoint))?,
    };
    Ok(S3 { client, signer, prefix: ObjectPath::from(plan.prefix.as_str()) })
}

fn build(plan: &S3Plan, endpoint: Option<&str>) -> Result<AmazonS3, LocationError> {
    let mut options = ClientOptions::new()
        .with_allow_http(plan.allow_http)
        .with_timeout(plan.request_time)
        .with_connect_timeout(CONNECT_TIME);
    if let Some(path) = &plan.ca_file {
        let bad = |why: String| setting("ca_file", format!("{}: {why}", path.display()));
        let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| bad(error.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("it has no certificate".to_owned()));
        }
        options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
    }
    let retry =
        RetryConfig { backoff: BackoffConfig::default(), max_retries: plan.retries, retry_timeout: plan.retry_time };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&plan.bucket)
        .with_region(&plan.region)
        .with_virtual_hosted_style_request(!plan.path_style)
        .with_client_options(options)
        .with_retry(retry);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint_of(endpoint, &plan.bucket, plan.path_style));
    }
    builder = match &plan.credentials {
        Credentials::WebIdentity | Credentials::Container | Credentials::Machine => with_role(builder, plan),
        from => builder.with_credentials(Arc::new(Renewed::new(from.clone(), plan.environment.clone()))),
    };
    builder.build().map_err(|error| LocationError::Client { why: error.to_string() })
}

/// With the bucket in the host's name, that name is the endpoint's with the bucket before it.
fn endpoint_of(endpoint: &str, bucket: &str, path_style: bool) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_owned(),
    }
}

fn with_role(mut builder: AmazonS3Builder, plan: &S3Plan) -> AmazonS3Builder {
    for name in ROLE_VARIABLES {
        let key = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>();
        if let (Ok(key), Some(value)) = (key, plan.environment.get(name)) {
            builder = builder.with_config(key, value);
        }
    }
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_stands_in_the_path_or_in_the_hosts_name() {
        assert_eq!(endpoint_of("https://s3.example:9000/", "b", true), "https://s3.example:9000");
        assert_eq!(endpoint_of("https://s3.example:9000/", "b", false), "https://b.s3.example:9000");
    }

    #[test]
    fn variables_of_roles_are_those_that_object_store_knows() {
        for name in ROLE_VARIABLES {
            assert!(name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().is_ok(), "{name}");
        }
    }
}
