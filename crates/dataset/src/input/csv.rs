//! CSV: cells of one row at a time, within bounded memory.

use csv_core::ReadRecordResult;

use super::source::Source;
use super::{InputError, InputFile, Place, display};

const BUFFER_BYTES: usize = 64 * 1024;

/// The most columns that a dataset may have.
pub(crate) const FIELDS_MAX: usize = 1024;

/// Reads the rows of one CSV file. Cells are as they were written, without their quotes; a cell
/// in quotes is not told from one without.
pub(crate) struct CsvReader {
    source: Source,
    path: String,
    parser: csv_core::Reader,
    buffer: Vec<u8>,
    position: usize,
    filled: usize,
    cells: Vec<u8>,
    ends: Vec<usize>,
    row_bytes_max: usize,
    row: u64,
    header: Vec<String>,
}

/// One row: its cells and where it stands.
pub(crate) struct CsvRow<'a> {
    cells: &'a [u8],
    ends: &'a [usize],
    pub(crate) row: u64,
    pub(crate) line: u64,
}

impl<'a> CsvRow<'a> {
    #[inline]
    pub(crate) fn cell(&self, column: usize) -> &'a [u8] {
        let start = if column == 0 { 0 } else { self.ends[column - 1] };
        &self.cells[start..self.ends[column]]
    }
}

enum Read {
    End,
    /// A row of so many cells that begins on this line.
    Row(usize, u64),
}

impl CsvReader {
    /// Opens a file and reads its header, which is empty if the file has no byte of data.
    pub(crate) fn open(file: &InputFile, delimiter: u8, row_bytes_max: usize) -> Result<Self, InputError> {
        let mut reader = Self {
            source: Source::open(file)?,
            path: display(&file.path),
            parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            buffer: vec![0; BUFFER_BYTES],
            position: 0,
            filled: 0,
            cells: vec![0; row_bytes_max.min(4096)],
            ends: vec![0; 64],
            row_bytes_max,
            row: 0,
            header: Vec::new(),
        };
        if let Read::Row(cells, _) = reader.read()? {
            reader.header = reader.parse_header(cells)?;
        }
        Ok(reader)
    }

    fn parse_header(&self, cells: usize) -> Result<Vec<String>, InputError> {
        let refuse = |why: String| InputError::Header { path: self.path.clone(), why };
        if cells > FIELDS_MAX {
            return Err(InputError::TooManyFields { path: self.path.clone(), fields: cells, limit: FIELDS_MAX });
        }
        let row = CsvRow { cells: &self.cells, ends: &self.ends[..cells], row: 0, line: 1 };
        let mut names: Vec<String> = Vec::with_capacity(cells);
        for column in 0..cells {
            let name = std::str::from_utf8(row.cell(column))
                .map_err(|_| refuse(format!("the name of column {} is not UTF-8", column + 1)))?;
            if name.is_empty() {
                return Err(refuse(format!("column {} has no name", column + 1)));
            }
            if names.iter().any(|known| known == name) {
                return Err(refuse(format!("two columns are called `{name}`")));
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }

    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    /// How many bytes of the file have been read.
    pub(crate) fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    /// The SHA-256 of the file, once all rows have been read.
    pub(crate) fn finish(self) -> Result<[u8; 32], InputError> {
        self.source.finish()
    }

    /// The next row; it has exactly as many cells as the header.
    pub(crate) fn next(&mut self) -> Result<Option<CsvRow<'_>>, InputError> {
        self.row += 1;
        match self.read()? {
            Read::End => Ok(None),
            Read::Row(cells, line) if cells == self.header.len() => {
                Ok(Some(CsvRow { cells: &self.cells, ends: &self.ends[..cells], row: self.row, line }))
            }
            Read::Row(cells, line) => {
                Err(InputError::Cells { place: self.place(line), cells, columns: self.header.len() })
            }
        }
    }

    fn place(&self, line: u64) -> Place {
        Place { file: self.path.clone(), row: self.row, line: Some(line) }
    }

    fn refill(&mut self) -> Result<bool, InputError> {
        if self.position == self.filled {
            self.filled = self.source.fill(&mut self.buffer)?;
            self.position = 0;
        }
        Ok(self.filled > 0)
    }

    /// Passes over line ends before a row, so that the row's line is that of its first byte.
    fn skip_line_ends(&mut self) -> Result<(), InputError> {
        while self.refill()? {
            let rest = &self.buffer[self.position..self.filled];
            let ends = rest.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
            let lines = rest[..ends].iter().filter(|byte| **byte == b'\n').count();
            self.parser.set_line(self.parser.line() + lines as u64);
            self.position += ends;
            if self.position < self.filled {
                break;
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Read, InputError> {
        self.skip_line_ends()?;
        let line = self.parser.line();
        let (mut cell_bytes, mut cells) = (0, 0);
        loop {
            let at_end = !self.refill()?;
            // The end of the file ends the last row as a line end would; but if that is data to
            // the parser, then a quoted cell is open.
            let input = if at_end { b"\n".as_slice() } else { &self.buffer[self.position..self.filled] };
            let (result, read, written, ended) =
                self.parser.read_record(input, &mut self.cells[cell_bytes..], &mut self.ends[cells..]);
            if at_end && matches!(result, ReadRecordResult::InputEmpty) {
                if written == 0 {
                    return Ok(Read::End);
                }
                return Err(InputError::OpenQuote { place: self.place(line) });
            }
            let read = if at_end { 0 } else { read };
            self.position += read;
            cell_bytes += written;
            cells += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => {
                    let larger = (self.cells.len() * 2).min(self.row_bytes_max);
                    if larger == self.cells.len() {
                        return Err(InputError::RowTooLong { place: self.place(line), limit: self.row_bytes_max });
                    }
                    self.cells.resize(larger, 0);
                }
                ReadRecordResult::OutputEndsFull => {
                    if self.ends.len() > 2 * FIELDS_MAX {
                        if self.header.is_empty() {
                            let path = self.path.clone();
                            return Err(InputError::TooManyFields { path, fields: cells, limit: FIELDS_MAX });
                        }
                        return Err(InputError::Cells { place: self.place(line), cells, columns: self.header.len() });
                    }
                    self.ends.resize(self.ends.len() * 2, 0);
                }
                ReadRecordResult::Record => return Ok(Read::Row(cells, line)),
                ReadRecordResult::End => return Ok(Read::End),
            }
        }
    }
}
