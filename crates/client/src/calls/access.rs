//! Tokens and the audit trail.

use reqwest::Method;
use tidegate_api::{AuditPage, TokenCreate, TokenCreated, TokenView};

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::retry::Repeat;

/// Which entries of the audit trail are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// About this store only.
    pub store: Option<String>,
    /// By this user only.
    pub user: Option<String>,
    /// About this region only. Such a page may be short, or empty, and have a next one all the same.
    pub region: Option<String>,
    /// Not before this time, in epoch milliseconds.
    pub since: Option<u64>,
    /// How many at most; the server's own number unless told.
    pub limit: Option<usize>,
    /// Where the page before this one ended.
    pub after: Option<String>,
}

impl Client {
    /// All tokens, without what proves them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokens(&self) -> Result<Vec<TokenView>, Error> {
        self.get_json(self.route(&["v1", "tokens"], &[])).await
    }

    /// Makes a token. Its secret is in the answer, and is not to be had again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_token(&self, create: &TokenCreate) -> Result<TokenCreated, Error> {
        let url = self.route(&["v1", "tokens"], &[]);
        self.send_json(Method::POST, url, create, Repeat::UnlessSent).await
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke_token(&self, token: &str, reason: Option<&str>) -> Result<TokenView, Error> {
        let url = self.route(&["v1", "tokens", token], &[("reason", reason)]);
        self.request(Request { method: Method::DELETE, url, body: Body::Nothing, repeat: Repeat::Always }).await
    }

    /// A page of the audit trail, the newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Error> {
        let (since, limit) = (query.since.map(|since| since.to_string()), query.limit.map(|limit| limit.to_string()));
        let parameters = [
            ("store", query.store.as_deref()),
            ("user", query.user.as_deref()),
            ("region", query.region.as_deref()),
            ("since", since.as_deref()),
            ("limit", limit.as_deref()),
            ("after", query.after.as_deref()),
        ];
        self.get_json(self.route(&["v1", "audit"], &parameters)).await
    }
}
