//! Where servers are: what people write, and the addresses that stand for it.

use std::{str::FromStr, time::Duration};

use http::uri::Authority;
use tonic::transport::{Channel, Endpoint};

use super::ClientError;

/// For a server to take a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a person writes for one or more servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `http://HOST:PORT`, or `HOST:PORT`.
    Fixed(Address),
    /// `dns:///NAME:PORT`: each address of the name is a server. What is kept is `NAME:PORT`.
    Name(String),
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    /// What is dialled: `HOST:PORT`.
    pub(super) dial: String,
    /// What requests are for (`:authority`): the name that was written, whatever address it has.
    pub(super) authority: String,
}

impl FromStr for Target {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        if let Some(name) = text.strip_prefix("dns:///") {
            return host_and_port(text, name).map(Self::Name);
        }
        let rest = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(_) => {
                let message = "torchlane speaks plaintext: write HOST:PORT, and end TLS in a proxy";
                return Err(ClientError::invalid(format!("'{text}': {message}")));
            }
        };
        let authority = host_and_port(text, rest)?;
        Ok(Self::Fixed(Address { dial: authority.clone(), authority }))
    }
}

fn host_and_port(text: &str, rest: &str) -> Result<String, ClientError> {
    let authority = rest.parse::<Authority>().ok();
    let is_whole =
        |it: &Authority| it.port_u16().is_some() && !it.host().is_empty() && !it.as_str().contains('@');
    authority.filter(is_whole).map(|authority| authority.as_str().to_owned()).ok_or_else(|| {
        ClientError::invalid(format!("'{text}': write it as HOST:PORT, http://HOST:PORT or dns:///NAME:PORT"))
    })
}

impl Address {
    /// A connection's settings, without an opinion on how it is made.
    ///
    /// # Errors
    /// None for an address that was read by this module.
    pub(super) fn endpoint(&self) -> Result<Endpoint, ClientError> {
        Channel::from_shared(format!("http://{}", self.authority))
            .map_err(|error| ClientError::invalid(format!("{}: {error}", self.authority)))
    }
}

/// How to reach the server at `text` by a single connection that comes back by itself, for generated clients.
///
/// # Errors
/// It is no address, or not one that plaintext goes to.
pub fn endpoint(text: &str) -> Result<Endpoint, ClientError> {
    let address = match text.parse::<Target>()? {
        Target::Fixed(address) => address,
        Target::Name(name) => Address { dial: name.clone(), authority: name },
    };
    Ok(address.endpoint()?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let at = "127.0.0.1:50051";
        for text in [at, "http://127.0.0.1:50051", "http://127.0.0.1:50051/"] {
            let Target::Fixed(address) = text.parse::<Target>().unwrap() else { panic!("{text}") };
            assert_eq!((address.dial.as_str(), address.authority.as_str()), (at, at));
            assert_eq!(endpoint(text).unwrap().uri().to_string(), "http://127.0.0.1:50051/");
        }
        let name = "dns:///lanes.default.svc:50051".parse::<Target>().unwrap();
        assert_eq!(name, Target::Name("lanes.default.svc:50051".to_owned()));
        assert!(matches!("[::1]:50051".parse::<Target>(), Ok(Target::Fixed(_))));
    }

    #[test]
    fn what_is_no_address_is_named() {
        for (text, expect) in [
            ("", "HOST:PORT"),
            ("localhost", "HOST:PORT"),
            (":50051", "HOST:PORT"),
            ("host:port", "HOST:PORT"),
            ("http://host:1/v2", "HOST:PORT"),
            ("me@host:1", "HOST:PORT"),
            ("dns:///lanes", "dns:///NAME:PORT"),
            ("https://host:1", "plaintext"),
            ("unix:///run/x", "plaintext"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.to_string().contains(expect), "{text}: {error}");
        }
    }
}
