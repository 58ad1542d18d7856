//! Progress on the standard error: bars on a terminal, lines elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use openshell_rootfs::digest::Digest;
use openshell_rootfs::progress::{Phase, Progress, Silent};
use serde_json::json;

use super::args::{Global, ProgressKind};

/// Where progress goes, as the arguments and the terminal have it.
pub(crate) fn progress(global: &Global) -> Box<dyn Progress> {
    let terminal =
        || io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    match global.progress {
        ProgressKind::None => Box::new(Silent),
        ProgressKind::Auto if global.json => Box::new(Silent),
        ProgressKind::Auto if terminal() => Box::new(Bars::new()),
        ProgressKind::Tty => Box::new(Bars::new()),
        ProgressKind::Auto | ProgressKind::Plain => Box::new(Lines::new(false)),
        ProgressKind::Json => Box::new(Lines::new(true)),
    }
}

struct Bars {
    all: MultiProgress,
    phase: ProgressBar,
    layers: Mutex<Vec<(usize, ProgressBar)>>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let phase = all.add(ProgressBar::new_spinner());
        phase.enable_steady_tick(Duration::from_millis(120));
        Self { all, phase, layers: Mutex::new(Vec::new()) }
    }

    fn with(&self, layer: usize, act: impl FnOnce(&ProgressBar)) {
        if let Ok(layers) = self.layers.lock()
            && let Some((_, bar)) = layers.iter().find(|(at, _)| *at == layer)
        {
            act(bar);
        }
    }
}

impl Progress for Bars {
    fn phase(&self, phase: Phase) {
        self.phase.set_message(phase.name());
        if phase == Phase::Publish {
            self.phase.finish_and_clear();
        }
    }

    fn layer_started(&self, layer: usize, name: &str, bytes: Option<u64>) {
        let template = "{prefix:20} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = self.all.add(ProgressBar::new(bytes.unwrap_or(0)).with_style(style));
        bar.set_prefix(short(name));
        if let Ok(mut layers) = self.layers.lock() {
            layers.push((layer, bar));
        }
    }

    fn layer_bytes(&self, layer: usize, bytes: u64) {
        self.with(layer, |bar| bar.inc(bytes));
    }

    fn layer_done(&self, layer: usize, _cached: bool) {
        self.with(layer, ProgressBar::finish_and_clear);
    }

    fn leader(&self, news: &str) {
        self.phase.set_message(format!("another process makes this image: {news}"));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.phase.finish_and_clear();
    }
}

/// One line for each step, none for bytes.
struct Lines {
    json: bool,
    last: Mutex<Option<Phase>>,
    /// What was last heard of who makes the image.
    news: Mutex<String>,
}

impl Lines {
    fn new(json: bool) -> Self {
        Self { json, last: Mutex::new(None), news: Mutex::new(String::new()) }
    }

    fn line(&self, text: &str, value: &serde_json::Value) {
        // Nobody who listens is no reason to stop.
        drop(if self.json {
            writeln!(io::stderr(), "{value}")
        } else {
            writeln!(io::stderr(), "{text}")
        });
    }
}

impl Progress for Lines {
    fn phase(&self, phase: Phase) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.replace(phase) != Some(phase) {
            self.line(phase.name(), &json!({ "phase": phase.name() }));
        }
    }

    fn layer_started(&self, layer: usize, name: &str, bytes: Option<u64>) {
        let size = bytes.map(|bytes| format!(", {}", super::output::bytes(bytes)));
        let text =
            format!("layer {} begins: {}{}", layer + 1, short(name), size.unwrap_or_default());
        self.line(&text, &json!({ "layer": layer, "name": name, "bytes": bytes }));
    }

    fn layer_done(&self, layer: usize, cached: bool) {
        let how = if cached { "was unpacked before" } else { "is unpacked" };
        let value = json!({ "layer": layer, "done": true, "cached": cached });
        self.line(&format!("layer {} {how}", layer + 1), &value);
    }

    fn leader(&self, news: &str) {
        let Ok(mut last) = self.news.lock() else { return };
        if *last != news {
            news.clone_into(&mut last);
            let text = format!("another process makes this image: {news}");
            self.line(&text, &json!({ "leader": news }));
        }
    }

    fn identified(&self, identity: &Digest) {
        self.line(&format!("image {identity}"), &json!({ "identity": identity }));
    }
}

/// A digest without most of its digits.
fn short(name: &str) -> String {
    match name.split_once(':') {
        Some((_, hex)) if hex.len() >= 64 => hex.chars().take(12).collect(),
        _ => name.chars().take(60).collect(),
    }
}
