//! Rows: typed messages with a version, in SQLite or Postgres.
//!
//! A row is a protobuf message beside what it is found by: kind, id, workspace and name. Writes name the state that they expect: no row,
//! or a version. SQLite is embedded, with a write-ahead log; Postgres is reached by URL. Both run the same statements.
//!
//! Invariant: a version is written once. Of two writers that have read the same version, one gets [`StoreError::Conflict`].

mod object;
mod schema;

#[cfg(test)]
mod tests;

use std::os::unix::fs::OpenOptionsExt as _;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub use object::{Object, Scope, Selector, SelectorError};

/// How often a write is tried again because somebody else was faster.
const ATTEMPTS: usize = 32;
/// How long a statement waits for a connection or a lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No row of this id or name.
    MustCreate,
    /// The row in this version.
    MatchResourceVersion(u64),
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no database that is known here.
    #[error("database URL `{0}` is neither sqlite: nor postgres:")]
    Url(String),
    /// The database cannot be opened.
    #[error("database cannot be opened")]
    Open(#[source] sqlx::Error),
    /// The file of the database cannot be made.
    #[error("database file cannot be made")]
    File(#[source] std::io::Error),
    /// The tables cannot be brought up to date.
    #[error("database schema cannot be migrated")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("database statement failed")]
    Statement(#[source] sqlx::Error),
    /// There is a row of this id or name.
    #[error("{kind} `{name}` exists already")]
    Exists {
        /// What it would have been.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no such row.
    #[error("{kind} `{id}` does not exist")]
    Missing {
        /// What was looked for.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The row is in another version.
    #[error("{kind} `{id}` has been changed by somebody else")]
    Conflict {
        /// What it is.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The message lacks its metadata or an id.
    #[error("{kind} without an id")]
    NoId {
        /// What it is.
        kind: &'static str,
    },
    /// The bytes of a row are not a message of its kind.
    #[error("{kind} `{id}` cannot be decoded")]
    Decode {
        /// What it is.
        kind: &'static str,
        /// Its id.
        id: String,
        /// Why not.
        #[source]
        source: prost::DecodeError,
    },
    /// A version that no database can hold.
    #[error("version {0} is out of range")]
    Version(u64),
}

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The same statement on either database.
macro_rules! on {
    ($store:expr, $pool:ident => $statement:expr) => {
        match &$store.pool {
            Pool::Sqlite($pool) => $statement.map_err(StoreError::Statement),
            Pool::Postgres($pool) => $statement.map_err(StoreError::Statement),
        }
    };
}

const INSERT: &str = "INSERT INTO objects (kind, id, workspace, name, version, payload) \
     VALUES ($1, $2, $3, $4, 1, $5)";
const UPDATE: &str = "UPDATE objects SET workspace = $3, name = $4, payload = $5, \
     version = version + 1 WHERE kind = $1 AND id = $2 AND version = $6";
const BY_ID: &str = "SELECT id, version, payload FROM objects WHERE kind = $1 AND id = $2";
const BY_NAME: &str = "SELECT id, version, payload FROM objects \
     WHERE kind = $1 AND workspace = $2 AND name = $3";
const LIST: &str = "SELECT id, version, payload FROM objects WHERE kind = $1 AND \
     ($2 = '' OR workspace = $2)";
const DELETE: &str = "DELETE FROM objects WHERE kind = $1 AND id = $2";

type Row = (String, i64, Vec<u8>);

impl Store {
    /// Opens the database and brings its tables up to date.
    ///
    /// `sqlite:FILE` (made with mode 0600 where it is missing), `sqlite::memory:` or `postgres://...`.
    ///
    /// # Errors
    ///
    /// Those of opening and migrating. A database of a later release is refused.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let pool = if url.starts_with("sqlite:") {
            Pool::Sqlite(sqlite(url).await?)
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgPoolOptions::new().max_connections(16).acquire_timeout(PATIENCE);
            Pool::Postgres(options.connect(url).await.map_err(StoreError::Open)?)
        } else {
            // The rest may hold a password.
            let scheme = url.split(':').next().unwrap_or_default();
            return Err(StoreError::Url(scheme.to_owned()));
        };
        match &pool {
            Pool::Sqlite(pool) => schema::sqlite().run(pool).await,
            Pool::Postgres(pool) => schema::postgres().run(pool).await,
        }
        .map_err(StoreError::Migrate)?;
        Ok(Self { pool })
    }

    /// Writes a row if the condition holds, and returns its new version. The version in the message is not looked at.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`], [`StoreError::Conflict`] or [`StoreError::Missing`] where the condition does not hold.
    pub async fn put_if<T: Object>(
        &self,
        object: &T,
        condition: Condition,
    ) -> Result<u64, StoreError> {
        let kind = T::KIND;
        let meta = object.meta().filter(|meta| !meta.id.is_empty());
        let Some(meta) = meta else { return Err(StoreError::NoId { kind }) };
        let payload = object.encode_to_vec();
        match condition {
            Condition::MustCreate => {
                let inserted = on!(self, pool => sqlx::query(INSERT).bind(kind).bind(&meta.id)
                    .bind(&meta.workspace).bind(&meta.name).bind(&payload)
                    .execute(pool).await.map(|_| ()));
                match inserted {
                    Ok(()) => Ok(1),
                    Err(error) if is_unique(&error) => {
                        Err(StoreError::Exists { kind, name: meta.name.clone() })
                    }
                    Err(error) => Err(error),
                }
            }
            Condition::MatchResourceVersion(version) => {
                let expected = i64::try_from(version).map_err(|_| StoreError::Version(version))?;
                let changed = on!(self, pool => sqlx::query(UPDATE).bind(kind).bind(&meta.id)
                    .bind(&meta.workspace).bind(&meta.name).bind(&payload).bind(expected)
                    .execute(pool).await.map(|done| done.rows_affected()));
                match changed {
                    Ok(0) if self.fetch::<T>(&meta.id).await?.is_some() => {
                        Err(StoreError::Conflict { kind, id: meta.id.clone() })
                    }
                    Ok(0) => Err(StoreError::Missing { kind, id: meta.id.clone() }),
                    Ok(_) => Ok(version + 1),
                    Err(error) if is_unique(&error) => {
                        Err(StoreError::Exists { kind, name: meta.name.clone() })
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Reads a row, lets `change` say what it is to be, and writes that, again and again until nobody was faster. Returns the row as it is
    /// then, and whether it was written; `None` where there is no row.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] after 32 attempts, and those of the database.
    pub async fn update_message_cas<T: Object>(
        &self,
        id: &str,
        mut change: impl FnMut(&T) -> Option<T> + Send,
    ) -> Result<Option<(T, bool)>, StoreError> {
        for _ in 0..ATTEMPTS {
            let Some(row) = self.fetch::<T>(id).await? else { return Ok(None) };
            let Some(mut next) = change(&row) else { return Ok(Some((row, false))) };
            let version = row.meta().map_or(0, |meta| meta.resource_version);
            match self.put_if(&next, Condition::MatchResourceVersion(version)).await {
                Ok(version) => {
                    next.meta_mut().resource_version = version;
                    return Ok(Some((next, true)));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(StoreError::Missing { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict { kind: T::KIND, id: id.to_owned() })
    }

    /// A row by its id.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn fetch<T: Object>(&self, id: &str) -> Result<Option<T>, StoreError> {
        let row: Option<Row> = on!(self, pool =>
            sqlx::query_as(BY_ID).bind(T::KIND).bind(id).fetch_optional(pool).await)?;
        row.map(decode).transpose()
    }

    /// A row by its name in a workspace.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn fetch_by_name<T: Object>(
        &self,
        workspace: &str,
        name: &str,
    ) -> Result<Option<T>, StoreError> {
        let row: Option<Row> = on!(self, pool => sqlx::query_as(BY_NAME)
            .bind(T::KIND).bind(workspace).bind(name).fetch_optional(pool).await)?;
        row.map(decode).transpose()
    }

    /// Rows in the order of workspace and name, of one workspace or (`None`) of all.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn list<T: Object>(
        &self,
        workspace: Option<&str>,
        selector: &Selector,
    ) -> Result<Vec<T>, StoreError> {
        let rows: Vec<Row> = on!(self, pool => sqlx::query_as(LIST)
            .bind(T::KIND).bind(workspace.unwrap_or_default()).fetch_all(pool).await)?;
        let mut objects = Vec::with_capacity(rows.len());
        for row in rows {
            let object: T = decode(row)?;
            if object.meta().is_some_and(|meta| selector.matches(&meta.labels)) {
                objects.push(object);
            }
        }
        // Not by the database: each has an order of letters of its own.
        objects.sort_by(|one, other| place(one).cmp(&place(other)));
        Ok(objects)
    }

    /// Deletes a row, and says whether it was there.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn delete<T: Object>(&self, id: &str) -> Result<bool, StoreError> {
        on!(self, pool => sqlx::query(DELETE).bind(T::KIND).bind(id)
            .execute(pool).await.map(|done| done.rows_affected() > 0))
    }

    /// Whether the database answers.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        on!(self, pool => sqlx::query("SELECT 1").execute(pool).await.map(|_| ()))
    }

    /// Closes the connections, once what is under way has ended.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

fn place<T: Object>(object: &T) -> Option<(&str, &str, &str)> {
    object.meta().map(|meta| (meta.workspace.as_str(), meta.name.as_str(), meta.id.as_str()))
}

async fn sqlite(url: &str) -> Result<SqlitePool, StoreError> {
    let options = SqliteConnectOptions::from_str(url).map_err(StoreError::Open)?;
    let in_memory = url.contains(":memory:") || url.contains("mode=memory");
    if !in_memory {
        // Rows hold the environment of sandboxes: nobody else's business.
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(options.get_filename())
            .map_err(StoreError::File)?;
    }
    let options = options
        .create_if_missing(true)
        .busy_timeout(PATIENCE)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let pool = SqlitePoolOptions::new()
        // A database in memory lives in its one connection.
        .max_connections(if in_memory { 1 } else { 4 })
        // No connection is opened in advance: it would race with the first one for the lock that turning to WAL takes, for which
        // SQLite does not wait.
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(PATIENCE);
    pool.connect_with(options).await.map_err(StoreError::Open)
}

fn decode<T: Object>((id, version, payload): Row) -> Result<T, StoreError> {
    let mut object = T::decode(payload.as_slice()).map_err(|source| StoreError::Decode {
        kind: T::KIND,
        id,
        source,
    })?;
    object.meta_mut().resource_version = u64::try_from(version).unwrap_or_default();
    Ok(object)
}

fn is_unique(error: &StoreError) -> bool {
    matches!(error, StoreError::Statement(sqlx::Error::Database(e)) if e.is_unique_violation())
}
