//! Renders the document of a delivery with a template, for receivers that expect their own format.

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, value::Serde};
use serde::de::IgnoredAny;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::message::Message;

const NAME: &str = "template";

/// Steps of a rendering. The sender of a message decides how often a loop over its content is repeated, and
/// a loop within a loop multiplies.
const MAX_STEPS: u64 = 1_000_000;

/// A compiled template. What it prints with `{{ }}` is JSON, with the quotes of a text.
#[derive(Clone, Debug)]
pub struct Template(Environment<'static>);

impl Template {
    pub fn compile(source: String) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Json);
        // Fields that a message does not have are `null`.
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_fuel(Some(MAX_STEPS));
        environment.add_filter("rfc3339", rfc3339);
        environment.add_template_owned(NAME, source)?;
        Ok(Self(environment))
    }

    /// The JSON document; `None` if the template prints nothing, so that the message is left out.
    pub fn render(&self, message: &Message) -> Result<Option<String>, String> {
        let render = || self.0.get_template(NAME)?.render(Serde(message));
        let text = render().map_err(|error| format!("the template fails: {error}"))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        match serde_json::from_str::<IgnoredAny>(&text) {
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(format!("the template's output is not JSON: {error}")),
        }
    }
}

/// Milliseconds since 1970 as `2026-01-01T00:00:00Z`.
fn rfc3339(millis: i64) -> Result<String, Error> {
    let out_of_range = || Error::new(ErrorKind::InvalidOperation, "the time is out of range");
    let time = OffsetDateTime::from_unix_timestamp(millis.div_euclid(1000));
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).ok_or_else(out_of_range)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::message::Stored;

    fn message(body: &str) -> Message {
        let event = json!({"event_id": "$1", "sender": "@alice:example.org",
            "type": "m.room.message", "origin_server_ts": 1_767_225_600_000_i64,
            "content": {"msgtype": "m.text", "body": body}});
        let Stored::Plain(outline) = Stored::parse(event.to_string().as_bytes()).unwrap() else {
            panic!("not encrypted")
        };
        Message { label: Some("instagram".to_owned()), ..Message::plain("!r:x", outline) }
    }

    fn render(source: &str, body: &str) -> Result<Option<Json>, String> {
        let rendered = Template::compile(source.to_owned()).unwrap().render(&message(body))?;
        Ok(rendered.map(|text| serde_json::from_str(&text).unwrap()))
    }

    #[test]
    fn a_rendering_that_takes_too_long_fails() {
        let looped = r#"{% for a in body %}{% for b in body %}{% endfor %}{% endfor %}{"a": 1}"#;
        assert!(render(looped, &"x".repeat(100)).unwrap().is_some());
        let error = render(looped, &"x".repeat(25_000)).unwrap_err();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn what_a_message_holds_cannot_leave_its_place_in_the_document() {
        let hostile = "\"}, {{ sender }} <!-- \\ \n \u{2028} ' </script>";
        let document = render(r#"{"text": {{ body }}, "none": {{ content.a.b }}}"#, hostile);
        assert_eq!(document.unwrap().unwrap(), json!({"text": hostile, "none": null}));
    }

    #[test]
    fn nothing_is_left_out_and_broken_output_is_an_error() {
        let only_edits = r#"{% if type == "m.reaction" %}{"text": {{ body }}}{% endif %}"#;
        assert_eq!(render(only_edits, "a"), Ok(None));
        assert!(render(r#"{"text": "{{ body }}"}"#, "a").unwrap_err().contains("not JSON"));
        assert!(render("{{ body | rfc3339 }}", "a").unwrap_err().contains("the template fails"));
        assert!(Template::compile("{% if %}".to_owned()).is_err());
    }

    #[test]
    fn the_sample_for_slack_escapes_its_markup() {
        let document = render(include_str!("../../templates/slack.json"), "<!channel> & more");
        let text = "*@alice:example.org* in instagram: &lt;!channel&gt; &amp; more";
        assert_eq!(document.unwrap().unwrap(), json!({"text": text, "mrkdwn": true}));
        // The administrator of a server chooses the names of its users and rooms.
        let hostile = Message {
            sender: "@<!channel>:evil".to_owned(),
            room_id: "!<!here>:evil".to_owned(),
            label: None,
            ..message("hi")
        };
        let template = include_str!("../../templates/slack.json").to_owned();
        let document = Template::compile(template).unwrap().render(&hostile).unwrap().unwrap();
        let text = "*@&lt;!channel&gt;:evil* in !&lt;!here&gt;:evil: hi";
        let document: Json = serde_json::from_str(&document).unwrap();
        assert_eq!(document, json!({"text": text, "mrkdwn": true}));
    }

    #[test]
    fn the_sample_for_alertmanager_has_the_fields_of_its_version_4() {
        let document = render(include_str!("../../templates/alertmanager.json"), "disk full");
        let labels = json!({"alertname": "MatrixMessage", "room": "!r:x",
            "sender": "@alice:example.org", "label": "instagram"});
        let annotations = json!({"summary": "disk full", "verification": "unencrypted"});
        let expected = json!({
            "version": "4", "groupKey": "!r:x", "truncatedAlerts": 0, "status": "firing",
            "receiver": "webhook_bridge", "groupLabels": {"room": "!r:x"}, "commonLabels": labels,
            "commonAnnotations": annotations, "externalURL": "",
            "alerts": [{
                "status": "firing", "labels": labels, "annotations": annotations,
                "startsAt": "2026-01-01T00:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "", "fingerprint": "$1",
            }],
        });
        assert_eq!(document.unwrap().unwrap(), expected);
    }
}
