//! URLs without their passwords, for everything that people see.
//!
//! The text may be malformed (that is when it gets printed), so this does not parse: it errs on the side
//! of hiding too much.

/// `url` with every password replaced by `***`: the one in `user:password@`, and those in parameters whose
/// name ends in `password`. Text without `://` is hidden altogether (it may be `password=… host=…`).
pub fn url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.is_empty() { String::new() } else { "***".into() };
    };
    format!("{scheme}://{}", hide_credentials(&hide_parameters(rest)))
}

/// `url` without anything that stands before an `@`: a token may be given as a user.
pub fn userinfo(url: &str) -> String {
    let Some((before, rest)) = url.rsplit_once('@') else { return url.into() };
    let scheme = before.split_once("://").map_or("", |(scheme, _userinfo)| scheme);
    format!("{scheme}://***@{rest}")
}

/// Hides what follows `password=` up to the next `&`, wherever it stands and however it is cased.
fn hide_parameters(text: &str) -> String {
    const NAME: &str = "password=";
    let lower = text.to_ascii_lowercase();
    let (mut shown, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(found) = lower[at..].find(NAME) {
        let value = at + found + NAME.len();
        shown.push_str(&text[at..value]);
        shown.push_str("***");
        at = value + text[value..].find('&').unwrap_or(text.len() - value);
    }
    shown.push_str(&text[at..]);
    shown
}

/// Hides what stands between the first `:` and the last `@`: an unescaped `@`, `/` or `?` in a password
/// must not end it early.
fn hide_credentials(text: &str) -> String {
    let Some((credentials, rest)) = text.rsplit_once('@') else { return text.into() };
    match credentials.split_once(':') {
        Some((user, _password)) => format!("{user}:***@{rest}"),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_never_show() {
        for secret in ["pw-1", "p@w-1", "p/w-1", "p?w-1", "p:w-1", "p#w-1@", "%70w-1", ""] {
            for shown in [
                url(&format!("postgres://u:{secret}@h:1/d?sslmode=require")),
                url(&format!("postgres://u:{secret}@h:1/d?password={secret}&a=b")),
                url(&format!("postgres://h:1/d?a=b&sslPassword={secret}")),
                url(&format!("host=h password={secret}")),
                url(&format!("redis://:{secret}@h")),
            ] {
                assert!(secret.is_empty() || !shown.contains("w-1"), "{shown}");
            }
        }
    }

    #[test]
    fn userinfo_never_shows() {
        for secret in ["https://token-1@h/x", "https://u:token-1@h/x", "u:token-1@h/x", "https://u:p@token-1@h/x"] {
            let shown = userinfo(secret);
            assert!(!shown.contains("token-1") && shown.ends_with("://***@h/x"), "{shown}");
        }
        assert_eq!(userinfo("http://h:4318/x"), "http://h:4318/x");
    }

    #[test]
    fn everything_else_still_shows() {
        assert_eq!(url("postgres://u:p@h:1/d?sslmode=require"), "postgres://u:***@h:1/d?sslmode=require");
        assert_eq!(url("postgres://u@h/d"), "postgres://u@h/d");
        assert_eq!(url("postgresql:///d"), "postgresql:///d");
        assert_eq!(url("redis://h:6379/0"), "redis://h:6379/0");
    }
}
