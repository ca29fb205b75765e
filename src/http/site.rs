//! Requests that a browser sends for a web page of somebody else.
//!
//! A browser sends what any page asks it to from the machine that it runs on, and without keys this machine may do everything.
//! So a batch of another site is refused. A name of that site may also come to mean this machine (DNS rebinding), which makes its
//! page a page of ours: without keys only names of this machine are answered.
//!
//! | request | answer |
//! |---|---|
//! | several `Host` headers, one that is no host, or HTTP/1.1 without any (RFC 9112, 3.2) | 400 `host_invalid` |
//! | a host that is not loopback, where neither keys nor `AUTH=off` are set | 403 `host_not_allowed` |
//! | POST with a key in a header, which no page can add for another site | goes on |
//! | POST with `Sec-Fetch-Site: cross-site` or `same-site` | 403 `cross_site` |
//! | POST without `Sec-Fetch-Site`, with an `Origin` whose host is not that of the request | 403 `cross_site` |
//! | any other, as of programs that are no browser | goes on |

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode, Uri, Version};

use crate::http::problem::Problem;

/// The hosts that requests may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Whatever name clients reach the server by.
    Any,
    /// Names and addresses of this machine alone.
    Loopback,
}

/// Refuses what the module's table refuses.
pub fn check<B>(request: &Request<B>, hosts: Hosts) -> Result<(), Problem> {
    let host = host_of(request).ok_or_else(|| {
        let detail = "the request must have one Host header, with the host and port of the URL";
        Problem::new(StatusCode::BAD_REQUEST, "host_invalid", detail)
    })?;
    // Without a name it is no browser's.
    if hosts == Hosts::Loopback && host.as_ref().is_some_and(|host| !is_loopback(host.host())) {
        let detail = "without API keys this server answers only requests whose Host is localhost or a loopback address, so that \
            no web page reaches it under a name of its own; set API_KEYS_FILE, or AUTH=off";
        return Err(Problem::new(StatusCode::FORBIDDEN, "host_not_allowed", detail));
    }
    if request.method() == Method::POST && is_of_another_site(request.headers(), host.as_ref()) {
        let detail = "a web page of another site sent this request (its Origin or Sec-Fetch-Site says so); send batches from a \
            program, or with an API key in a header";
        return Err(Problem::new(StatusCode::FORBIDDEN, "cross_site", detail));
    }
    Ok(())
}

/// What the request is for, if it says so; `None`: it does not say so as it has to.
fn host_of<B>(request: &Request<B>) -> Option<Option<Authority>> {
    let mut given = request.headers().get_all(HOST).iter();
    let header = match (given.next(), given.next()) {
        (None, _) if request.version() == Version::HTTP_11 => return None,
        (None, _) => None,
        (Some(host), None) if host.is_empty() => None,
        (Some(host), None) => {
            Some(Authority::try_from(host.as_bytes()).ok().filter(|host| !host.as_str().contains('@'))?)
        }
        (Some(_), Some(_)) => return None,
    };
    Some(request.uri().authority().cloned().or(header))
}

fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
}

fn is_of_another_site(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    if has_key(headers) {
        return false;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    headers.get_all(ORIGIN).iter().any(|origin| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        let origin = origin.as_ref().and_then(Uri::authority);
        origin.is_none() || origin != host
    })
}

/// Whether the request has a key in a header. That of Basic authentication, for a proxy in front, a browser adds by itself.
fn has_key(headers: &HeaderMap) -> bool {
    let is_bearer = |value: &[u8]| value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    headers.contains_key("x-api-key") || headers.get_all(AUTHORIZATION).iter().any(|value| is_bearer(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_with(
        method: Method,
        version: Version,
        headers: &[(&str, &str)],
        hosts: Hosts,
    ) -> Result<(), &'static str> {
        let mut request = Request::builder().method(method).version(version).uri("/v1/ingest/batch");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).expect("a request"), hosts).map_err(|problem| problem.code())
    }

    #[test]
    fn a_host_is_there_once_and_is_one() {
        let get = |version, hosts: &[&str]| {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            check_with(Method::GET, version, &headers, Hosts::Any)
        };
        for hosts in [&[][..], &["a", "a"], &["a", "b"], &["a b"], &["a/b"], &["u@a"]] {
            assert_eq!(get(Version::HTTP_11, hosts), Err("host_invalid"), "{hosts:?}");
        }
        for hosts in [&["a"][..], &["a:8000"], &["[::1]:8000"], &[""], &["127.0.0.1"]] {
            assert_eq!(get(Version::HTTP_11, hosts), Ok(()), "{hosts:?}");
        }
        assert_eq!(get(Version::HTTP_10, &[]), Ok(()));
        assert_eq!(get(Version::HTTP_2, &[]), Ok(()));
        assert_eq!(get(Version::HTTP_2, &["a", "b"]), Err("host_invalid"));
    }

    #[test]
    fn without_keys_only_names_of_this_machine_are_answered() {
        let ask = |host, hosts| check_with(Method::GET, Version::HTTP_11, &[("host", host)], hosts);
        for host in
            ["localhost", "LOCALHOST:1", "localhost.", "a.localhost", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"]
        {
            assert_eq!(ask(host, Hosts::Loopback), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", "0.0.0.0", "[::]"]
        {
            assert_eq!(ask(host, Hosts::Loopback), Err("host_not_allowed"), "{host}");
            assert_eq!(ask(host, Hosts::Any), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_site_sends_no_batches() {
        let host = ("host", "localhost:8000");
        let post = |more: &[(&str, &str)]| {
            check_with(Method::POST, Version::HTTP_11, &[&[host], more].concat(), Hosts::Loopback)
        };
        for headers in [
            &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("origin", "http://localhost:3000")],
            &[("origin", "https://evil.example")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "null")],
            &[("origin", "http://localhost:8000"), ("origin", "https://evil.example")],
            &[("origin", "https://evil.example"), ("authorization", "Basic dTpw")],
        ] {
            assert_eq!(post(headers), Err("cross_site"), "{headers:?}");
        }
        for headers in [
            &[][..],
            &[("origin", "http://localhost:8000")],
            &[("origin", "https://app.example"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[("origin", "https://app.example"), ("authorization", "Bearer KEY")],
            &[("sec-fetch-site", "cross-site"), ("x-api-key", "KEY")],
        ] {
            assert_eq!(post(headers), Ok(()), "{headers:?}");
        }
        let read = [host, ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(
            check_with(Method::GET, Version::HTTP_11, &read, Hosts::Loopback),
            Ok(()),
            "reading changes nothing"
        );
    }
}
