//! The address of a process that listens: for programs of its machine, and for others.

use std::net::SocketAddr;

use axum::http::Uri;

/// The URL of what listens at an address.
pub(crate) fn url(listens: SocketAddr, has_tls: bool) -> String {
    let scheme = if has_tls { "https" } else { "http" };
    format!("{scheme}://{listens}")
}

/// Where others reach it: where it was told, or where it listens. None where it listens on all addresses and was not told
/// which is meant.
pub(crate) fn advertised(told: Option<&str>, listens: SocketAddr, has_tls: bool) -> Option<String> {
    told.map(str::to_owned).or_else(|| (!listens.ip().is_unspecified()).then(|| url(listens, has_tls)))
}

/// The host that a URL names.
pub(crate) fn host_of(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.host().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_all_addresses_is_reached_where_it_was_told_and_nowhere_else() {
        let one: SocketAddr = "127.0.0.1:7070".parse().unwrap();
        let all: SocketAddr = "0.0.0.0:7070".parse().unwrap();
        let told = Some("https://tidegate.example:7070");
        assert_eq!(advertised(None, one, false).as_deref(), Some("http://127.0.0.1:7070"));
        assert_eq!(advertised(None, one, true).as_deref(), Some("https://127.0.0.1:7070"));
        assert_eq!(advertised(None, all, true), None);
        assert_eq!(advertised(told, all, false).as_deref(), told);
        assert_eq!(advertised(told, one, false).as_deref(), told);
    }

    #[test]
    fn the_host_of_an_address_is_without_scheme_port_and_path() {
        assert_eq!(host_of("https://tidegate.example:7070/a").as_deref(), Some("tidegate.example"));
        assert_eq!(host_of("http://[::1]:7070").as_deref(), Some("[::1]"));
        assert_eq!(host_of("/only/a/path"), None);
    }
}
