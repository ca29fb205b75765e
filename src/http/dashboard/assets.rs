//! The page's files. All are in the binary: the page asks no other host for anything, and its policy forbids it.

use std::sync::LazyLock;

use data_encoding::HEXLOWER;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY,
};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};

use crate::http::route::with_type;

/// Everything from this server and nothing written into the page itself: whatever a client could smuggle into the data
/// is text. Trusted Types make assigning it as HTML an error, too.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

struct Asset {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// Declares an asset whose file lies in `page/`.
macro_rules! own {
    ($path:literal, $content_type:expr, $file:literal) => {
        Asset { path: $path, content_type: $content_type, bytes: include_bytes!(concat!("page/", $file)) }
    };
}

/// Declares an asset of uPlot, which `deploy/setup.sh` brings and `build.rs` puts there.
macro_rules! of_uplot {
    ($path:literal, $content_type:expr, $file:literal) => {
        Asset { path: $path, content_type: $content_type, bytes: include_bytes!(concat!(env!("OUT_DIR"), "/", $file)) }
    };
}

const ASSETS: [Asset; 11] = [
    own!("/", "text/html; charset=utf-8", "index.html"),
    own!("/assets/page.css", CSS, "page.css"),
    own!("/assets/page.js", JAVASCRIPT, "page.js"),
    own!("/assets/charts.js", JAVASCRIPT, "charts.js"),
    own!("/assets/tables.js", JAVASCRIPT, "tables.js"),
    own!("/assets/source.js", JAVASCRIPT, "source.js"),
    own!("/assets/format.js", JAVASCRIPT, "format.js"),
    own!("/assets/icon.svg", "image/svg+xml", "icon.svg"),
    of_uplot!("/assets/uplot/uPlot.js", JAVASCRIPT, "uPlot.iife.min.js"),
    of_uplot!("/assets/uplot/uPlot.css", CSS, "uPlot.min.css"),
    of_uplot!("/assets/uplot/LICENSE", "text/plain; charset=utf-8", "LICENSE"),
];

/// Whether `path` is one of the page's files.
pub fn is_asset(path: &str) -> bool {
    find(path).is_some()
}

fn find(path: &str) -> Option<usize> {
    ASSETS.iter().position(|asset| asset.path == path)
}

/// The file at `path`; 304 when the client has it already. `None`: there is no such file.
pub fn get(path: &str, headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
    static TAGS: LazyLock<[HeaderValue; ASSETS.len()]> = LazyLock::new(|| ASSETS.map(|asset| tag(asset.bytes)));
    let index = find(path)?;
    let (asset, tag) = (&ASSETS[index], &TAGS[index]);
    let mut response = if is_known(headers, tag) {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        with_type(StatusCode::OK, asset.content_type, Bytes::from_static(asset.bytes))
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, tag.clone());
    // Kept, and asked for anew: after an upgrade no old script meets a new server.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    Some(response)
}

/// A strong validator (RFC 9110, 8.8.3) of `bytes`.
fn tag(bytes: &[u8]) -> HeaderValue {
    let digest = HEXLOWER.encode(&Sha256::digest(bytes)[..16]);
    HeaderValue::try_from(format!("\"{digest}\"")).expect("quotes and hexadecimal digits are a header's value")
}

/// Whether `If-None-Match` lists `tag` (RFC 9110, 13.1.2).
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|list| list.to_str().ok());
    let mut known = lists.flat_map(|list| list.split(',').map(str::trim));
    known.any(|known| known == "*" || known.trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_the_client_has_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        let first = get("/", &headers).expect("the page");
        assert_eq!(first.status(), StatusCode::OK);
        for known in ["\"x\", W/{}", "{}", "*"] {
            let tag = first.headers()[ETAG].to_str().expect("text");
            headers.insert(IF_NONE_MATCH, known.replace("{}", tag).parse().expect("a header"));
            let again = get("/", &headers).expect("the page");
            assert_eq!((again.status(), &again.headers()[ETAG]), (StatusCode::NOT_MODIFIED, &first.headers()[ETAG]));
        }
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
        assert_eq!(get("/", &headers).expect("the page").status(), StatusCode::OK);
    }

    #[test]
    fn every_file_that_the_page_names_is_served_and_the_other_way_round() {
        let text = |asset: &Asset| String::from_utf8_lossy(asset.bytes).into_owned();
        let own = ASSETS.iter().filter(|asset| !asset.path.contains("/uplot/"));
        let sources: String = own.map(text).collect();
        for asset in ASSETS.iter().skip(1) {
            let name = asset.path.trim_start_matches("/assets/");
            assert!(sources.contains(name), "{} is served for nobody", asset.path);
        }
        for quoted in sources.split(['"', '\'']).filter(|quoted| quoted.starts_with("/assets/")) {
            assert!(is_asset(quoted), "{quoted} is not served");
        }
    }
}
