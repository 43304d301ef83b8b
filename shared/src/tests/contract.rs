//! The schemas of messages, and whether what is written keeps to them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::asyncapi::Messages;
use crate::command::KINDS;
use crate::message::SCHEMA;
use crate::topology::Topology;

fn messages() -> Messages {
    Messages::new(&Topology::new("millrace").unwrap())
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn same(file: &Path, made: &Value) {
    let made = serde_json::to_string_pretty(made).unwrap() + "\n";
    if std::env::var_os("MILLRACE_BLESS").is_some_and(|bless| bless == "1") {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, &made).unwrap();
    }
    let checked_in = fs::read_to_string(file).unwrap_or_default();
    assert!(checked_in == made, "{} is not what the code says: bless it", file.display());
}

/// `MILLRACE_BLESS=1 cargo test -p millrace-shared contract` writes the files anew. The schemas of a
/// released version are not changed: a new version gets a folder of its own.
#[test]
fn the_documents_that_are_checked_in_are_those_of_the_code() {
    let messages = messages();
    same(&docs().join("asyncapi.json"), &messages.document());
    let folder = docs().join(format!("schemas/v{SCHEMA}"));
    for (sort, list) in [("command", &messages.commands), ("event", &messages.events)] {
        for message in list {
            let file = folder.join(sort).join(format!("{}.json", message.name));
            same(&file, &messages.alone(message));
        }
    }
}

#[test]
fn every_kind_of_command_and_event_has_a_schema() {
    let messages = messages();
    let commands: Vec<&str> = messages.commands.iter().map(|message| &*message.name).collect();
    assert_eq!(commands, KINDS);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{SCHEMA}"));
    for file in fs::read_dir(golden).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let value: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let (list, wanted) = if let Some(kind) = name.strip_prefix("cmd-") {
            (&messages.commands, kind.replacen('-', ".", 1))
        } else {
            let text = |field: &str| value[field].as_str().unwrap().to_owned();
            (&messages.events, format!("{}.{}", text("subject"), text("type")))
        };
        let message = list.iter().find(|message| message.name == wanted);
        let schema = messages.alone(message.unwrap_or_else(|| panic!("{wanted} has no schema")));
        let errors: Vec<String> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}
