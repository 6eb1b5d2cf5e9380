//! What a verb shows while it works: a bar on a terminal, a line now and then elsewhere.
//!
//! Everything is drawn by the caller's thread when it reports; the bar has no thread that ticks.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::say;

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Progress {
    doing: String,
    bar: ProgressBar,
    has_bar: bool,
    last_line: Instant,
}

impl Progress {
    /// Shows nothing before the first report. `doing` is what is being done, and to what.
    pub(super) fn new(doing: String) -> Self {
        let has_bar = io::stderr().is_terminal();
        let target = if has_bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { doing, bar, has_bar, last_line: Instant::now() }
    }

    /// Says how far the work is: bytes that are done, of all bytes where they are known, and what else there is to
    /// say.
    pub(super) fn report(&mut self, done_bytes: u64, total_bytes: Option<u64>, more: &str) {
        if self.has_bar {
            self.draw(done_bytes, total_bytes, more);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let of_all = total_bytes.map(|total| format!(" of {}", HumanBytes(total))).unwrap_or_default();
            say(&format!("{}: {}{of_all}{more}", self.doing, HumanBytes(done_bytes)));
        }
    }

    /// Says how far work is that has no end to count up to.
    pub(super) fn note(&mut self, text: &str) {
        if self.has_bar {
            if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg}") {
                self.bar.set_style(style);
            }
            self.bar.set_prefix(self.doing.clone());
            self.bar.set_message(text.to_owned());
            self.bar.tick();
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            say(&format!("{}: {text}", self.doing));
        }
    }

    fn draw(&self, done_bytes: u64, total_bytes: Option<u64>, more: &str) {
        if self.bar.length() != total_bytes || self.bar.position() == 0 {
            let template = match total_bytes {
                Some(_) => "{prefix} [{bar:30}] {bytes}/{total_bytes}{msg}",
                None => "{prefix} {bytes}{msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_prefix(self.doing.clone());
            if let Some(total) = total_bytes {
                self.bar.set_length(total);
            }
        }
        self.bar.set_message(more.to_owned());
        self.bar.set_position(done_bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
