//! The demo's four inputs, made from one real dataset: as it is, damaged in two ways that real pushes are, and corrected.
//!
//! Nothing is drawn at random: a row's fate follows from its key, so that every run tells the same figures.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord, WriterBuilder};

/// 28 298 airports, zstd-compressed CSV with a header; `demo/airports.LICENSE.txt` lies beside it.
const AIRPORTS: &[u8] = include_bytes!("../../../../demo/airports.csv.zst");

/// The key column.
pub(crate) const KEY: &str = "icao";

/// By how many rows the positions of the third input slipped.
const SLIPPED_ROWS: usize = 997;

/// The inputs of the four pushes, in order.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// As it is.
    pub(crate) sound: PathBuf,
    /// `tz` empty in about two of five rows, and a tenth of the rows missing: what an upstream job that died half-way leaves.
    pub(crate) damaged: PathBuf,
    /// Each airport has the position of another one: no count, null ratio, size or distribution differs.
    pub(crate) shifted: PathBuf,
    /// As it is, with some cities written out.
    pub(crate) corrected: PathBuf,
}

/// Writes the inputs into `folder`.
pub(crate) fn write(folder: &Path) -> io::Result<Inputs> {
    std::fs::create_dir_all(folder)?;
    let (header, rows) = read()?;
    let column = |name: &str| {
        header
            .iter()
            .position(|field| field == name)
            .ok_or_else(|| io::Error::other(format!("the dataset has no column {name}")))
    };
    let (key, zone, latitude, longitude, city) =
        (column(KEY)?, column("tz")?, column("lat")?, column("lon")?, column("city")?);

    let sound = folder.join("airports-1.csv.zst");
    std::fs::write(&sound, AIRPORTS)?;

    let damaged = rows.iter().filter(|row| !fate(&row[key]).is_multiple_of(10)).map(|row| {
        let empty = fate(&row[key]) % 13 < 5;
        with(row, |place, field| if place == zone && empty { "" } else { field })
    });
    let damaged = write_rows(folder, "airports-2.csv.zst", &header, damaged)?;

    // Rows that stand side by side are neighbours on the map too; a join that slipped goes further.
    let others = rows.iter().cycle().skip(SLIPPED_ROWS);
    let shifted = rows.iter().zip(others).map(|(row, other)| {
        StringRecord::from_iter(
            row.iter()
                .enumerate()
                .map(|(place, field)| if place == latitude || place == longitude { &other[place] } else { field }),
        )
    });
    let shifted = write_rows(folder, "airports-3.csv.zst", &header, shifted)?;

    let corrected =
        rows.iter().map(|row| {
            StringRecord::from_iter(
                row.iter().enumerate().map(|(place, field)| {
                    if place == city { field.replace("St. ", "Saint ") } else { field.to_owned() }
                }),
            )
        });
    let corrected = write_rows(folder, "airports-4.csv.zst", &header, corrected)?;
    Ok(Inputs { sound, damaged, shifted, corrected })
}

fn read() -> io::Result<(StringRecord, Vec<StringRecord>)> {
    let mut reader = ReaderBuilder::new().from_reader(zstd::Decoder::new(AIRPORTS)?);
    let header = reader.headers().map_err(io::Error::other)?.clone();
    let rows = reader.records().collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    Ok((header, rows))
}

fn with<'row>(row: &'row StringRecord, change: impl Fn(usize, &'row str) -> &'row str) -> StringRecord {
    StringRecord::from_iter(row.iter().enumerate().map(|(place, field)| change(place, field)))
}

fn write_rows(
    folder: &Path,
    name: &str,
    header: &StringRecord,
    rows: impl Iterator<Item = StringRecord>,
) -> io::Result<PathBuf> {
    let path = folder.join(name);
    let mut writer = WriterBuilder::new().from_writer(zstd::Encoder::new(File::create(&path)?, 3)?);
    writer.write_record(header).map_err(io::Error::other)?;
    for row in rows {
        writer.write_record(&row).map_err(io::Error::other)?;
    }
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))?.finish()?.sync_all()?;
    Ok(path)
}

/// A number that follows from a key alone (FNV-1a).
fn fate(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        >> 7
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(path: &Path) -> Vec<StringRecord> {
        let file = zstd::Decoder::new(File::open(path).unwrap()).unwrap();
        ReaderBuilder::new().from_reader(file).records().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_inputs_are_damaged_as_told() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = write(folder.path()).unwrap();
        let sound = rows_of(&inputs.sound);
        assert_eq!(sound.len(), 28_298);

        let damaged = rows_of(&inputs.damaged);
        assert!((25_000..26_000).contains(&damaged.len()), "{}", damaged.len());
        let empty = damaged.iter().filter(|row| row[9].is_empty()).count();
        assert!((damaged.len() * 3 / 10..damaged.len() / 2).contains(&empty), "{empty}");

        let shifted = rows_of(&inputs.shifted);
        assert_eq!(shifted.len(), sound.len());
        assert_eq!(shifted[1][7], sound[1 + SLIPPED_ROWS][7]);
        assert_eq!(shifted[1][0], sound[1][0]);

        let corrected = rows_of(&inputs.corrected);
        assert_eq!(corrected.len(), sound.len());
        let changed = corrected.iter().zip(&sound).filter(|(new, old)| new != old).count();
        assert!((10..5_000).contains(&changed), "{changed}");
    }
}
