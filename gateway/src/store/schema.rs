//! The tables, and how those of earlier releases become those of this one.
//!
//! Invariant: a migration that has been released is never changed. The library remembers the checksum of each that it has run, and refuses
//! a database that has seen others.

use std::borrow::Cow;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Number, name, and the statements for SQLite and Postgres.
const MIGRATIONS: [(i64, &str, &str, &str); 1] = [(
    1,
    "objects",
    "CREATE TABLE objects (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        name TEXT NOT NULL,
        version BIGINT NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (kind, id),
        UNIQUE (kind, workspace, name)
    ) WITHOUT ROWID",
    "CREATE TABLE objects (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        name TEXT NOT NULL,
        version BIGINT NOT NULL,
        payload BYTEA NOT NULL,
        PRIMARY KEY (kind, id),
        UNIQUE (kind, workspace, name)
    )",
)];

pub(super) fn sqlite() -> Migrator {
    migrator(|(_, _, sqlite, _)| sqlite)
}

pub(super) fn postgres() -> Migrator {
    migrator(|(_, _, _, postgres)| postgres)
}

fn migrator(
    statements: fn((i64, &'static str, &'static str, &'static str)) -> &'static str,
) -> Migrator {
    let migrations = MIGRATIONS.map(|migration| {
        let (number, name, ..) = migration;
        let sql = statements(migration).into_sql_str();
        Migration::new(number, Cow::Borrowed(name), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.to_vec())
}
