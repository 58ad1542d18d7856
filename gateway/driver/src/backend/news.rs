//! What `openshell-rootfs --progress json` says while it works, as events of a sandbox.
//!
//! Invariant: a line that is not understood is passed over, and the number of events is bounded by the number of lines.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::ended::bounded;
use crate::events::{Event, Reason, progress};

/// How long nothing may be told while an image is made: the command that waits gives up after minutes of silence.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

/// Takes the news of a sandbox.
#[derive(Clone)]
pub struct News(Arc<dyn Fn(Event) + Send + Sync>);

impl fmt::Debug for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("News")
    }
}

impl News {
    /// News for `listener`, which must not block.
    pub fn new(listener: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    /// News for nobody.
    pub fn silent() -> Self {
        Self::new(drop)
    }

    /// Tells.
    pub fn tell(&self, event: Event) {
        (self.0)(event);
    }
}

/// A line of progress. Which keys it has says what it is.
#[derive(Debug, Deserialize)]
struct Line {
    phase: Option<String>,
    layer: Option<usize>,
    name: Option<String>,
    bytes: Option<u64>,
    done: Option<bool>,
    error: Option<String>,
    fix: Option<String>,
}

/// Follows the making of one image.
#[derive(Debug)]
pub(super) struct Pull {
    image: String,
    /// Who has it, as the client's events name that.
    source: &'static str,
    news: News,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    worked: bool,
    begun: usize,
    done: usize,
    error: Option<String>,
}

impl Pull {
    pub(super) fn new(image: &str, source: &'static str, news: News) -> Self {
        let image = bounded(image);
        news.tell(
            Event::new(Reason::ResolvingImage, format!("Resolving image {image}"))
                .active(progress::PULLING)
                .with("image_ref", &image),
        );
        Self { image, source, news, began: Instant::now(), state: Mutex::default() }
    }

    /// Follows a program that makes no image, for its failure only.
    pub(super) fn listener() -> Self {
        let (image, source, news) = (String::new(), "", News::silent());
        Self { image, source, news, began: Instant::now(), state: Mutex::default() }
    }

    /// Takes a line of the program's standard error.
    pub(super) fn line(&self, line: &str) {
        let Ok(line) = serde_json::from_str::<Line>(line) else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = line.error {
            let fix = line.fix.map(|fix| format!("; {fix}")).unwrap_or_default();
            state.error = Some(bounded(&format!("{error}{fix}")));
            return;
        }
        let event = match (line.phase.as_deref(), line.layer, line.done) {
            (Some(phase), ..) => self.phase(phase, &mut state),
            (_, Some(_), Some(true)) => {
                state.done += 1;
                Some(self.pulling(&state))
            }
            (_, Some(layer), _) => {
                state.begun += 1;
                Some(self.layer(layer, line.name.as_deref(), line.bytes))
            }
            _ => None,
        };
        drop(state);
        if let Some(event) = event {
            self.tell(event);
        }
    }

    /// Says that it still goes on.
    pub(super) fn heartbeat(&self) {
        let event = self.pulling(&self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.tell(event);
    }

    /// What the program said about its failure.
    pub(super) fn error(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).error.take()
    }

    /// Says that the image is there. Returns whether it was there before.
    pub(super) fn done(&self, identity: &str, bytes: u64) -> bool {
        let cached = !self.state.lock().unwrap_or_else(PoisonError::into_inner).worked;
        if cached {
            self.tell(Event::new(Reason::CacheHit, "The image is in the cache"));
        }
        self.tell(
            Event::new(Reason::Pulled, format!("Image {} is ready", self.image))
                .complete(progress::PULLING, "Image ready")
                .with(progress::ACTIVE_STEP, progress::STARTING)
                .with("cache_hit", cached.to_string())
                .with("image_identity", identity)
                .with("image_source", self.source)
                .with("image_size_bytes", bytes.to_string()),
        );
        cached
    }

    fn tell(&self, event: Event) {
        self.news.tell(event.with("image_ref", &self.image));
    }

    fn phase(&self, phase: &str, state: &mut State) -> Option<Event> {
        let (reason, message) = match phase {
            "waiting" => (Reason::WaitingForImageCacheLock, "Somebody else makes this image"),
            "layers" => (Reason::CacheMiss, "Reading the image's layers"),
            "merge" => (Reason::ExportingRootfs, "Laying the layers over each other"),
            "write" => (Reason::CreatingRootDisk, "Writing the root disk"),
            "verify" => (Reason::CreatingRootDisk, "Checking the root disk"),
            _ => return None,
        };
        state.worked = true;
        Some(Event::new(reason, message).active(progress::PULLING))
    }

    fn layer(&self, layer: usize, name: Option<&str>, bytes: Option<u64>) -> Event {
        let message = format!("Pulling layer {}", layer.saturating_add(1));
        let mut event = Event::new(Reason::PullingLayer, message).active(progress::PULLING);
        event = event.with("layer_index", layer.to_string());
        if let Some(name) = name {
            event = event.with("layer_digest", bounded(name));
        }
        match bytes {
            Some(bytes) => event.with("layer_size_bytes", bytes.to_string()),
            None => event,
        }
    }

    fn pulling(&self, state: &State) -> Event {
        let seconds = self.began.elapsed().as_secs();
        let message = format!("{} of {} layers, {seconds} s", state.done, state.begun);
        Event::new(Reason::Pulling, message).active(progress::PULLING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(lines: &[&str]) -> (Pull, Arc<Mutex<Vec<Event>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let news = News::new(move |event| list.lock().expect("no panic").push(event));
        let pull = Pull::new("x:1", "registry", news);
        for line in lines {
            pull.line(line);
        }
        (pull, told)
    }

    fn reasons(told: &Mutex<Vec<Event>>) -> Vec<&'static str> {
        told.lock().expect("no panic").iter().map(|event| event.reason.name()).collect()
    }

    #[test]
    fn the_making_of_an_image_is_told_step_by_step() {
        let (pull, told) = follow(&[
            r#"{"phase":"layers"}"#,
            r#"{"layer":0,"name":"sha256:ab","bytes":10}"#,
            r#"{"layer":0,"done":true,"cached":false}"#,
            r#"{"phase":"merge"}"#,
            r#"{"identity":"sha256:cd"}"#,
            r#"{"phase":"write"}"#,
            r#"{"phase":"publish"}"#,
            "not JSON",
        ]);
        assert!(!pull.done("sha256:cd", 4096));
        assert_eq!(
            reasons(&told),
            [
                "ResolvingImage",
                "CacheMiss",
                "PullingLayer",
                "Pulling",
                "ExportingRootfs",
                "CreatingRootDisk",
                "Pulled"
            ]
        );
        let told = told.lock().expect("no panic");
        assert!(told.iter().all(|event| event.metadata.contains_key(progress::ACTIVE_STEP)));
        assert!(told.iter().all(|event| event.metadata["image_ref"] == "x:1"));
        assert_eq!(told[2].metadata["layer_digest"], "sha256:ab");
        assert_eq!(told[2].metadata["layer_size_bytes"], "10");
    }

    #[test]
    fn an_image_in_the_cache_is_a_hit() {
        let (pull, told) = follow(&[]);
        assert!(pull.done("sha256:cd", 4096));
        assert_eq!(reasons(&told), ["ResolvingImage", "CacheHit", "Pulled"]);
        pull.heartbeat();
        assert_eq!(reasons(&told).len(), 4);
    }

    #[test]
    fn a_failure_is_kept_with_its_fix() {
        let (pull, _) = follow(&[r#"{"error":"no such image","fix":"check the name"}"#]);
        assert_eq!(pull.error().as_deref(), Some("no such image; check the name"));
        let (pull, _) = follow(&[r#"{"error":"no such image","fix":null}"#]);
        assert_eq!(pull.error().as_deref(), Some("no such image"));
    }
}
