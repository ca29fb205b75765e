//! The file of keys: TOML, a table `[[key]]` each.
//!
//! ```toml
//! [[key]]
//! id = "0123456789ab"
//! name = "checkout"
//! sha256 = "…"                    # of the token
//! scopes = ["ingest", "read"]
//! services = ["checkout-*"]       # optional: service names that it may send, * is any text
//! events_per_second = 5000        # optional: instead of RATE_LIMIT_EVENTS_PER_SECOND
//! events_burst = 20000            # optional: instead of a second's worth
//! requests_per_second = 100       # optional: instead of RATE_LIMIT_REQUESTS_PER_SECOND
//! requests_burst = 200            # optional
//! certificate_sha256 = "…"        # optional: a client certificate that counts as this key
//! created_at = "2026-11-01T00:00:00Z"
//! ```
//!
//! People may edit it: what they wrote stays as it is when a key is added or taken out. It is replaced as a whole, so
//! a server that reads it meets the old keys or the new ones.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use toml_edit::{ArrayOfTables, DocumentMut, Item};

use super::key::{ApiKey, Fingerprint, Services};
use super::rate::{RateLimit, RateLimits};
use super::scope::{Scope, Scopes};
use crate::types::{OWNER_BYTES_MAX, owner_is_valid};

/// Why the keys cannot be used: a line that names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct KeysError {
    path: PathBuf,
    why: String,
}

/// A key as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// 1–64 of `a–z 0–9 -`.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// SHA-256 of the token, in hexadecimal digits.
    pub sha256: String,
    /// Names of scopes.
    pub scopes: Vec<String>,
    /// Patterns of service names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Its own limit of events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<NonZeroU32>,
    /// Events that it may send at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_burst: Option<NonZeroU32>,
    /// Its own limit of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<NonZeroU32>,
    /// Requests that it may send at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_burst: Option<NonZeroU32>,
    /// SHA-256 of a client certificate in DER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "key")]
    keys: Vec<Record>,
}

/// The file at one path.
pub struct KeysFile {
    path: PathBuf,
}

impl KeysFile {
    /// The file at `path`, which need not be there yet.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn error(&self, why: impl std::fmt::Display) -> KeysError {
        KeysError { path: self.path.clone(), why: why.to_string() }
    }

    fn text(&self) -> Result<String, KeysError> {
        fs::read_to_string(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.error("does not exist; create a key with 'ingestd keys new --name NAME --scope ingest,read'")
            }
            _ => self.error(format!("cannot be read: {error}")),
        })
    }

    /// The keys as they are written.
    ///
    /// # Errors
    /// When the file cannot be read, or is no file of keys.
    pub fn records(&self) -> Result<Vec<Record>, KeysError> {
        self.parse(&self.text()?)
    }

    fn parse(&self, text: &str) -> Result<Vec<Record>, KeysError> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            // The library's own display quotes the line, which holds a hash or, by mistake, a token.
            self.error(format!("line {line}: {}", error.message().lines().collect::<Vec<_>>().join(", ")))
        })?;
        Ok(document.keys)
    }

    /// The keys, each checked.
    ///
    /// # Errors
    /// When one of them cannot be used; the message names it.
    pub fn keys(&self) -> Result<Vec<ApiKey>, KeysError> {
        let records = self.records()?;
        let mut seen = HashSet::new();
        let mut certificates = HashSet::new();
        for record in &records {
            if !seen.insert(&record.id) {
                return Err(self.error(format!("the id '{}' occurs more than once", record.id)));
            }
            if let Some(certificate) = &record.certificate_sha256
                && !certificates.insert(certificate.to_lowercase())
            {
                return Err(self.error(format!("key '{}': another key has this certificate_sha256", record.id)));
            }
        }
        let key = |record: &Record| {
            api_key(record).map_err(|why| self.error(format!("key '{}': {why}", record.id.escape_debug())))
        };
        records.iter().map(key).collect()
    }

    /// Adds `record`. Makes the file, readable by its owner alone, if it is not there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is no file of keys.
    pub fn add(&self, record: &Record) -> Result<(), KeysError> {
        let _alone = self.lock()?;
        let mut text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "# API keys for ingestd, created by 'ingestd keys new'. Only hashes are stored. A running server \
                 reloads it on SIGHUP.\n"
                    .to_owned()
            }
            Err(error) => return Err(self.error(format!("cannot be read: {error}"))),
        };
        self.parse(&text)?;
        let table = toml::to_string(&Document { keys: vec![record.clone()] }).map_err(|error| self.error(error))?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&table);
        self.parse(&text)?;
        self.replace(&text)
    }

    /// Takes the key `id` out; false when there is none.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn remove(&self, id: &str) -> Result<bool, KeysError> {
        let _alone = self.lock()?;
        let text = self.text()?;
        self.parse(&text)?;
        let mut document: DocumentMut = text.parse().map_err(|error| self.error(error))?;
        let Some(keys) = document.get_mut("key").and_then(Item::as_array_of_tables_mut) else {
            return Err(self.error(
                "write keys as [[key]] tables; 'ingestd keys revoke' cannot remove a key from an \
                inline list",
            ));
        };
        let before = keys.len();
        retain_others(keys, id);
        if keys.len() == before {
            return Ok(false);
        }
        self.replace(&document.to_string())?;
        Ok(true)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Held while the file is changed: the folder's lock, because the file itself is replaced.
    fn lock(&self) -> Result<File, KeysError> {
        let locked = File::open(self.folder()).and_then(|folder| {
            flock(&folder, FlockOperation::LockExclusive)?;
            Ok(folder)
        });
        locked.map_err(|error| self.error(format!("its directory cannot be used: {error}")))
    }

    fn replace(&self, text: &str) -> Result<(), KeysError> {
        self.try_replace(text).map_err(|error| self.error(format!("cannot be written: {error}")))
    }

    fn try_replace(&self, text: &str) -> io::Result<()> {
        let mode = fs::metadata(&self.path).map_or(0o600, |metadata| metadata.permissions().mode());
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beside = self.folder().join(format!(".{name}.{}", std::process::id()));
        let written = File::create(&beside).and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)
        });
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&beside);
        }
        written?;
        File::open(self.folder())?.sync_all()
    }
}

fn retain_others(keys: &mut ArrayOfTables, id: &str) {
    keys.retain(|table| table.get("id").and_then(Item::as_str) != Some(id));
}

fn api_key(record: &Record) -> Result<ApiKey, String> {
    if record.id.is_empty() || !owner_is_valid(&record.id) {
        return Err(format!("id must be 1 to {OWNER_BYTES_MAX} of a-z 0-9 -"));
    }
    let hash = |name: &str, text: &str| {
        Fingerprint::parse(text).ok_or_else(|| format!("{name} must be 64 hexadecimal digits"))
    };
    if record.services.iter().any(String::is_empty) {
        return Err("services contains an empty pattern; omit services to allow all".to_owned());
    }
    Ok(ApiKey {
        id: Arc::from(&*record.id),
        name: record.name.clone(),
        token: hash("sha256", &record.sha256)?,
        scopes: scopes(&record.scopes)?,
        services: Services::matching(record.services.iter().map(String::as_str)),
        limits: RateLimits {
            events: limit("events", record.events_per_second, record.events_burst)?,
            requests: limit("requests", record.requests_per_second, record.requests_burst)?,
        },
        certificate: record.certificate_sha256.as_deref().map(|text| hash("certificate_sha256", text)).transpose()?,
    })
}

/// The set of the scopes called `names`.
///
/// # Errors
/// A sentence, when there is none or one does not exist.
pub fn scopes(names: &[String]) -> Result<Scopes, String> {
    let mut scopes = Scopes::default();
    for name in names {
        let scope = Scope::named(name)
            .ok_or_else(|| format!("unknown scope '{}'; the scopes are {}", name.escape_debug(), Scopes::ALL))?;
        scopes = scopes.with(scope);
    }
    if scopes.is_empty() { Err(format!("no scope is given; the scopes are {}", Scopes::ALL)) } else { Ok(scopes) }
}

fn limit(what: &str, per_second: Option<NonZeroU32>, burst: Option<NonZeroU32>) -> Result<Option<RateLimit>, String> {
    match (per_second, burst) {
        (None, Some(_)) => Err(format!("{what}_burst requires {what}_per_second")),
        (per_second, burst) => Ok(per_second.map(|per_second| RateLimit::new(per_second, burst))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            name: format!("name of {id}"),
            sha256: Fingerprint::of(id.as_bytes()).to_string(),
            scopes: vec!["ingest".to_owned()],
            services: Vec::new(),
            events_per_second: None,
            events_burst: None,
            requests_per_second: None,
            requests_burst: None,
            certificate_sha256: None,
            created_at: None,
        }
    }

    fn file() -> (tempfile::TempDir, KeysFile) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeysFile::at(&folder.path().join("keys.toml"));
        (folder, file)
    }

    #[test]
    fn keys_are_added_and_removed_and_what_people_wrote_stays() {
        let (_folder, file) = file();
        file.add(&record("one")).expect("added");
        assert_eq!(fs::metadata(&file.path).expect("there").permissions().mode() & 0o777, 0o600);
        let by_hand = fs::read_to_string(&file.path).expect("text") + "# ours\nservices = ['a-*'] # only those";
        fs::write(&file.path, by_hand).expect("written");
        file.add(&record("two")).expect("added");
        let keys = file.keys().expect("valid");
        assert_eq!(keys.iter().map(|key| &*key.id).collect::<Vec<_>>(), ["one", "two"]);
        assert!(keys[0].services.allow("a-b") && !keys[0].services.allow("b") && keys[1].services.are_all());
        assert!(file.remove("two").expect("removed"));
        assert!(!file.remove("two").expect("nothing to remove"));
        assert!(fs::read_to_string(&file.path).expect("text").contains("services = ['a-*'] # only those"));
        assert!(file.remove("one").expect("removed"));
        assert_eq!(file.keys().expect("valid").len(), 0);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key_and_without_its_hash() {
        let (folder, file) = file();
        assert!(file.keys().expect_err("not there").to_string().contains("ingestd keys new"));
        let mut cases = vec![("[[key]]\nid = 1\nsha256 = 'geheim'".to_owned(), "line 2: invalid type")];
        let mut case = |change: &dyn Fn(&mut Record), expected| {
            let mut record = record("one");
            change(&mut record);
            cases.push((toml::to_string(&Document { keys: vec![record] }).expect("TOML"), expected));
        };
        case(&|record| record.id = "a b".to_owned(), "key 'a b': id must be");
        case(&|record| record.sha256 = "geheim".to_owned(), "key 'one': sha256 must be 64 hexadecimal digits");
        case(&|record| record.scopes = vec!["root".to_owned()], "unknown scope 'root'; the scopes are ingest,read");
        case(&|record| record.scopes.clear(), "no scope is given");
        case(&|record| record.services = vec![String::new()], "empty pattern");
        case(&|record| record.events_burst = NonZeroU32::new(5), "events_burst requires events_per_second");
        let twice = toml::to_string(&Document { keys: vec![record("one"), record("one")] }).expect("TOML");
        cases.push((twice, "the id 'one' occurs more than once"));
        cases.push(("[[key]]\ncolour = 1".to_owned(), "unknown field `colour`"));
        for (text, expected) in cases {
            fs::write(folder.path().join("keys.toml"), &text).expect("written");
            let error = file.keys().expect_err(expected).to_string();
            assert!(error.contains(expected) && !error.contains("geheim") && error.lines().count() == 1, "{error}");
        }
    }
}
