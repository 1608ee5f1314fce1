-- Format 2: the log and its receipts in blocks. A row for each was most of what a transaction and a receipt cost.
--
-- This adds only, and servers of the release before go on beside those of this one. As long as one of them is there, `meta`
-- says format 1, each transaction is a row of `changes`, and receipts are rows of `receipts`, which is all that those read.
-- The last one gone, `meta` says 2, and both are blocks. What is in `receipts` then goes with its requests.

-- From format 2 on a row may be a block: `body` then begins with byte 2 and has several transactions, whose last one's
-- revision, time and submission are the row's; `hooks` are those of all. Two blocks fill a page, uncompressed.
ALTER TABLE changes SET (toast_tuple_target = 4064);

CREATE TABLE receipt_blocks (
    hook           integer NOT NULL,
    -- Of its requests. At most 1 024 apart, so that the blocks that may have a request are few.
    first_revision bigint NOT NULL,
    last_revision  bigint NOT NULL,
    -- In order of arrival: of two receipts of one request the first one counts.
    id             bigint GENERATED ALWAYS AS IDENTITY,
    -- At most 64 receipts, each of them 29 bytes, all numbers big-endian: revision (8), sequence (4), hook (4) and number (4)
    -- of the slot, token (8), outcome (1).
    receipts       bytea NOT NULL,
    PRIMARY KEY (hook, last_revision, first_revision, id)
);
-- As it is: whole blocks are below what would be moved out of the table, and compressing them gains nothing.
ALTER TABLE receipt_blocks ALTER COLUMN receipts SET STORAGE EXTERNAL;

-- What was run, a row for each, wherever it is stored, for people. One that was stored again since its answer was lost is
-- there once, and what a compaction has passed is left out of a block that it has not. (A migration that changes what it reads
-- has to drop it first.)
CREATE VIEW stored_receipts AS
    SELECT DISTINCT ON (hook, revision, sequence, token) hook, revision, sequence, slot_hook, slot, token, outcome
    FROM (
        SELECT hook, revision, sequence, slot_hook, slot, token, outcome, 0::bigint AS id, 0 AS at FROM receipts
        UNION ALL
        SELECT entry.hook, entry.revision, entry.sequence, entry.slot_hook, entry.slot, entry.token, entry.outcome, entry.id,
               entry.at
        FROM (
            SELECT b.hook, b.last_revision, b.id, at,
                   ('x' || encode(substr(b.receipts, at + 1, 8), 'hex'))::bit(64)::bigint AS revision,
                   ('x' || encode(substr(b.receipts, at + 9, 4), 'hex'))::bit(32)::integer AS sequence,
                   ('x' || encode(substr(b.receipts, at + 13, 4), 'hex'))::bit(32)::integer AS slot_hook,
                   ('x' || encode(substr(b.receipts, at + 17, 4), 'hex'))::bit(32)::integer AS slot,
                   ('x' || encode(substr(b.receipts, at + 21, 8), 'hex'))::bit(64)::bigint AS token,
                   get_byte(b.receipts, at + 28)::smallint AS outcome
            FROM receipt_blocks b CROSS JOIN LATERAL generate_series(0, length(b.receipts) - 29, 29) AS at
        ) AS entry
        CROSS JOIN meta
        WHERE entry.last_revision <= meta.compacted OR entry.revision > meta.compacted
    ) AS stored
    ORDER BY hook, revision, sequence, token, id, at;

-- The newest format that a server knows; one without a row knows format 1. A table of its own: adding a column to `servers`
-- would wait for whoever reads there, and heartbeats would wait behind it.
CREATE TABLE server_formats (
    server uuid PRIMARY KEY,
    format integer NOT NULL
);
