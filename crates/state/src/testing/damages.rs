//! What may be done by hand to the entities that are written behind, as SQL that SQLite and PostgreSQL both take. None of it is
//! ever to be taken over by a start.

/// One damage, and how it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// For the messages of a test.
    pub what: &'static str,
    /// Does it; done again, it is there again.
    pub sql: String,
    /// Part of what a start says that is refused for it: the path, where a row is wrong by itself.
    pub named: String,
}

/// Keeps the table as it is, for the damage that puts it back later: by then more has to be written.
pub const DUMP: &str = "CREATE TABLE dump AS SELECT * FROM entities";

/// How a table is told to be wrong whose rows are right by themselves.
const WHOLE: &str = "the table as a whole";

/// The damages to a table that has an entity at `path`, changed or made after revision 1, and not this `document`. `mark` is the
/// table and the column of the revision that the entities stand for.
#[must_use]
pub fn damages(path: &str, document: &str, mark: (&str, &str)) -> Vec<Damage> {
    let (table, at) = mark;
    let added = format!("{path}9");
    let none = path.trim_start_matches('/');
    let damage = |what, sql: String, named: &str| Damage { what, sql, named: named.to_owned() };
    vec![
        damage("a row changed", format!("UPDATE entities SET document = '{document}' WHERE path = '{path}'"), path),
        damage(
            "a row's revision changed",
            format!("UPDATE entities SET revision = revision - 1 WHERE path = '{path}'"),
            path,
        ),
        damage("a row removed", format!("DELETE FROM entities WHERE path = '{path}'"), WHOLE),
        damage(
            "a row added",
            format!(
                "INSERT INTO entities SELECT '{added}', kind, revision, format, document, digest FROM entities
                 WHERE path = '{path}' ON CONFLICT DO NOTHING"
            ),
            &added,
        ),
        damage(
            "a row with a path that is none",
            format!("UPDATE entities SET path = '{none}' WHERE path = '{path}'"),
            none,
        ),
        damage(
            "rows put back from an old dump",
            "DELETE FROM entities; INSERT INTO entities SELECT * FROM dump".to_owned(),
            WHOLE,
        ),
        damage("the table emptied", "DELETE FROM entities".to_owned(), WHOLE),
        damage("its revision raised", format!("UPDATE {table} SET {at} = {at} + 1"), WHOLE),
        damage("its revision lowered", format!("UPDATE {table} SET {at} = {at} - 1"), WHOLE),
    ]
}
