//! The pool of blocking connections (r2d2), each with its prepared statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use postgres::types::Type;
use postgres::{Client, GenericClient, Statement, Transaction};
use r2d2::ManageConnection;

use crate::limits::{POOL_WAIT_MAX, RENEW_WAIT_MAX};
use crate::pg::copy::copy_statement;
use crate::pg::ledger;
use crate::pg::sqlstate::Fault;
use crate::pg::stage::Stage;
use crate::pg::watch::{Pulse, Waiting, Watch};
use crate::sharding::Sharding;

/// Pool of [`Session`]s.
pub type Pool = r2d2::Pool<SessionManager>;

/// Statements that every COPY needs.
#[derive(Clone)]
pub struct Statements {
    /// [`ledger::claim_statement`].
    pub claim: Statement,
    /// COPY into `events`.
    pub copy: Statement,
    /// Of the staging table, where it was asked for.
    pub stage: Option<Stage>,
}

impl Statements {
    fn prepare(client: &mut impl GenericClient, sharding: Sharding) -> Result<Self, postgres::Error> {
        Ok(Self {
            claim: client.prepare(&ledger::claim_statement(sharding))?,
            copy: client.prepare(&copy_statement("events", sharding))?,
            stage: None,
        })
    }
}

/// A connection and what was prepared on it.
pub struct Session {
    client: Client,
    pulse: Arc<Pulse>,
    watch: Arc<Watch>,
    sharding: Sharding,
    /// Where the backend is this session's own.
    statements: Option<Statements>,
    opened_at: Instant,
    discarded: bool,
}

impl Session {
    /// Has the connection watched while the value lives: what is done meanwhile is to wait for PostgreSQL.
    pub fn wait(&self) -> Waiting {
        self.pulse.wait()
    }

    /// What the watch knows of this connection.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// How the tables are laid out.
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// The bare connection.
    pub fn client(&mut self) -> &mut Client {
        self.pulse.parted();
        &mut self.client
    }

    /// Opens another connection in place of this one if PostgreSQL does not answer over it any more, or is out of step. After an
    /// error that comes before a COPY has begun the driver and PostgreSQL count their messages differently: each question is then
    /// answered by what was said to an earlier one, and a COMMIT may look as if it had succeeded.
    pub fn renew(&mut self) -> Result<(), Fault> {
        // The driver's own check takes any answer for its own, but it does not wait without end.
        if self.client().is_valid(RENEW_WAIT_MAX).is_ok() && self.is_in_step() {
            return Ok(());
        }
        (self.client, self.pulse) = self.watch.connect()?;
        (self.statements, self.opened_at) = (None, Instant::now());
        Ok(())
    }

    /// True when the answer to a question is its own.
    fn is_in_step(&mut self) -> bool {
        static NEXT: AtomicI64 = AtomicI64::new(1);
        // The number only has to differ; it orders nothing.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let answer = self.client.query_typed_one("SELECT $1::int8", &[(&number, Type::INT8)]);
        answer.is_ok_and(|row| row.try_get::<_, i64>(0).is_ok_and(|told| told == number))
    }

    /// Prepares what a COPY needs, once a connection. Nothing where a pooler lends the backend: see [`Self::begin`].
    pub fn prepare(&mut self) -> Result<(), Fault> {
        if self.statements.is_none() && !self.pulse.is_lent() {
            let _waiting = self.wait();
            self.statements = Some(Statements::prepare(&mut self.client, self.sharding)?);
        }
        Ok(())
    }

    /// Begins a transaction with the statements for it, those of the staging table too where `is_staged`; making that waits for a
    /// lock for `lock_wait` at most, `None`: for ever. The statements are dropped before the transaction ends: where a pooler lends
    /// the backend they were prepared for this transaction only.
    pub fn begin(
        &mut self,
        is_staged: bool,
        lock_wait: Option<Duration>,
    ) -> Result<(Transaction<'_>, Statements), Fault> {
        if !self.pulse.is_lent() {
            self.prepare()?;
            let statements = self.statements.as_mut().ok_or_else(|| Fault::lost("nothing is prepared"))?;
            if is_staged && statements.stage.is_none() {
                statements.stage = Some(Stage::prepare(&mut self.client, self.sharding, lock_wait)?);
            }
            return Ok((self.client.transaction()?, statements.clone()));
        }
        self.pulse.parted();
        let mut transaction = self.client.transaction()?;
        // It may have to wait for a lock from the next statement on.
        self.pulse.served_by(transaction.query_typed_one("SELECT pg_backend_pid()", &[])?.get(0));
        let mut statements = Statements::prepare(&mut transaction, self.sharding)?;
        if is_staged {
            statements.stage = Some(Stage::prepare_within(&mut transaction, self.sharding, lock_wait)?);
        }
        Ok((transaction, statements))
    }

    /// Has the statements prepared again before the next use: the tables have changed.
    pub fn forget_statements(&mut self) {
        self.statements = None;
    }

    /// When PostgreSQL accepted the connection.
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Has the pool close this connection: its state, or the tables that its statements were prepared for,
    /// cannot be trusted any more.
    pub fn discard(&mut self) {
        self.discarded = true;
    }
}

/// Makes [`Session`]s for r2d2.
pub struct SessionManager {
    watch: Arc<Watch>,
    sharding: Sharding,
}

impl ManageConnection for SessionManager {
    type Connection = Session;
    type Error = Fault;

    fn connect(&self) -> Result<Session, Fault> {
        let (client, pulse) = self.watch.connect()?;
        Ok(Session {
            client,
            pulse,
            watch: Arc::clone(&self.watch),
            sharding: self.sharding,
            statements: None,
            opened_at: Instant::now(),
            discarded: false,
        })
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), Fault> {
        Ok(session.client.is_valid(POOL_WAIT_MAX)?)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.discarded || session.client.is_closed()
    }
}

/// r2d2 reports failed connection attempts here; the flusher that waits logs the outcome once.
#[derive(Debug)]
struct QuietErrors;

impl r2d2::HandleError<Fault> for QuietErrors {
    fn handle_error(&self, fault: Fault) {
        tracing::debug!(%fault, "connection attempt to PostgreSQL failed");
    }
}

/// Opens the pool without waiting for a connection: the server starts while PostgreSQL is away.
pub fn open(watch: Arc<Watch>, sharding: Sharding, size_min: u32, size_max: u32) -> Pool {
    r2d2::Pool::builder()
        .min_idle(Some(size_min))
        .max_size(size_max)
        .connection_timeout(POOL_WAIT_MAX)
        .test_on_check_out(false)
        .idle_timeout(Some(Duration::from_secs(600)))
        .max_lifetime(Some(Duration::from_secs(3600)))
        .error_handler(Box::new(QuietErrors))
        .build_unchecked(SessionManager { watch, sharding })
}
