//! Settings as given: each value as text, and where it came from. Nothing is validated here except that
//! a file is TOML and names settings that exist, and that a file with a URL can be read.
//!
//! Precedence: flag > environment > `--config FILE` > default.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::redact;
use super::settings::{Fallback, Key, Kind, SETTINGS, Setting};
use crate::limits::SECRET_FILE_BYTES_MAX;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command.
    Flag,
    /// An environment variable.
    Environment,
    /// The file of `--config`, or the one that holds this URL.
    File(PathBuf),
    /// Given nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One setting as given.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its row in the table.
    pub setting: &'static Setting,
    /// The text; `None` when the setting is unset and has no default value.
    pub text: Option<String>,
    /// Where the text came from.
    pub origin: Origin,
}

impl Given {
    /// The value for people: passwords hidden, `None` where nothing is set.
    pub fn shown(&self) -> Option<String> {
        let text = self.text.as_ref()?;
        Some(match self.setting.kind {
            Kind::PostgresUrl | Kind::RedisUrl => redact::url(text),
            Kind::HttpUrl => redact::userinfo(text),
            _ => text.clone(),
        })
    }
}

/// All settings as given, and what was wrong with the way they were given.
#[derive(Clone, Debug)]
pub struct Raw {
    /// In the table's order, one for each setting.
    values: Vec<Given>,
    /// True when `--embedded` was given: the embedded database, whatever `DATABASE_URL` says.
    pub embedded: bool,
    /// Problems with files and with text that is not UTF-8, one line each.
    pub problems: Vec<String>,
}

/// Looks a variable up, as [`std::env::var_os`] does.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What [`Raw::gather`] looks at, strongest first.
#[derive(Default)]
pub struct Sources<'a> {
    /// Flags that were given.
    pub flags: BTreeMap<Key, String>,
    /// True when `--embedded` was given.
    pub embedded: bool,
    /// The environment.
    pub environment: Option<Environment<'a>>,
    /// The file of `--config`.
    pub file: Option<&'a Path>,
}

impl Raw {
    /// Looks every setting up in `sources`. Reads the file, if there is one.
    pub fn gather(sources: Sources<'_>) -> Self {
        let mut problems = Vec::new();
        let mut in_file = match sources.file {
            Some(path) => read_file(path, &mut problems),
            None => BTreeMap::new(),
        };
        let mut flags = sources.flags;
        let mut find = |setting: &'static Setting| {
            if let Some(text) = flags.remove(&setting.key) {
                return (Some(text), Origin::Flag);
            }
            if let Some(text) = sources.environment.and_then(|look_up| look_up(setting.name)) {
                return match text.into_string() {
                    Ok(text) => (Some(text), Origin::Environment),
                    Err(_) => {
                        problems.push(format!("{}: must be UTF-8 text", setting.name));
                        (default_text(setting), Origin::Default)
                    }
                };
            }
            if let (Some(text), Some(path)) = (in_file.remove(&setting.key), sources.file) {
                return (Some(text), Origin::File(path.to_owned()));
            }
            (default_text(setting), Origin::Default)
        };
        let given = |setting| {
            let (text, origin) = find(setting);
            Given { setting, text, origin }
        };
        let values = SETTINGS.iter().map(given).collect();
        let mut raw = Self { values, embedded: sources.embedded, problems };
        for setting in &SETTINGS {
            if let Some(file) = setting.key.file().filter(|_| !raw.is_unused(setting.key)) {
                raw.read_secret(setting.key, file);
            }
        }
        raw
    }

    /// True for the database's URLs when it is the embedded one that is wanted.
    pub fn is_unused(&self, key: Key) -> bool {
        use Key::{DatabaseUrl, DatabaseUrlFile, MigrateDatabaseUrl, MigrateDatabaseUrlFile};
        self.embedded && matches!(key, DatabaseUrl | DatabaseUrlFile | MigrateDatabaseUrl | MigrateDatabaseUrlFile)
    }

    /// Takes the value of `key` from the file that the setting `file` names. Its content is in no message.
    fn read_secret(&mut self, key: Key, file: Key) {
        let (given, named) = (self.get(key), self.get(file));
        // An empty name is refused with all other empty values.
        let Some(path) = named.text.as_deref().map(str::trim).filter(|path| !path.is_empty()) else { return };
        if given.text.is_some() {
            let (name, origin, file_name, file_origin) = (key.name(), &given.origin, file.name(), &named.origin);
            self.problems
                .push(format!("{name} ({origin}) and {file_name} ({file_origin}) are both set: unset one of them"));
            return;
        }
        let path = PathBuf::from(path);
        match read_secret_file(&path) {
            Ok(text) => {
                let given = &mut self.values[key as usize];
                (given.text, given.origin) = (Some(text), Origin::File(path));
            }
            Err(why) => self.problems.push(format!("{}={}: {why}", file.name(), shown_path(&path))),
        }
    }

    /// One setting.
    pub fn get(&self, key: Key) -> &Given {
        &self.values[key as usize]
    }

    /// All settings, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = &Given> {
        self.values.iter()
    }
}

/// The one line of the file at `path`, without its line break.
fn read_secret_file(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    // Bounded: the path may be wrong, and name something that never ends.
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let read = file.take(SECRET_FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > SECRET_FILE_BYTES_MAX {
        return Err(format!("is longer than {SECRET_FILE_BYTES_MAX} bytes: it must contain one URL and nothing else"));
    }
    let line = text.trim();
    match line.lines().count() {
        0 => Err("is empty: it must contain a URL".into()),
        1 => Ok(line.into()),
        _ => Err("has several lines: it must contain one URL and nothing else".into()),
    }
}

/// A path for a message of one line.
fn shown_path(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

fn default_text(setting: &Setting) -> Option<String> {
    match setting.fallback {
        Fallback::Value(text) => Some(text.into()),
        Fallback::Unset(_) => None,
    }
}

/// The settings of a TOML file; what cannot be used becomes a line in `problems`.
fn read_file(path: &Path, problems: &mut Vec<String>) -> BTreeMap<Key, String> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(format!("--config {shown}: cannot be read: {error}"));
            return BTreeMap::new();
        }
    };
    let table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let reason = error.message().lines().collect::<Vec<_>>().join(", ");
            problems.push(format!("{shown}:{line}: not valid TOML: {reason}"));
            return BTreeMap::new();
        }
    };
    let mut found = BTreeMap::new();
    for (name, value) in table {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.toml_key() == name) else {
            problems.push(format!("{shown}: unknown setting '{name}'; did you mean '{}'?", nearest(&name)));
            continue;
        };
        match value {
            toml::Value::String(text) => found.insert(setting.key, text),
            toml::Value::Integer(number) => found.insert(setting.key, number.to_string()),
            other => {
                problems.push(format!(
                    "{shown}: {name} is a {}: it must be {}, written as a string or a whole number",
                    other.type_str(),
                    setting.kind.allowed()
                ));
                continue;
            }
        };
    }
    found
}

/// The TOML key that is fewest edits away from `name`.
fn nearest(name: &str) -> String {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    let keys = SETTINGS.iter().map(Setting::toml_key);
    keys.min_by_key(|key| edit_distance(key, &lower)).unwrap_or_default()
}

/// Levenshtein distance, in bytes.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = file("batch_size = 3\nack = \"commit\"\nmax_body_mb = 7\n");
        let environment = |name: &str| match name {
            "BATCH_SIZE" => Some(OsString::from("2")),
            "ACK" => Some(OsString::from("memory")),
            _ => None,
        };
        let raw = Raw::gather(Sources {
            flags: BTreeMap::from([(Key::BatchSize, "1".to_owned())]),
            environment: Some(&environment),
            file: Some(file.path()),
            ..Sources::default()
        });
        assert_eq!(raw.problems, Vec::<String>::new());
        let seen = |key| (raw.get(key).text.clone().unwrap_or_default(), raw.get(key).origin.clone());
        assert_eq!(seen(Key::BatchSize), ("1".into(), Origin::Flag));
        assert_eq!(seen(Key::Ack), ("memory".into(), Origin::Environment));
        assert_eq!(seen(Key::MaxBodyMb), ("7".into(), Origin::File(file.path().to_owned())));
        assert_eq!(seen(Key::JournalMaxMb), ("4096".into(), Origin::Default));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_all_named() {
        let file = file("bach_size = 3\nworkers = true\n[ack]\nx = 1\n");
        let raw = Raw::gather(Sources { file: Some(file.path()), ..Sources::default() });
        let text = raw.problems.join("\n");
        assert!(text.contains("unknown setting 'bach_size'; did you mean 'batch_size'?"), "{text}");
        assert!(text.contains("workers is a boolean: it must be a whole number from 1 to 1024"), "{text}");
        assert!(text.contains("ack is a table: it must be one of memory, journal, commit"), "{text}");
        assert!(text.contains(&file.path().display().to_string()), "{text}");
    }

    #[test]
    fn a_file_that_is_not_toml_names_its_line() {
        let file = file("batch_size = 3\n\nack = =\n");
        let raw = Raw::gather(Sources { file: Some(file.path()), ..Sources::default() });
        assert!(raw.problems[0].contains(":3: not valid TOML"), "{:?}", raw.problems);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let raw = Raw::gather(Sources { file: Some(Path::new("/nowhere/x.toml")), ..Sources::default() });
        assert!(raw.problems[0].starts_with("--config /nowhere/x.toml: cannot be read"), "{:?}", raw.problems);
    }

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("batch_size", "bach_sizes"), 2);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
