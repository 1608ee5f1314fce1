-- The tables of format 1. Revisions, tokens and times (milliseconds since 1970) are bigint; numbers of hooks, slots and
-- sequences are integer. All names are of the schema that the search path names.

-- One row: the store itself. The head is the newest row of `changes`.
CREATE TABLE meta (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch        uuid NOT NULL,
    installation uuid NOT NULL,
    format       integer NOT NULL,
    compacted    bigint NOT NULL
);

-- One row: the highest token ever given out. Its lock puts joining, leaving, taking and releasing in one order.
CREATE TABLE tokens (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    counter  bigint NOT NULL
) WITH (fillfactor = 20);

-- One row: what `entities` stand for and add up to.
CREATE TABLE entities_mark (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    at       bigint NOT NULL,
    count    bigint NOT NULL,
    sum      bytea NOT NULL,
    seal     bytea NOT NULL,
    damaged  boolean NOT NULL DEFAULT false
) WITH (fillfactor = 20);

-- The log: one row per transaction, never updated. `hooks` names the hooks that it concerns.
CREATE TABLE changes (
    revision   bigint PRIMARY KEY,
    at         bigint NOT NULL,
    submission uuid NOT NULL,
    hooks      integer[],
    body       bytea NOT NULL
);

-- What was run, never updated.
CREATE TABLE receipts (
    hook      integer NOT NULL,
    revision  bigint NOT NULL,
    sequence  integer NOT NULL,
    slot_hook integer NOT NULL,
    slot      integer NOT NULL,
    token     bigint NOT NULL,
    outcome   smallint NOT NULL,
    PRIMARY KEY (hook, revision, sequence)
);

CREATE TABLE exceptions (
    hook      integer NOT NULL,
    revision  bigint NOT NULL,
    sequence  integer NOT NULL,
    slot_hook integer NOT NULL,
    slot      integer NOT NULL,
    state     text NOT NULL,
    attempts  integer NOT NULL,
    deaths    integer NOT NULL,
    error     bytea,
    path      text NOT NULL,
    change    bytea NOT NULL,
    PRIMARY KEY (hook, revision, sequence)
);
CREATE INDEX exceptions_by_slot ON exceptions (slot_hook, slot);

CREATE TABLE servers (
    id          uuid PRIMARY KEY,
    name        text NOT NULL,
    lease_until bigint NOT NULL,
    draining    boolean NOT NULL,
    applied     bigint NOT NULL,
    hooks       text NOT NULL,
    load        text NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE slots (
    hook      integer NOT NULL,
    slot      integer NOT NULL,
    owner     uuid,
    token     bigint NOT NULL,
    watermark bigint NOT NULL,
    PRIMARY KEY (hook, slot),
    -- Makes owner and token key columns: whatever changes one of them waits for every FOR KEY SHARE on the row, by
    -- which receipts and fenced commits hold on to their token. Raising a watermark does not.
    UNIQUE (hook, slot, token, owner)
) WITH (fillfactor = 50);

-- The state as of entities_mark.at, written behind: for starts, and for people to look at.
CREATE TABLE entities (
    path     text COLLATE "C" PRIMARY KEY,
    kind     text NOT NULL,
    revision bigint NOT NULL,
    format   integer NOT NULL,
    document json NOT NULL,
    digest   bytea NOT NULL
);

CREATE TABLE record_kinds (
    number   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     text NOT NULL UNIQUE,
    indexes  text NOT NULL,
    complete integer NOT NULL,
    grouped  boolean NOT NULL,
    -- Groups without a row in record_news have at most so many records; null if that is not known.
    pruned_to bigint
);

CREATE TABLE records (
    kind     integer NOT NULL,
    revision bigint NOT NULL,
    sequence integer NOT NULL,
    closed   boolean NOT NULL,
    at       bigint NOT NULL,
    format   integer NOT NULL,
    document text NOT NULL,
    keys     bytea NOT NULL,
    PRIMARY KEY (kind, revision, sequence)
);
CREATE INDEX records_by_age ON records (kind, at, revision, sequence);

-- One entry for each declared index of a record (from 0), and under -1 its group where a kind is counted by group.
CREATE TABLE record_index (
    kind     integer NOT NULL,
    number   integer NOT NULL,
    key      bytea NOT NULL,
    revision bigint NOT NULL,
    sequence integer NOT NULL,
    PRIMARY KEY (kind, number, key, revision, sequence)
);

-- Groups that got a record since they were last pruned. A commit only appends; pruning takes them out.
CREATE TABLE record_news (
    kind     integer NOT NULL,
    key      bytea NOT NULL,
    -- Of the commit, not of the record.
    revision bigint NOT NULL,
    PRIMARY KEY (kind, key, revision)
);
