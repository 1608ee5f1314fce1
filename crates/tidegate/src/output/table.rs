//! Aligned columns for people.

use super::{Paint, Style, plain};

/// A table with a heading; the last column is not padded.
pub(crate) fn render(style: Style, heading: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell).replace('\n', " ")).collect()).collect();
    let mut widths: Vec<usize> = heading.iter().map(|title| title.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (place, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            line.push_str(cell);
            if place + 1 < cells.len() {
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
        }
        line.trim_end().to_owned()
    };
    let titles: Vec<String> = heading.iter().map(|title| (*title).to_uppercase()).collect();
    let mut text = style.paint(Paint::Quiet, &line(&titles));
    for row in &rows {
        text.push('\n');
        text.push_str(&line(row));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["airports".to_owned(), "1".to_owned()], vec!["b".to_owned(), "22\u{7}".to_owned()]];
        let text = render(Style::PLAIN, &["store", "version"], &rows);
        assert_eq!(text, "STORE     VERSION\nairports  1\nb         22\\u{7}\n");
    }
}
