//! Results, as a table for people or JSON for programs.
//!
//! Pure. Invariant: what comes from a sandbox reaches a terminal without control characters; JSON keeps it as it is.

use openshell_proto::v1::{PlatformEvent, Sandbox, SandboxCondition, SandboxLogLine};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Columns
    Table,
    /// JSON; one object a line where there are several over time
    Json,
}

/// The phase, as people write it.
pub(super) fn phase(row: &Sandbox) -> String {
    let phase = row.status.clone().unwrap_or_default().phase();
    let name = phase.as_str_name().trim_start_matches("SANDBOX_PHASE_");
    let (first, rest) = name.split_at(1.min(name.len()));
    format!("{first}{}", rest.to_lowercase())
}

/// What a row says about being ready.
pub(super) fn ready(row: &Sandbox) -> Option<&SandboxCondition> {
    let status = row.status.as_ref()?;
    status.conditions.iter().find(|condition| condition.r#type == "Ready")
}

/// The condition in one line, reason first.
pub(super) fn why(row: &Sandbox) -> String {
    ready(row).map_or_else(String::new, |condition| {
        format!("{}: {}", clean(&condition.reason), clean(&condition.message))
    })
}

fn value(row: &Sandbox) -> Value {
    let metadata = row.metadata.clone().unwrap_or_default();
    let status = row.status.clone().unwrap_or_default();
    let spec = row.spec.clone().unwrap_or_default();
    let conditions: Vec<Value> = status
        .conditions
        .iter()
        .map(|condition| {
            json!({
                "type": condition.r#type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "last_transition_time": condition.last_transition_time,
            })
        })
        .collect();
    json!({
        "id": metadata.id,
        "name": metadata.name,
        "workspace": metadata.workspace,
        "phase": phase(row),
        "image": spec.template.unwrap_or_default().image,
        "command": spec.command,
        "labels": metadata.labels,
        "created_at_ms": metadata.created_at_ms,
        "resource_version": metadata.resource_version,
        "main_process_instance_id": status.main_process_instance_id,
        "exit_code": status.exit_code,
        "conditions": conditions,
    })
}

pub(super) fn row(row: &Sandbox, output: Output) -> String {
    match output {
        Output::Json => format!("{:#}\n", value(row)),
        Output::Table => table(std::slice::from_ref(row)),
    }
}

pub(super) fn rows(rows: &[Sandbox], output: Output) -> String {
    match output {
        Output::Json => format!("{:#}\n", Value::Array(rows.iter().map(value).collect())),
        Output::Table => table(rows),
    }
}

fn table(rows: &[Sandbox]) -> String {
    let mut lines = vec![["NAME", "PHASE", "IMAGE", "REASON"].map(str::to_owned)];
    for row in rows {
        let metadata = row.metadata.clone().unwrap_or_default();
        let template = row.spec.clone().unwrap_or_default().template.unwrap_or_default();
        let code = row.status.as_ref().and_then(|status| status.exit_code);
        let code = code.map_or_else(String::new, |code| format!(" (exit code {code})"));
        lines.push([
            clean(&metadata.name),
            phase(row),
            clean(&template.image),
            format!("{}{code}", why(row)),
        ]);
    }
    let wide = |column: usize| {
        lines.iter().map(|line| line.get(column).map_or(0, |cell| cell.chars().count())).max()
    };
    let widths = [0, 1, 2].map(|column| wide(column).unwrap_or(0));
    let mut text = String::new();
    for [name, phase, image, reason] in &lines {
        let line =
            format!("{name:0$}  {phase:1$}  {image:2$}  {reason}", widths[0], widths[1], widths[2]);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn deleted(name: &str, output: Output) -> String {
    match output {
        Output::Json => format!("{}\n", json!({"name": name, "deleted": true})),
        Output::Table => format!("deleted {}\n", clean(name)),
    }
}

/// A change of a row, while somebody watches.
pub(super) fn change(row: &Sandbox, output: Output) -> String {
    match output {
        Output::Json => format!("{}\n", json!({"sandbox": value(row)})),
        Output::Table => format!("{:12} {}\n", phase(row), why(row)),
    }
}

pub(super) fn event(event: &PlatformEvent, output: Output) -> String {
    match output {
        Output::Json => {
            let event = json!({
                "timestamp_ms": event.timestamp_ms,
                "source": event.source,
                "type": event.r#type,
                "reason": event.reason,
                "message": event.message,
                "metadata": event.metadata,
            });
            format!("{}\n", json!({ "event": event }))
        }
        Output::Table => format!("  {}: {}\n", clean(&event.reason), clean(&event.message)),
    }
}

pub(super) fn log(line: &SandboxLogLine, output: Output) -> String {
    match output {
        Output::Json => {
            let line = json!({
                "timestamp_ms": line.timestamp_ms,
                "level": line.level,
                "target": line.target,
                "source": line.source,
                "message": line.message,
                "fields": line.fields,
            });
            format!("{}\n", json!({ "log": line }))
        }
        Output::Table => {
            let (seconds, ms) = (line.timestamp_ms / 1000, line.timestamp_ms % 1000);
            format!("{seconds}.{ms:03} {:5} {}\n", clean(&line.level), clean(&line.message))
        }
    }
}

pub(super) fn warning(text: &str, output: Output) -> String {
    match output {
        Output::Json => format!("{}\n", json!({ "warning": text })),
        Output::Table => format!("  warning: {}\n", clean(text)),
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use openshell_proto::datamodel::v1::ObjectMeta;
    use openshell_proto::v1::{SandboxPhase, SandboxStatus};

    use super::*;

    fn sandbox(name: &str, phase: SandboxPhase, message: &str) -> Sandbox {
        let condition = SandboxCondition {
            r#type: "Ready".into(),
            status: "False".into(),
            reason: "Starting".into(),
            message: message.into(),
            ..SandboxCondition::default()
        };
        Sandbox {
            metadata: Some(ObjectMeta { name: name.into(), ..ObjectMeta::default() }),
            status: Some(SandboxStatus {
                phase: phase.into(),
                conditions: vec![condition],
                exit_code: Some(3),
                ..SandboxStatus::default()
            }),
            ..Sandbox::default()
        }
    }

    #[test]
    fn tables_have_columns() {
        let all =
            [sandbox("a", SandboxPhase::Ready, "x"), sandbox("long", SandboxPhase::Error, "y")];
        assert_eq!(
            rows(&all, Output::Table),
            "NAME  PHASE  IMAGE  REASON\n\
             a     Ready         Starting: x (exit code 3)\n\
             long  Error         Starting: y (exit code 3)\n"
        );
    }

    #[test]
    fn json_is_read_by_programs() {
        let text = row(&sandbox("a", SandboxPhase::Provisioning, "x"), Output::Json);
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&read["phase"], &read["exit_code"]), (&json!("Provisioning"), &json!(3)));
        assert_eq!(read["conditions"][0]["reason"], "Starting");
        let list: Value = serde_json::from_str(&rows(&[], Output::Json)).unwrap();
        assert_eq!(list, json!([]));
    }

    #[test]
    fn a_guest_does_not_write_to_the_terminal() {
        let row_ = sandbox("a", SandboxPhase::Error, "\u{1b}[2Jgone\n");
        assert!(!row(&row_, Output::Table).contains('\u{1b}'));
        let line = SandboxLogLine { message: "\u{1b}]0;x\u{7}".into(), ..Default::default() };
        assert!(log(&line, Output::Table).chars().all(|c| !c.is_control() || c == '\n'));
    }
}
