//! Names by which clients may call this server, and pages that may call it.
//!
//! A browser sends what a page asks for to any server that it can reach. Two headers say where the page is from: `Origin`, and
//! `Host` (`:authority` in HTTP/2). A page can make a name of its own stand for this server's address (DNS rebinding), and then
//! both headers agree. So a name counts as this server's only if no page could have chosen it: `localhost`, an IP address, or a
//! name in the settings.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, header};

use super::once;
use crate::{
    config::{ANY, without_port},
    error::{Error, Reason, Result, shown},
};

/// The rules of one port.
#[derive(Debug, Clone)]
pub struct Hosts {
    listens: IpAddr,
    names: Vec<String>,
    origins: Vec<String>,
}

impl Hosts {
    /// Of a port at `listens`. `names` are `server.hosts`, `origins` are `server.origins`.
    pub fn new(listens: SocketAddr, names: &[String], origins: &[String]) -> Self {
        let lower = |texts: &[String]| texts.iter().map(|text| text.to_ascii_lowercase()).collect();
        Self { listens: listens.ip(), names: lower(names), origins: lower(origins) }
    }

    /// Whether a request may name `host`, which may have a port.
    ///
    /// A port on loopback takes its own names and those in the settings. Another port takes any name until `server.hosts` has some:
    /// only its owner knows how it is reached.
    ///
    /// # Errors
    /// It may not.
    pub fn admit(&self, host: &str) -> Result<()> {
        if self.is_own(host) || self.names.is_empty() && !self.listens.is_loopback() || self.has(ANY) {
            return Ok(());
        }
        let message = format!(
            "host '{}' is not a name of this server: use localhost or its address, or add the name to server.hosts",
            shown(host, 64)
        );
        Err(Error::new(Reason::Forbidden, message).with_field("host"))
    }

    /// Whether a page may ask for a change: it names no origin, or one that `server.origins` has, or this server's own.
    ///
    /// # Errors
    /// It may not, or names two.
    pub fn admit_change(&self, headers: &HeaderMap) -> Result<()> {
        let Some(origin) = once(headers, header::ORIGIN.as_str())? else { return Ok(()) };
        let origin = text(origin);
        // `null`, which sandboxed pages have, names no host.
        let from = origin.split_once("://").map(|(_scheme, from)| from);
        let host = headers.get(header::HOST).map(text);
        let is_same = from.is_some_and(|from| host.is_some_and(|host| from.eq_ignore_ascii_case(host)));
        if self.is_listed(origin) || is_same && from.is_some_and(|from| self.is_own(from) || self.has(ANY)) {
            return Ok(());
        }
        let what_to_do = if is_same {
            "add its host to server.hosts"
        } else {
            "add it to server.origins, or make the proxy in front of this server keep the header Host"
        };
        Err(foreign(origin, what_to_do))
    }

    /// Whether a gRPC call may name its page. Programs name none; this server has no page that calls by gRPC.
    ///
    /// # Errors
    /// It may not, or names two.
    pub fn admit_call(&self, headers: &HeaderMap) -> Result<()> {
        match once(headers, header::ORIGIN.as_str())?.map(text) {
            Some(origin) if !self.is_listed(origin) => Err(foreign(origin, "add it to server.origins")),
            _ => Ok(()),
        }
    }

    fn is_listed(&self, origin: &str) -> bool {
        self.origins.iter().any(|listed| listed.eq_ignore_ascii_case(origin))
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn is_own(&self, host: &str) -> bool {
        let name = without_port(host);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            // No page can choose an address. Only loopback is held to its own: a request for another one went astray.
            Ok(address) => {
                !self.listens.is_loopback()
                    || address.is_loopback()
                    || address == self.listens
                    || self.has(name)
            }
            Err(_) => name.eq_ignore_ascii_case("localhost") || self.has(name),
        }
    }
}

fn foreign(origin: &str, what_to_do: &str) -> Error {
    let message = format!("a page of '{}' may not do this: {what_to_do}", shown(origin, 64));
    Error::new(Reason::Forbidden, message).with_field("origin")
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("(not ASCII)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(listens: &str, names: &[&str], origins: &[&str]) -> Hosts {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Hosts::new(listens.parse().unwrap(), &owned(names), &owned(origins))
    }

    fn headers(host: &str, origin: &str) -> HeaderMap {
        let named = [(header::HOST, host), (header::ORIGIN, origin)];
        named.into_iter().map(|(name, value)| (name, value.parse().unwrap())).collect()
    }

    #[test]
    fn a_port_on_loopback_has_its_own_names_and_those_of_the_settings() {
        let local = hosts("127.0.0.1:8080", &[], &[]);
        for own in
            ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "[::1]", "127.0.0.9"]
        {
            local.admit(own).unwrap();
        }
        for other in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "[fe80::1]", "", "x"]
        {
            let error = local.admit(other).unwrap_err();
            assert_eq!((error.reason(), error.field()), (Reason::Forbidden, Some("host")), "{other}");
        }
        let named = hosts("[::1]:8080", &["Models.example", "10.0.0.1"], &[]);
        for own in ["models.EXAMPLE:443", "10.0.0.1:80", "localhost"] {
            named.admit(own).unwrap();
        }
        assert!(named.admit("other.example").is_err());
        hosts("127.0.0.1:8080", &["*"], &[]).admit("evil.example").unwrap();
    }

    #[test]
    fn another_port_takes_any_name_until_its_owner_names_some() {
        for host in ["torchlane.models.svc", "10.0.0.1:8080", "localhost"] {
            hosts("0.0.0.0:8080", &[], &[]).admit(host).unwrap();
        }
        let named = hosts("[::]:8080", &["models.example"], &[]);
        for host in ["models.example", "10.0.0.1:8080", "[fe80::1]:8080", "localhost"] {
            named.admit(host).unwrap();
        }
        assert!(named.admit("torchlane.models.svc").is_err());
    }

    #[test]
    fn a_page_that_made_its_name_stand_for_this_server_changes_nothing() {
        let rebound = headers("evil.example:8080", "http://evil.example:8080");
        let open = hosts("0.0.0.0:8080", &[], &[]);
        open.admit("evil.example:8080").unwrap();
        let error = open.admit_change(&rebound).unwrap_err();
        assert!(error.message().contains("server.hosts"), "{error}");
        hosts("0.0.0.0:8080", &["evil.example"], &[]).admit_change(&rebound).unwrap();
        for own in ["10.0.0.1:8080", "localhost:8080", "[::1]:8080"] {
            open.admit_change(&headers(own, &format!("http://{own}"))).unwrap();
        }
    }

    #[test]
    fn only_pages_of_this_host_and_port_change_things() {
        let local = hosts("127.0.0.1:8080", &["models.example"], &["https://console.example"]);
        for (host, origin) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("models.example", "https://Models.example"),
            ("127.0.0.1:8080", "https://console.example"),
        ] {
            local.admit_change(&headers(host, origin)).unwrap();
        }
        for (host, origin) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8081"),
            ("127.0.0.1:8080", "http://localhost:8080"),
            ("127.0.0.1:8080", "https://console.example:444"),
            ("models.example", "https://models.example.evil.example"),
            ("models.example", "null"),
            ("models.example", "models.example"),
            ("models.example", ""),
        ] {
            let error = local.admit_change(&headers(host, origin)).unwrap_err();
            assert_eq!(
                (error.reason(), error.field()),
                (Reason::Forbidden, Some("origin")),
                "{host} {origin}"
            );
        }
        local.admit_change(&HeaderMap::new()).unwrap();
        let mut two = headers("models.example", "https://models.example");
        two.append(header::ORIGIN, "https://console.example".parse().unwrap());
        assert_eq!(local.admit_change(&two).unwrap_err().reason(), Reason::BadRequest);
        let mut alone = HeaderMap::new();
        alone.insert(header::ORIGIN, "http://x".parse().unwrap());
        assert_eq!(local.admit_change(&alone).unwrap_err().reason(), Reason::Forbidden);
    }

    #[test]
    fn a_call_by_grpc_comes_from_no_page_but_those_of_the_settings() {
        let local = hosts("127.0.0.1:50051", &[], &["https://console.example"]);
        local.admit_call(&HeaderMap::new()).unwrap();
        local.admit_call(&headers("localhost", "https://console.example")).unwrap();
        for origin in ["http://localhost", "null", "https://console.example:8443"] {
            assert_eq!(
                local.admit_call(&headers("localhost", origin)).unwrap_err().reason(),
                Reason::Forbidden
            );
        }
    }
}
