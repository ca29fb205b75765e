//! How a command fails: what stderr says and which exit code follows.

use std::io;
use std::process::ExitCode;

use super::log::printable;
use crate::config::Problems;
use crate::pg::citus::layout::LayoutError;
use crate::pg::connect::{StartFault, classify_start_error};
use crate::pg::dead_letter::DeadLetterError;
use crate::pg::migrate::MigrateError;
use crate::pg::partitions::PartitionError;
use crate::pg::requirements::Lacks;
use crate::server::ServeError;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// Usage or configuration: exit code 2, a line each.
    Usage(Vec<String>),
    /// Anything else: exit code 1.
    Runtime(String),
    /// Everything was said already; only this exit code is left.
    Said(u8),
}

impl Failure {
    /// A single line about usage or configuration.
    pub(super) fn usage(line: impl Into<String>) -> Self {
        Self::Usage(vec![line.into()])
    }

    /// Anything else.
    pub(super) fn runtime(why: impl ToString) -> Self {
        Self::Runtime(why.to_string())
    }

    /// Says it on stderr and gives the exit code.
    pub(super) fn report(self) -> ExitCode {
        let (lines, code) = match self {
            Self::Usage(lines) => (lines, 2),
            Self::Runtime(why) => (vec![why], 1),
            Self::Said(code) => (Vec::new(), code),
        };
        for line in lines {
            // What PostgreSQL says may quote data.
            eprintln!("ingestd: {}", printable(&line));
        }
        ExitCode::from(code)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Usage(problems.0)
    }
}

impl From<StartFault> for Failure {
    fn from(fault: StartFault) -> Self {
        match fault {
            StartFault::Configuration(why) => Self::usage(why),
            StartFault::Transient(why) => Self::Runtime(why),
        }
    }
}

impl From<Lacks> for Failure {
    fn from(lacks: Lacks) -> Self {
        Self::Usage(lacks.lines())
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Lacks(lacks) => lacks.into(),
            other => other.into_start_fault().into(),
        }
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Postgres(error) => classify_start_error(&error).into(),
            LayoutError::Distributed | LayoutError::NotReady(_) => Self::usage(error.to_string()),
            LayoutError::Connect(fault) => fault.into(),
            other => Self::runtime(other),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Configuration(why) => Self::usage(why),
            ServeError::Lacks(lacks) => lacks.into(),
            ServeError::Failed(why) => Self::Runtime(why),
        }
    }
}

impl From<PartitionError> for Failure {
    fn from(error: PartitionError) -> Self {
        Self::runtime(error)
    }
}

impl From<DeadLetterError> for Failure {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Output(error) => error.into(),
            other => Self::runtime(other),
        }
    }
}

impl From<io::Error> for Failure {
    /// Output that nobody reads any more (`| head`) is no failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Said(0),
            _ => Self::Runtime(format!("cannot write the output: {error}")),
        }
    }
}

/// Help and version are printed; what clap refuses becomes one line.
pub(super) fn from_clap(error: &clap::Error) -> Result<(), Failure> {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(error.print()?),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.print()?;
            Err(Failure::Said(2))
        }
        _ => {
            let text = error.render().to_string();
            let said = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
            let said: Vec<_> = said.map(str::trim).filter(|line| !line.is_empty()).collect();
            let said = said.join("; ").replace(":; ", ": ");
            Err(Failure::usage(format!("{}; see --help", said.trim_start_matches("error: "))))
        }
    }
}
