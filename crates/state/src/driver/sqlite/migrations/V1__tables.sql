-- The tables of format 1. Revisions, tokens and times are integers; ids are 16-byte blobs.

-- One row: the store itself, and what `entities` stand for. The head is the newest row of `changes`.
CREATE TABLE meta (
    only_row         INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch            BLOB NOT NULL,
    installation     BLOB NOT NULL,
    token_counter    INTEGER NOT NULL,
    compacted        INTEGER NOT NULL,
    entities_at      INTEGER NOT NULL,
    entities_count   INTEGER NOT NULL,
    entities_sum     BLOB NOT NULL,
    entities_seal    BLOB NOT NULL,
    -- Raised by a write that has no other purpose than to follow one whose outcome was unknown.
    follow_ups       INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The log: one row per transaction. `hooks` names the hooks that it concerns, four bytes each, or is null.
CREATE TABLE changes (
    revision    INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    submission  BLOB NOT NULL,
    hooks       BLOB,
    body        BLOB NOT NULL
) STRICT;

CREATE TABLE receipts (
    hook      INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    sequence  INTEGER NOT NULL,
    slot_hook INTEGER NOT NULL,
    slot      INTEGER NOT NULL,
    token     INTEGER NOT NULL,
    outcome   INTEGER NOT NULL,
    PRIMARY KEY (hook, revision, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE exceptions (
    hook      INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    sequence  INTEGER NOT NULL,
    slot_hook INTEGER NOT NULL,
    slot      INTEGER NOT NULL,
    state     TEXT NOT NULL,
    attempts  INTEGER NOT NULL,
    deaths    INTEGER NOT NULL,
    error     TEXT,
    path      TEXT NOT NULL,
    change    BLOB NOT NULL,
    PRIMARY KEY (hook, revision, sequence)
) STRICT;
CREATE INDEX exceptions_by_slot ON exceptions (slot_hook, slot);

CREATE TABLE servers (
    id          BLOB PRIMARY KEY,
    name        TEXT NOT NULL,
    lease_until INTEGER NOT NULL,
    draining    INTEGER NOT NULL,
    applied     INTEGER NOT NULL,
    hooks       TEXT NOT NULL,
    load        TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE slots (
    hook      INTEGER NOT NULL,
    slot      INTEGER NOT NULL,
    owner     BLOB,
    token     INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    PRIMARY KEY (hook, slot)
) STRICT, WITHOUT ROWID;

-- The state as of meta.entities_at, written behind.
CREATE TABLE entities (
    path     TEXT PRIMARY KEY,
    kind     TEXT NOT NULL,
    revision INTEGER NOT NULL,
    format   INTEGER NOT NULL,
    document TEXT NOT NULL,
    digest   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE record_kinds (
    number   INTEGER PRIMARY KEY,
    kind     TEXT NOT NULL UNIQUE,
    indexes  TEXT NOT NULL,
    complete INTEGER NOT NULL,
    grouped  INTEGER NOT NULL
) STRICT;

CREATE TABLE records (
    id       INTEGER PRIMARY KEY,
    kind     INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    closed   INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    format   INTEGER NOT NULL,
    document TEXT NOT NULL,
    keys     BLOB NOT NULL,
    UNIQUE (kind, revision, sequence)
) STRICT;
CREATE INDEX records_by_age ON records (kind, at);

-- One entry for each declared index of a record (from 0), and under -1 its group where a kind is counted by group.
CREATE TABLE record_index (
    kind     INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    key      BLOB NOT NULL,
    revision INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (kind, number, key, revision, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE record_groups (
    kind    INTEGER NOT NULL,
    key     BLOB NOT NULL,
    records INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 1;
