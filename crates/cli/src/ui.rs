//! What the terminal shows: progress bars, tables, colours. Nothing here is printed when `--json` is given.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Writes a line to standard output.
macro_rules! say {
    ($($argument:tt)*) => { $crate::ui::write_out(&format!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use say;

/// Writes to standard output. When nobody reads it any more, as in `assay receipts | head`, the program ends quietly.
pub(crate) fn write_out(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("standard output cannot be written: {error}");
        }
        std::process::exit(if error.kind() == std::io::ErrorKind::BrokenPipe { 0 } else { 2 });
    }
}

/// Prints a value as JSON on standard output, for scripts.
pub(crate) fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say!("{text}"),
        Err(error) => eprintln!("this result cannot be written as JSON: {error}"),
    }
}

/// A bar for work whose length is known, in bytes or in `unit`s.
pub(crate) fn bar(total: u64, what: &str, bytes: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = if bytes {
        "{msg:24} {wide_bar:.green/black.bright} {bytes:>10}/{total_bytes} {bytes_per_sec:>12} {eta:>4}"
    } else {
        "{msg:24} {wide_bar:.green/black.bright} {pos:>7}/{len} {eta:>4}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━━╌"));
    }
    bar.set_message(what.to_owned());
    bar
}

/// Does something under a bar, whose steps it tells: how many are done of how many. `bytes`: they are bytes.
pub(crate) fn with_bar<T>(what: &str, bytes: bool, work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    let bar = bar(1, what, bytes);
    let result = work(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result
}

/// A spinner for work whose length is not known.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner:.green} {msg} {elapsed:.dim}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A table with a header row, columns as wide as their widest cell; the first column is left-aligned. Without the last
/// line's end.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = header.iter().map(|cell| width(cell)).collect();
    for row in rows {
        for (have, cell) in widths.iter_mut().zip(row) {
            *have = (*have).max(width(cell));
        }
    }
    let mut lines = Vec::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::from("|");
        for (index, (cell, have)) in cells.zip(&widths).enumerate() {
            let pad = " ".repeat(have - width(cell));
            if index == 0 {
                text.push_str(&format!(" {cell}{pad} |"));
            } else {
                text.push_str(&format!(" {pad}{cell} |"));
            }
        }
        lines.push(text);
    };
    line(&mut header.iter().copied());
    let rules: Vec<String> = widths
        .iter()
        .enumerate()
        .map(
            |(index, have)| if index == 0 { "-".repeat(*have) } else { format!("{}:", "-".repeat(have - 1)) },
        )
        .collect();
    line(&mut rules.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    lines.join("\n")
}

/// Whether colours make sense: on a terminal, whichever of the two streams the text goes to.
fn coloured() -> bool {
    std::io::stdout().is_terminal()
        && std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none()
}

fn paint(code: &str, text: &str) -> String {
    if coloured() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

pub(crate) fn green(text: &str) -> String {
    paint("32", text)
}

pub(crate) fn red(text: &str) -> String {
    paint("31;1", text)
}

pub(crate) fn dim(text: &str) -> String {
    paint("2", text)
}

pub(crate) fn bold(text: &str) -> String {
    paint("1", text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text =
            super::table(&["name", "n"], &[vec!["a".into(), "10".into()], vec!["longer".into(), "7".into()]]);
        assert_eq!(text, "| name   |  n |\n| ------ | -: |\n| a      | 10 |\n| longer |  7 |");
    }
}
