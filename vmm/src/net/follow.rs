//! Files that are read again whenever they change: the host's resolvers, and the rules of egress.
//!
//! Invariant: this thread alone opens a file by name while a guest runs, for reading, and the name is the user's; nothing that it reads
//! comes from a guest. A file of resolvers that is missing means none, until there is one; a file of rules that is missing or wrong
//! changes nothing.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use openshell_usernet::policy::Policy;
use vmm_sys_util::eventfd::EventFd;

use crate::config::net_plan::{HostPlan, Resolvers, RuleSource};
use crate::event::Waiter;
use crate::jail::{Jail, Role};
use crate::sys::linger::Linger;
use crate::sys::watch;

use super::engine::Commands;
use super::resolvers;

/// A file is often written in several steps.
const SETTLE: Duration = Duration::from_millis(20);

mod token {
    pub(super) const STOP: u64 = 0;
    pub(super) const CHANGE: u64 = 1;
    pub(super) const AGAIN: u64 = 2;
}

/// What is followed.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    resolvers: Option<PathBuf>,
    rules: Option<RuleSource>,
    policy: Arc<Policy>,
}

impl Followed {
    /// The files of a plan.
    #[must_use]
    pub fn of(plan: &HostPlan) -> Self {
        let resolvers = match &plan.resolvers {
            Resolvers::Of(path) => Some(path.clone()),
            Resolvers::These(_) => None,
        };
        let rules = plan.rules.file.is_some().then(|| plan.rules.clone());
        Self { resolvers, rules, policy: Arc::clone(&plan.policy) }
    }

    /// Tells which resolvers there are now.
    pub fn tell(&self, commands: &Commands) {
        if let Some(path) = &self.resolvers {
            commands.set_resolvers(resolvers::read(path).unwrap_or_default());
        }
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let rules = self.rules.as_ref().and_then(|rules| rules.file.as_deref());
        self.resolvers.as_deref().into_iter().chain(rules)
    }
}

/// The thread that looks at the files. It ends when this is dropped.
#[derive(Debug)]
pub struct FileWatch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    _linger: Option<Linger>,
}

impl FileWatch {
    /// Tells `commands` which resolvers there are now, and whatever changes in the files. `None`: there are no files.
    ///
    /// # Errors
    /// What the host said.
    pub fn spawn(jail: Jail, followed: Followed, commands: Commands) -> io::Result<Option<Self>> {
        if followed.files().next().is_none() {
            return Ok(None);
        }
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let waiter = Waiter::new()?;
        waiter.add_readable(stop.as_raw_fd(), token::STOP)?;
        waiter.add_readable(commands.again.as_raw_fd(), token::AGAIN)?;
        let watch = watch::directories(std::iter::empty())?;
        waiter.add_readable(watch.as_raw_fd(), token::CHANGE)?;
        let linger = Linger::of(watch.as_fd());
        let mut follower = Follower { followed, watch, resolvers: None, fault: None, commands };
        follower.look();
        let thread = jail.spawn(Role::Watch, "netfiles", move || follower.run(&waiter))?;
        Ok(Some(Self { stop, thread: Some(thread), _linger: linger }))
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.stop.write(1).ok();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Follower {
    followed: Followed,
    watch: OwnedFd,
    /// Told last.
    resolvers: Option<Vec<SocketAddr>>,
    /// Told last, since when there were no good rules.
    fault: Option<String>,
    commands: Commands,
}

impl Follower {
    fn run(mut self, waiter: &Waiter) {
        let mut ready = Vec::new();
        loop {
            ready.clear();
            // A wait that fails for good would spin.
            if waiter.wait(&mut ready).is_err() || ready.contains(&token::STOP) {
                return;
            }
            std::thread::sleep(SETTLE);
            watch::clear(self.watch.as_fd());
            self.commands.again.read().ok();
            self.look();
        }
    }

    fn look(&mut self) {
        for file in self.followed.files() {
            // A file is often a link into a directory of whoever writes it, and the link may lead elsewhere by now.
            let target = fs::canonicalize(file).ok();
            for directory in
                [Some(file), target.as_deref()].into_iter().flatten().filter_map(Path::parent)
            {
                let here = directory.as_os_str() == OsStr::new("");
                watch::add(self.watch.as_fd(), if here { Path::new(".") } else { directory });
            }
        }
        if let Some(path) = &self.followed.resolvers {
            let resolvers = resolvers::read(path).unwrap_or_default();
            if self.resolvers.as_ref() != Some(&resolvers) {
                self.commands.set_resolvers(resolvers.clone());
                self.resolvers = Some(resolvers);
            }
        }
        if let Some(rules) = &self.followed.rules {
            match rules.read() {
                Ok(policy) => {
                    self.fault = None;
                    if policy != *self.followed.policy {
                        self.followed.policy = Arc::new(policy);
                        self.commands.set_policy(Arc::clone(&self.followed.policy));
                    }
                }
                Err(error) => {
                    let fault = error.to_string();
                    if self.fault.as_ref() != Some(&fault) {
                        self.commands.policy_failed(fault.clone());
                        self.fault = Some(fault);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::config::net::NetSpec;
    use crate::config::net_plan;
    use crate::net::engine::Command;

    fn next(commands: &Receiver<Command>) -> Command {
        commands.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Written beside and moved over, as editors do.
    fn replace(path: &Path, text: &str) {
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, path).unwrap();
    }

    #[test]
    fn files_are_told_when_they_change_and_wrong_rules_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (rules, conf) = (directory.path().join("p.toml"), directory.path().join("resolv.conf"));
        fs::write(&rules, "rules = [\"deny public\"]").unwrap();
        let spec = NetSpec {
            policy: Some(rules.clone()),
            resolv_conf: Some(conf.clone()),
            allow: vec!["host:80".to_owned()],
            ..NetSpec::default()
        };
        let plan = net_plan::open(&spec).unwrap();
        let (commands, told) = Commands::pair();
        let again = Arc::clone(&commands.again);
        let jail = Jail { seccomp: false };
        let watch = FileWatch::spawn(jail, Followed::of(&plan), commands).unwrap();
        assert!(matches!(next(&told), Command::Resolvers(none) if none.is_empty()), "no file yet");
        fs::write(&conf, "nameserver 192.0.2.1").unwrap();
        let server = "192.0.2.1:53".parse().unwrap();
        assert!(matches!(next(&told), Command::Resolvers(now) if now == [server]));
        // Asked to, it looks again, and tells only what is new.
        again.write(1).unwrap();
        replace(&rules, "rules = [\"deny pubic\"]");
        let Command::NoPolicy(why) = next(&told) else { panic!("the rule is wrong") };
        assert!(why.ends_with("did you mean `public`?"), "{why}");
        replace(&rules, "rules = [\"deny metadata\"]");
        let Command::Policy(policy) = next(&told) else { panic!("the rules are right") };
        let shown: Vec<String> = policy.rules().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["allow host:80", "deny metadata"], "those of flags stay");
        drop(watch);
        assert!(told.recv().is_err(), "nobody follows, and nothing was told twice");
    }
}
