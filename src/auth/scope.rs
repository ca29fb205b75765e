//! What a key may do.

use std::fmt;

/// One thing that a key may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Send batches.
    Ingest,
    /// Ask for the status of one's own batches.
    Read,
    /// Read metrics, and the figures of health.
    Metrics,
    /// Ask for the status of everybody's batches, list those that wait, retry and bury stuck ones, and read metrics; not to
    /// send batches.
    Admin,
}

impl Scope {
    /// Every scope, as `keys new` and the file name them.
    pub const ALL: [Self; 4] = [Self::Ingest, Self::Read, Self::Metrics, Self::Admin];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// The scope called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// What callers have where there are no keys.
    pub const ALL: Self = Self(0b1111);

    /// The set with `scope` in it.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | 1 << scope as u8)
    }

    /// Whether `scope` was given, by this name.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u8 != 0
    }

    /// Whether what `scope` allows is allowed: `admin` sees what `read` and `metrics` see.
    pub const fn allow(self, scope: Scope) -> bool {
        self.has(scope) || self.has(Scope::Admin) && !matches!(scope, Scope::Ingest)
    }

    /// True when nothing is allowed.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names, in [`Scope::ALL`]'s order.
    pub fn names(self) -> Vec<&'static str> {
        Scope::ALL.into_iter().filter(|scope| self.has(*scope)).map(Scope::name).collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_scopes_go_both_ways() {
        for scope in Scope::ALL {
            assert_eq!(Scope::named(scope.name()), Some(scope));
            assert!(Scopes::ALL.has(scope));
        }
        assert_eq!(Scope::named("write"), None);
    }

    #[test]
    fn an_admin_sees_everything_and_sends_nothing() {
        let admin = Scopes::default().with(Scope::Admin);
        assert!(admin.allow(Scope::Read) && admin.allow(Scope::Metrics) && admin.allow(Scope::Admin));
        assert!(!admin.allow(Scope::Ingest) && !admin.has(Scope::Read));
        let reader = Scopes::default().with(Scope::Read);
        assert!(reader.allow(Scope::Read) && !reader.allow(Scope::Admin) && !reader.allow(Scope::Metrics));
        assert_eq!(Scopes::ALL.to_string(), "ingest,read,metrics,admin");
    }
}
