//! Random interleavings of everything that can happen to a sandbox, against a model that knows phases only.
//!
//! The model is written from the user's side, as a table of what each happening means in each phase; the rules are not looked at.

use proptest::prelude::*;

use SandboxPhase::{Deleting, Error, Provisioning, Ready, Starting, Stopped, Stopping};

use super::rules::apply;
use super::*;

#[derive(Debug, Clone)]
enum Op {
    /// A supervisor connects, in the place of one that may be there.
    Connect(u8),
    /// A session ends: the newest, or one that has been superseded.
    Disconnect {
        newest: bool,
    },
    Driver(Says),
    Exit(u8, i32),
    Stop,
    StopDone,
    Start,
    Delete,
    DeleteFailed,
    GatewayRestart,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    Nothing,
    Starting,
    Up,
    Failed,
    Suspended,
    Exited,
}

impl Says {
    fn status(self) -> Option<DriverSandboxStatus> {
        match self {
            Self::Nothing => None,
            Self::Starting => starting(),
            Self::Up => backend_ready(),
            Self::Failed => condition("Ready", "False", "ProvisioningFailed"),
            Self::Suspended => condition("Suspended", "True", "ComputeStopped"),
            Self::Exited => condition("Ready", "False", "ContainerExited"),
        }
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let says = prop_oneof![
        Just(Says::Nothing),
        Just(Says::Starting),
        Just(Says::Up),
        Just(Says::Failed),
        Just(Says::Suspended),
        Just(Says::Exited),
    ];
    let op = prop_oneof![
        5 => (0..3_u8).prop_map(Op::Connect),
        3 => any::<bool>().prop_map(|newest| Op::Disconnect { newest }),
        4 => says.prop_map(Op::Driver),
        2 => (0..3_u8, 0..3_i32).prop_map(|(instance, code)| Op::Exit(instance, code)),
        3 => Just(Op::Stop),
        3 => Just(Op::StopDone),
        3 => Just(Op::Start),
        1 => Just(Op::Delete),
        1 => Just(Op::DeleteFailed),
        1 => Just(Op::GatewayRestart),
    ];
    prop::collection::vec(op, 1..60)
}

/// What a user may rely on.
struct Model {
    phase: SandboxPhase,
    /// The phase that a deletion that fails goes back to.
    before: SandboxPhase,
    /// The instance that the row remembers.
    last: Option<u8>,
    session: Option<u8>,
    exit: Option<i32>,
    /// Whether the driver's word is why it is in Error, and so an exit code is still welcome.
    by_driver: bool,
}

impl Model {
    fn running(&self) -> bool {
        matches!(self.phase, Provisioning | Ready | Starting)
    }

    fn sessions_changed(&mut self) {
        match (self.session, self.phase) {
            (Some(instance), Provisioning | Ready | Starting) => {
                self.phase = Ready;
                self.last = Some(instance);
                self.exit = None;
            }
            (None, Ready) => self.phase = Provisioning,
            _ => {}
        }
    }

    fn says(&mut self, says: Says) {
        let fails = matches!(says, Says::Failed | Says::Exited);
        match (self.phase, says) {
            (Stopping, Says::Suspended | Says::Exited) => self.phase = Stopped,
            (Stopping | Provisioning | Ready | Starting, _) if fails => {
                self.phase = Error;
                self.by_driver = says == Says::Exited;
            }
            (Provisioning | Ready, Says::Suspended) => self.phase = Stopped,
            // Held until it is ready: the driver's own word for stopped is an old one.
            (Starting, Says::Suspended) => {}
            (Starting, Says::Nothing) | (Ready, Says::Nothing) => {}
            _ => self.sessions_changed(),
        }
    }

    fn exited(&mut self, instance: u8, code: i32) {
        let counts = match self.phase {
            Provisioning | Ready => self.last.is_none_or(|last| last == instance),
            Starting => self.last != Some(instance),
            Error => {
                self.by_driver
                    && self.exit.is_none()
                    && self.last.is_none_or(|last| last == instance)
            }
            _ => false,
        };
        if counts {
            self.phase = Error;
            self.exit = Some(code);
            self.last = Some(instance);
            self.by_driver = false;
        }
    }
}

fn name(instance: u8) -> String {
    format!("i{instance}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn rules_and_model_agree(ops in ops()) {
        let mut model = Model {
            phase: Provisioning,
            before: Provisioning,
            last: None,
            session: None,
            exit: None,
            by_driver: false,
        };
        let mut row = row("a", Provisioning);
        let mut before_deletion = row.status.clone().unwrap();
        for op in ops {
            let was = model.phase;
            let change = match &op {
                Op::Connect(instance) => {
                    model.session = Some(*instance);
                    model.sessions_changed();
                    Change::Session(model.session.map(name))
                }
                Op::Disconnect { newest } => {
                    if *newest {
                        model.session = None;
                    }
                    model.sessions_changed();
                    Change::Session(model.session.map(name))
                }
                Op::Driver(says) => {
                    model.says(*says);
                    Change::Snapshot(says.status(), model.session.map(name))
                }
                Op::Exit(instance, code) => {
                    model.exited(*instance, *code);
                    Change::Exited { instance: name(*instance), code: *code }
                }
                Op::Stop => {
                    if model.phase == Ready {
                        model.phase = Stopping;
                        model.exit = None;
                    }
                    Change::Plain(Event::StopRequested)
                }
                Op::StopDone => {
                    if model.phase == Stopping {
                        // As the runtime does it: the session ends with the machine.
                        model.session = None;
                        model.phase = Stopped;
                    }
                    Change::Plain(Event::Stopped)
                }
                Op::Start => {
                    if model.phase == Stopped {
                        // A session of the run before ends.
                        model.session = None;
                        model.phase = Starting;
                        model.exit = None;
                    }
                    Change::Plain(Event::StartRequested)
                }
                Op::Delete => {
                    if model.phase != Deleting {
                        model.before = model.phase;
                        model.phase = Deleting;
                        before_deletion = row.status.clone().unwrap();
                    }
                    Change::Plain(Event::DeleteRequested { at_ms: 1 })
                }
                Op::DeleteFailed => {
                    if model.phase == Deleting {
                        model.phase = model.before;
                        model.sessions_changed();
                    }
                    Change::DeleteFailed {
                        before: before_deletion.clone(),
                        status: None,
                        instance: model.session.map(name),
                    }
                }
                Op::GatewayRestart => {
                    model.session = None;
                    model.sessions_changed();
                    Change::Plain(Event::Restarted)
                }
            };
            let next = apply(&row, &change.event(), "now");
            prop_assert_ne!(next.as_ref(), Some(&row), "a change changes something");
            row = next.unwrap_or(row);
            // What has been said once says nothing new.
            if !matches!(op, Op::DeleteFailed) {
                prop_assert_eq!(apply(&row, &change.event(), "later"), None, "{:?}", op);
            }
            let status = row.status.as_ref().unwrap();
            prop_assert_eq!(phase_of(&row), model.phase, "{:?} in {:?}", op, was);
            prop_assert_eq!(status.exit_code, model.exit, "{:?} in {:?}", op, was);
            let last = model.last.map(name).unwrap_or_default();
            prop_assert_eq!(&status.main_process_instance_id, &last);
            let condition = ready_condition(&row);
            let says_ready = condition.is_some_and(|condition| condition.status == "True");
            prop_assert_eq!(says_ready, model.phase == Ready);
            prop_assert!(model.phase != Ready || model.session.is_some(), "ready without a session");
            if model.running() && model.session.is_some() && !matches!(op, Op::Driver(_)) {
                prop_assert_eq!(model.phase, Ready, "a session and not ready: {:?}", op);
            }
        }
    }
}
