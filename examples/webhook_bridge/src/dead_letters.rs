//! The command `dead-letters`, which may run beside a running bridge.

use std::io::Write;

use matrix_sdk_postgres::PoolSettings;
use serde::Deserialize;
use serde_json::json;

use crate::{
    config::{Args, DatabaseConfig, DeadLetterCommand, store_account},
    database::DatabaseServer,
    errors::{BridgeError, exit_code},
    inbox::{self, DeadLetter, Inbox},
    untrusted::printable,
};

pub async fn run(args: &Args, command: &DeadLetterCommand) -> Result<(), BridgeError> {
    let config = DatabaseConfig::try_from(args)?;
    let account = store_account(args).ok_or_else(|| {
        BridgeError::fatal(
            exit_code::CONFIGURATION,
            "neither MATRIX_USER nor STORE_ACCOUNT is set: set the one that the bridge runs with",
        )
    })?;
    let database = DatabaseServer::new(&config.database).await?;
    let ended = async {
        let settings =
            database.settings(&account)?.pool(PoolSettings { max_size: 1, ..Default::default() });
        let pool = settings.build_pool()?;
        inbox::check(&pool, false).await?;
        let inbox = Inbox::new(pool, &account);
        if inbox.sync_position().await?.is_none() {
            return Err(BridgeError::fatal(
                exit_code::UNEXPECTED,
                format!(
                    "no bridge with the account {account:?} has used this database: set MATRIX_USER or \
                     STORE_ACCOUNT as it has"
                ),
            ));
        }
        match command {
            DeadLetterCommand::List { json } => {
                let mut page = inbox.dead_letters(None).await?;
                while let Some(last) = page.last() {
                    print(&page.iter().map(|letter| line(letter, *json)).collect::<Vec<_>>())?;
                    page = inbox.dead_letters(Some(last)).await?;
                }
                Ok(())
            }
            DeadLetterCommand::Resend { event_ids, all } => {
                let resent = inbox.resend((!all).then_some(event_ids.as_slice())).await?;
                if !all && (resent as usize) < event_ids.len() {
                    return Err(BridgeError::fatal(
                        exit_code::UNEXPECTED,
                        format!(
                            "{resent} of {} are dead letters and will be sent again: see \
                             `dead-letters list`",
                            event_ids.len()
                        ),
                    ));
                }
                print(&[format!("{resent} to be sent again")])
            }
        }
    };
    let ended = ended.await;
    database.stop().await;
    ended
}

/// What is readable of an event, encrypted or not.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outline {
    sender: String,
    #[serde(rename = "type")]
    kind: String,
}

fn line(letter: &DeadLetter, as_json: bool) -> String {
    let DeadLetter { event_id, room_id, failed_at, reason, rejected, json, .. } = letter;
    let Outline { sender, kind } = serde_json::from_slice(json).unwrap_or_default();
    if as_json {
        return json!({
            "event_id": event_id, "room_id": room_id, "sender": sender, "type": kind,
            "failed_at": failed_at, "reason": reason, "rejected_by_webhook": rejected,
        })
        .to_string();
    }
    [failed_at, event_id, room_id, &sender, &kind, reason]
        .map(|column| printable(column))
        .join("\t")
}

/// Written at once; a closed pipe is no error.
fn print(lines: &[String]) -> Result<(), BridgeError> {
    let text = lines.iter().fold(String::new(), |text, line| text + line.as_str() + "\n");
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(BridgeError::fatal(exit_code::UNEXPECTED, error.to_string()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sender_chose_stays_in_its_column() {
        let event = json!({"sender": "@a\t$fake\n\u{1b}[2J:x", "type": "m.room\rmessage"});
        let letter = DeadLetter {
            event_id: "$1".to_owned(),
            room_id: "!r:x".to_owned(),
            failed_at: "now".to_owned(),
            reason: "because\nof this".to_owned(),
            rejected: false,
            json: event.to_string().into_bytes(),
            place: (std::time::UNIX_EPOCH, 0, 0),
        };
        let line = line(&letter, false);
        let columns: Vec<_> = line.split('\t').collect();
        let expected = [
            "now",
            "$1",
            "!r:x",
            r"@a\t$fake\n\u{1b}[2J:x",
            r"m.room\rmessage",
            r"because\nof this",
        ];
        assert_eq!(columns, expected);
    }
}
