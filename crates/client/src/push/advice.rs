//! What whoever pushes can do about input that can't be made into a version.

use tidegate_dataset::build::BuildError;
use tidegate_dataset::input::InputError;

const FORMATS: &str = "Read are CSV (.csv), tab-separated values (.tsv) and Parquet (.parquet, .pq), each also compressed \
                       (.gz, .zst).";

/// What to do about input that can't be read.
pub(super) fn about_input(error: &InputError) -> String {
    let text = match error {
        InputError::NothingNamed
        | InputError::NotFound { .. }
        | InputError::NoFiles { .. }
        | InputError::BadPattern { .. } => {
            "Name files that are there, folders of part files, or patterns such as 'data/part-*.csv.zst'."
        }
        InputError::NotAFile { .. } => "Write what it gives to a file, and push the file.",
        InputError::UnknownFormat { .. } => return format!("Convert it, or name other files. {FORMATS}"),
        InputError::MixedFormats { .. } => {
            return format!(
                "Name the files of one format, for instance by a pattern such as 'data/*.parquet', or convert the others. \
                 {FORMATS}"
            );
        }
        InputError::Read { .. } => "See that the file is there, whole and readable, and push again.",
        InputError::Parquet { .. } => "Write the file anew: it is cut, damaged, or no Parquet at all. Then push again.",
        InputError::Header { .. } => "Begin the file with a line of column names, each once, and push again.",
        InputError::TooManyFields { .. } => "Leave columns out, or put several into one list, and push again.",
        InputError::Columns { .. } => "Give all files the columns that are expected, and push again.",
        InputError::Cells { .. } => {
            "Give the row as many cells as the header has, with quotes around a cell that has the delimiter in it, and push \
             again."
        }
        InputError::OpenQuote { .. } => "Close the quote, or fetch the whole file anew, and push again.",
        InputError::NotUtf8 { .. } => "Write the file in UTF-8, and push again.",
        InputError::RowTooLong { .. } => "Shorten the row, or give the build more with --memory, and push again.",
        InputError::Value { .. } => "Mend the value, and push again.",
        InputError::Null { key: true, .. } => "Give every row its whole key, and push again.",
        InputError::Null { key: false, .. } => "Fill the value in, and push again.",
        InputError::ColumnType { expected, .. } => return format!("Write the column as {expected}, and push again."),
        InputError::UnsupportedType { .. } => "Write the column as another type, or leave it out, and push again.",
        InputError::Key { .. } => {
            "Push files with the store's key columns. The key of a store is fixed: for another one make another store."
        }
        InputError::Empty { .. } => return about_emptiness(),
        InputError::Disk { .. } => "Make room there, or see that the folder can be written, and push again.",
        InputError::Cancelled => "Push again.",
    };
    text.to_owned()
}

/// What to do about input that is empty.
pub(super) fn about_emptiness() -> String {
    "Push the data that was meant. If it is meant to be empty, push again with --allow-empty, or let the store allow it \
     (`tidegate store set STORE allow_empty=true`)."
        .to_owned()
}

/// What to do about input that no artifact can be built from.
pub(super) fn about_build(error: &BuildError) -> String {
    let text = match error {
        BuildError::Input(error) => return about_input(error),
        BuildError::Empty { .. } => return about_emptiness(),
        BuildError::Schema(_) => "Mend the columns, and push again.",
        BuildError::Option { .. } => "Give the build another amount with --memory, and push again.",
        BuildError::GoldenKey(_) => {
            "Name golden keys that are keys of this store (`tidegate store set STORE golden_keys='[…]'`), and push again."
        }
        BuildError::ValueTooLarge { .. } => {
            "Shorten the value, or raise the store's limit (`tidegate store set STORE limits.value_bytes=…`), and push again."
        }
        BuildError::RecordTooLarge { .. } => {
            "Shorten the record, or give the build more with --memory, and push again."
        }
        BuildError::KeyTooLong { .. } => "Shorten the key, and push again.",
        BuildError::DuplicateKeys { .. } => {
            "Leave one row of each key, and push again. If rows of one key are meant to differ, the key needs a further \
             column, and that another store."
        }
        BuildError::InputChanged { .. } => "Push again once nobody writes the files any more.",
        BuildError::Busy { .. } => "Wait until the other command has ended, and push again.",
        BuildError::Disk { .. } => "Make room there, or see that the folder can be written, and push again.",
        BuildError::Part { .. } => "Push again. If that ends in the same way, it is a fault of Tidegate's: report it.",
        BuildError::Cancelled => "Push again.",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_that_are_read_are_named_where_another_one_was_pushed() {
        let unknown = InputError::UnknownFormat { path: "a.jsonl".to_owned() };
        let mixed = InputError::MixedFormats { first: "a.csv".to_owned(), second: "b.parquet".to_owned() };
        for advice in [about_input(&unknown), about_build(&mixed.into())] {
            for format in [".csv", ".tsv", ".parquet", ".pq", ".gz", ".zst"] {
                assert!(advice.contains(format), "{format}: {advice}");
            }
        }
    }
}
