//! The command line: what it explains, what it refuses, and what it says when a server is away.

use rustix::process::Signal;
use sqlx::{Connection as _, PgConnection};

use crate::harness::{System, servers};
use crate::process::{Ended, Process, folder, run, settings};

/// A password that may be shown nowhere.
const SECRET: &str = "wr0ng-and-secret";

/// A setting of its own in place of the system's.
fn with(system: &System, name: &'static str, value: &str) -> Vec<(&'static str, String)> {
    let mut settings = settings(&system.config);
    // A password and a file with one exclude each other.
    settings.retain(|(other, _)| *other != format!("{name}_FILE"));
    settings.push((name, value.to_owned()));
    settings
}

fn shows_no_password(ended: &Ended, system: &System) {
    let said = format!("{}{}", ended.output, ended.errors);
    let real = millrace_shared::access::Principal::ALL.map(|principal| {
        system.config.nats.of(principal).password().expect("a file").expect("a password")
    });
    for password in real.iter().map(String::as_str).chain([SECRET]) {
        assert!(!said.contains(password), "a password is shown: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subcommand_explains_itself() {
    let help = run(&["--help"], &[]).await;
    assert_eq!(help.code, Some(0), "{help:?}");
    let list = help.output.split("Commands:").nth(1).expect("a list of subcommands");
    let list = list.split("Options:").next().expect("its text");
    let subcommands: Vec<&str> = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for expected in ["up", "api", "worker", "migrate", "topology", "replay"] {
        assert!(subcommands.contains(&expected), "{expected} is not in: {}", help.output);
    }
    // No setting that is in the environment may be shown if it is a password.
    let passwords = ["MILLRACE_NATS_PASSWORD", "MILLRACE_POSTGRES_PASSWORD"]
        .map(|name| (name, SECRET.to_owned()));
    for subcommand in subcommands {
        for option in ["--help", "-h"] {
            if subcommand == "help" {
                continue;
            }
            let ended = run(&[subcommand, option], &passwords).await;
            assert_eq!(ended.code, Some(0), "{subcommand}: {ended:?}");
            assert!(ended.output.contains("Usage:"), "{subcommand}: {ended:?}");
            assert!(!ended.output.contains(SECRET), "{subcommand} shows a password");
        }
    }
    let version = run(&["--version"], &[]).await;
    let told = concat!("millrace ", env!("CARGO_PKG_VERSION"));
    assert!(version.code == Some(0) && version.output.starts_with(told), "{version:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_command_line_is_refused_with_what_is_wrong() {
    let cases: [(&[&str], &str); 14] = [
        (&[], "Usage:"),
        (&["fly"], "fly"),
        (&["up", "--port", "80"], "--port"),
        (&["up", "--http", "localhost"], "--http"),
        (&["up", "--servers-only", "--workers-only"], "--workers-only"),
        (&["api", "--http", "127.0.0.1"], "--http"),
        (&["worker"], "<ROLES>"),
        (&["worker", "painter"], "validation, payment, persistence, projection"),
        (&["worker", "payment", "--postgres-connections", "0"], "--postgres-connections"),
        (&["topology", "--stream-replicas", "9"], "--stream-replicas"),
        (&["replay", "--products", "p.csv"], "--customers"),
        (&["migrate", "--log-format", "xml"], "--log-format"),
        (&["bench", "--rate", "0"], "--rate"),
        (&["bench", "--rate", "inf"], "--rate"),
    ];
    for (arguments, named) in cases {
        let ended = run(arguments, &[]).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.errors.contains(named), "{arguments:?}: {ended:?}");
        assert_eq!(ended.output, "", "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_contradict_themselves_are_refused_before_anything_is_done() {
    let cases: [(&[&str], &str); 6] = [
        (&["topology", "--namespace", "a.b"], "namespace"),
        (&["topology", "--nats-user", "ann"], "MILLRACE_NATS_PASSWORD"),
        (&["topology", "--nats-url", "nats://ann:pw@127.0.0.1:1"], "NATS URL"),
        (&["migrate", "--postgres-url", "postgres://ann:pw@127.0.0.1:1/x"], "postgres URL"),
        (&["migrate", "--postgres-password-file", "/nowhere/at-all"], "/nowhere/at-all"),
        (&["migrate", "--log", "a=b=c"], "--log"),
    ];
    for (arguments, named) in cases {
        let ended = run(arguments, &[]).await;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {ended:?}");
        assert!(ended.errors.starts_with("millrace: "), "{arguments:?}: {ended:?}");
        assert!(ended.errors.contains(named), "{arguments:?}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_nats_and_says_so() {
    let system = System::without_workers().await;
    let settings = with(&system, "MILLRACE_NATS_URL", "nats://127.0.0.1:1");
    let mut worker = Process::start(&["worker", "persistence"], &settings);
    // The address is told, and that it is NATS which is away: not that a stream is missing.
    worker.says("NATS").await;
    worker.says("127.0.0.1:1").await;
    worker.says("pull is rebuilt").await;
    assert!(!worker.errors().contains("is not there"), "{}", worker.errors());
    let ended = worker.end(Signal::TERM).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.errors.contains('\u{1b}'), "no colours in a file: {}", ended.errors);
    shows_no_password(&ended, &system);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_wrong_nats_password_says_so() {
    let system = System::without_workers().await;
    let settings = with(&system, "MILLRACE_NATS_PASSWORD", SECRET);
    let mut worker = Process::start(&["worker", "projection"], &settings);
    worker.says("authorization violation").await;
    let ended = worker.end(Signal::INT).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    shows_no_password(&ended, &system);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_and_topology_name_the_server_that_is_away_or_refuses() {
    let system = System::without_workers().await;
    let nowhere = "postgres://millrace@127.0.0.1:1/millrace";
    let cases = [
        ("migrate", "MILLRACE_POSTGRES_URL", nowhere, "127.0.0.1:1"),
        ("migrate", "MILLRACE_POSTGRES_PASSWORD", SECRET, "password authentication failed"),
        ("topology", "MILLRACE_NATS_URL", "nats://127.0.0.1:1", "127.0.0.1:1"),
        ("topology", "MILLRACE_NATS_PASSWORD", SECRET, "authorization violation"),
    ];
    for (subcommand, name, value, named) in cases {
        let ended = run(&[subcommand], &with(&system, name, value)).await;
        assert_eq!(ended.code, Some(1), "{subcommand} {name}: {ended:?}");
        let last = ended.errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("millrace: "), "{subcommand} {name}: {ended:?}");
        assert!(last.contains(named), "{subcommand} {name}: {last}");
        shows_no_password(&ended, &system);
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_twice_makes_one_schema() {
    let system = System::without_workers().await;
    let name = "migrated_twice";
    let create = format!("create database {name}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&system.pool).await.expect("a database");
    let mut config = system.admin.postgres.clone();
    let (server, _) = config.postgres_url.rsplit_once('/').expect("a database in the URL");
    config.postgres_url = format!("{server}/{name}");
    let settings = with(&system, "MILLRACE_POSTGRES_URL", &config.postgres_url);

    // At once, as replicas of a release do, and once more.
    let [first, second] = [run(&["migrate"], &settings), run(&["migrate"], &settings)];
    let (first, second) = tokio::join!(first, second);
    let third = run(&["migrate"], &settings).await;
    for ended in [first, second, third] {
        assert_eq!((ended.code, ended.output.as_str()), (Some(0), ""), "{ended:?}");
    }
    let empty = folder("no-credentials");
    let refused = run(&["migrate", "--credentials", &empty.display().to_string()], &settings).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.errors.contains("no password for any role"), "{refused:?}");
    let options = config.options().expect("options");
    let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
    let done: i64 = sqlx::query_scalar("select count(*) from _sqlx_migrations where success")
        .fetch_one(&mut connection)
        .await
        .expect("the list of migrations");
    assert_eq!(usize::try_from(done).ok(), Some(millrace_workers::MIGRATIONS.iter().count()));
    let orders: i64 = sqlx::query_scalar("select count(*) from journal.orders")
        .fetch_one(&mut connection)
        .await
        .expect("the schema is there");
    assert_eq!(orders, 0);
    connection.close().await.expect("a good end");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topology_twice_makes_one_set_of_streams_and_loses_no_message() {
    tokio::task::spawn_blocking(servers).await.expect("the servers have started");
    let system = System::without_workers().await;
    let settings = with(&system, "MILLRACE_NAMESPACE", "topology_twice");
    assert_eq!(run(&["topology"], &settings).await.code, Some(0));
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let sent = jetstream.publish("topology_twice.cmd.order.place", "{}".into()).await;
    sent.expect("it is sent").await.expect("the stream takes it");
    let ended = run(&["topology"], &settings).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (name, messages) in [("COMMANDS", 1), ("EVENTS", 0), ("PARKED", 0)] {
        let name = format!("topology_twice_{name}");
        let stream = jetstream.get_stream(&name).await.expect("the stream is there");
        assert_eq!(stream.cached_info().state.messages, messages, "{name}");
        jetstream.delete_stream(&name).await.expect("the test's stream is removed");
    }
    system.stop().await;
}
