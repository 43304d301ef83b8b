//! What each part of the system can do at the servers with its own credentials, and what it cannot:
//! the table in `docs/security.md`.

mod tls;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use millrace_shared::access::Principal;
use serde_json::json;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::process::Command;
use tokio::time::timeout;

use crate::cluster::nats_server;
use crate::harness::{System, card_order, eventually};
use crate::process::{folder, run};
use crate::rebuild::{redis, redis_as};

/// `compose.yaml` gives these files to the servers.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_take_what_credentials_writes_and_it_keeps_what_is_there() {
    let folder = folder("credentials");
    let secrets = folder.join("secrets");
    let arguments = [
        "credentials".to_owned(),
        secrets.display().to_string(),
        "--namespace".to_owned(),
        "shop".to_owned(),
    ];
    let mut texts = Vec::new();
    for _ in 0..2 {
        let made = run(&arguments, &[]).await;
        assert_eq!(made.code, Some(0), "{made:?}");
        let text = |name: &str| fs::read_to_string(secrets.join(name)).expect("a file");
        texts.push(["payment", "nats-users.conf", "valkey-users.acl"].map(text));
    }
    assert_eq!(texts[0], texts[1], "passwords are made once");
    let mode = fs::metadata(&secrets).expect("a folder").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "nobody else enters it");

    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats.conf");
    fs::copy(config, secrets.join("nats.conf")).expect("a copy");
    let mut nats = Command::new(nats_server());
    let checked = nats.arg("-t").arg("-c").arg(secrets.join("nats.conf")).output();
    let checked = checked.await.expect("nats-server runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let system = System::without_workers().await;
    let about = redis(&system, &["INFO", "server"]).await;
    let program = about.lines().find_map(|line| line.strip_prefix("executable:"));
    let log = folder.join("valkey.log");
    let mut another = Command::new(program.expect("where the server is").trim());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    another.args(["--port", &port.port().to_string(), "--logfile"]).arg(&log);
    another.arg("--dir").arg(&folder).arg("--aclfile").arg(secrets.join("valkey-users.acl"));
    let mut another = another.kill_on_drop(true).spawn().expect("it starts");
    eventually("the users are taken", async || {
        let said = fs::read_to_string(&log).ok()?;
        assert!(another.try_wait().expect("a child").is_none(), "{said}");
        said.contains("Server initialized").then_some(())
    })
    .await;
    another.kill().await.expect("it is killed");
    system.stop().await;
}

/// The server answers whoever may ask, if only with an error; others get nothing.
const ANSWER: Duration = Duration::from_secs(3);

/// Whoever it is that a stolen credential belongs to.
const ANYBODY: [Principal; 10] = {
    use Principal::{
        Api, Desk, Operator, Payment, Persistence, Projection, Reports, Service, Trim, Validation,
    };
    [Api, Desk, Validation, Payment, Persistence, Trim, Projection, Operator, Service, Reports]
};

fn names(principals: &[Principal]) -> Vec<&'static str> {
    let mut names: Vec<_> = principals.iter().map(|it| it.name()).collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn at_nats_nobody_does_what_is_another_ones_work() {
    use Principal::{
        Api, Desk, Operator, Payment, Persistence, Projection, Service, Trim, Validation,
    };
    let system = System::without_workers().await;
    let (ns, topology) = (system.topology.namespace(), &system.topology);
    let (events, parked) = (topology.events_stream(), topology.parked_stream());
    let event = |kind: &str| format!("{ns}.evt.order.o.{kind}");
    let api = |of: &str, stream: &str| format!("$JS.API.{of}.{stream}");
    let nothing = || String::new();
    // What is done, who may, on which subject, with what.
    let workers = &[Validation, Payment, Persistence, Projection][..];
    let powers: Vec<(&str, &[Principal], String, String)> = vec![
        ("place orders", &[Api, Operator, Service], topology.command("order.place"), nothing()),
        ("ship orders", &[Validation], event("shipped"), nothing()),
        ("call orders paid", &[Validation, Payment], event("paid"), nothing()),
        ("change stock", &[Validation], format!("{ns}.evt.product.p.stock-changed"), nothing()),
        ("park for payment", &[Payment], format!("{ns}.parked.payment.event.order.o.1"), nothing()),
        ("ask for replays", &[Desk, Operator], format!("{ns}.replay.payment.x"), nothing()),
        (
            "remove what is parked",
            &[Validation, Payment, Persistence, Projection, Desk, Operator],
            api("STREAM.MSG.DELETE", &parked),
            json!({ "seq": 4_000_000 }).to_string(),
        ),
        (
            "remove an event",
            &[],
            api("STREAM.MSG.DELETE", &events),
            json!({ "seq": 1 }).to_string(),
        ),
        (
            "trim the log",
            &[Trim, Operator],
            api("STREAM.PURGE", &events),
            json!({ "seq": 1 }).to_string(),
        ),
        ("delete the log", &[], api("STREAM.DELETE", &events), nothing()),
        ("change the log", &[], api("STREAM.UPDATE", &events), nothing()),
        ("make streams", &[], api("STREAM.CREATE", "another"), nothing()),
        (
            "read the log",
            &[Api, Desk, Validation, Payment, Persistence, Trim, Projection, Operator],
            api("STREAM.MSG.GET", &events),
            json!({ "last_by_subj": ">" }).to_string(),
        ),
        (
            "read commands, with the tokens of cards",
            &[Api, Desk, Validation, Trim, Projection, Operator],
            api("STREAM.MSG.GET", &topology.commands_stream()),
            json!({ "last_by_subj": ">" }).to_string(),
        ),
        (
            "change payment's consumer",
            &[Payment],
            api("CONSUMER.CREATE", &format!("{events}.payment-validated")),
            nothing(),
        ),
        (
            "take payment's messages",
            &[Payment],
            api("CONSUMER.MSG.NEXT", &format!("{events}.payment-validated")),
            json!({ "batch": 1, "no_wait": true }).to_string(),
        ),
        (
            "delete payment's consumer",
            &[],
            api("CONSUMER.DELETE", &format!("{events}.payment-validated")),
            nothing(),
        ),
    ];
    assert!(powers.iter().any(|(_, who, ..)| workers.iter().all(|it| who.contains(it))));
    // Where a worker would take its messages from.
    let payment = system.run(millrace_workers::Role::Payment);
    eventually("payment has its consumer", async || {
        let log = async_nats::jetstream::new(system.nats.clone()).get_stream(&events).await.ok()?;
        log.consumer_info("payment-refund-requested").await.ok()
    })
    .await;
    payment.stop().await;

    let able = join_all(ANYBODY.map(async |principal| {
        let config = system.config.nats.of(principal);
        if principal.at_nats(topology).is_none() {
            assert!(config.connect_now("test").await.is_err(), "{principal} has no user");
            return (principal, vec![false; powers.len()]);
        }
        let client = config.connect_now("test").await.expect("its user is let in");
        let tried = powers.iter().map(async |(_, _, subject, payload)| {
            let asked = client.request(subject.clone(), payload.clone().into());
            timeout(ANSWER, asked).await.is_ok_and(|answer| answer.is_ok())
        });
        (principal, join_all(tried).await)
    }))
    .await;
    for (number, (what, who, ..)) in powers.iter().enumerate() {
        let able = able.iter().filter(|(_, able)| able[number]).map(|(principal, _)| *principal);
        assert_eq!(names(&able.collect::<Vec<_>>()), names(who), "who can {what}");
    }
    system.stop().await;
}

/// Whoever may make a consumer names the subject to which it delivers. What payment may park must
/// not become a command in this way.
#[tokio::test(flavor = "multi_thread")]
async fn at_nats_no_consumer_delivers_to_where_its_maker_may_not_publish() {
    let system = System::without_workers().await;
    let (ns, topology) = (system.topology.namespace(), &system.topology);
    let nats = system.config.nats.of(Principal::Payment).connect_now("test").await.expect("let in");
    let order = card_order("ann", "box", 1, "tok_ok").to_string();
    let parked = nats.request(format!("{ns}.parked.payment.event.order.o.1"), order.into()).await;
    parked.expect("it may park");
    let stream = topology.parked_stream();
    let config = json!({
        "stream_name": stream,
        "config": {
            "deliver_subject": topology.command("order.place"), "deliver_policy": "all",
            "ack_policy": "none",
        },
    });
    let subject = format!("$JS.API.CONSUMER.CREATE.{stream}");
    let made = nats.request(subject, config.to_string().into()).await.expect("an answer");
    let made: serde_json::Value = serde_json::from_slice(&made.payload).expect("JSON");
    assert!(made["error"].is_null(), "it is made: {made}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let commands = jetstream.get_stream(topology.commands_stream()).await.expect("the stream");
    assert_eq!(commands.cached_info().state.messages, 0, "no command came of it");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_the_answers_that_are_for_another() {
    let system = System::without_workers().await;
    let ns = system.topology.namespace();
    let subject = format!("{ns}.inbox.validation.secret");
    for principal in [Principal::Payment, Principal::Api, Principal::Service, Principal::Operator] {
        let client = system.config.nats.of(principal).connect_now("test").await.expect("let in");
        let mut heard = client.subscribe(subject.clone()).await.expect("asked for");
        client.flush().await.expect("NATS answers");
        system.nats.publish(subject.clone(), "for validation".into()).await.expect("sent");
        system.nats.flush().await.expect("NATS answers");
        let heard = timeout(Duration::from_millis(300), futures_util::StreamExt::next(&mut heard));
        let heard = heard.await.ok().flatten();
        assert!(heard.is_none(), "{principal} hears {heard:?}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_postgresql_nobody_reads_or_writes_what_is_not_its_own() {
    use Principal::{
        Api, Desk, Operator, Payment, Persistence, Projection, Reports, Trim, Validation,
    };
    let system = System::without_workers().await;
    let powers: [(&str, &[Principal], &'static str); 14] = [
        (
            "read the journal",
            &[Validation, Persistence, Trim, Projection, Api, Operator, Reports],
            "select from journal.events limit 0",
        ),
        (
            "write the journal",
            &[Persistence, Operator],
            "update journal.events set type = type where false",
        ),
        ("delete from the journal", &[], "delete from journal.events where false"),
        ("empty the journal", &[], "truncate journal.events"),
        ("read decisions", &[Validation, Api, Operator], "select from ledger.decisions limit 0"),
        ("change stock", &[Validation], "update ledger.products set touched = touched where false"),
        (
            "change credit",
            &[Validation],
            "update ledger.customers set touched = touched where false",
        ),
        (
            "read the gateway's book",
            &[Payment, Api, Operator],
            "select from sandbox.charges limit 0",
        ),
        (
            "write the gateway's book",
            &[Payment],
            "update sandbox.charges set calls = calls where false",
        ),
        ("delete from the gateway's book", &[], "delete from sandbox.charges where false"),
        (
            "write to the audit",
            &[Desk, Operator],
            "insert into journal.audit (actor, action, worker, stream, sequence, parked_sequence,
                                        subject, reason, attempts)
             select '', '', '', '', 0, 0, '', '', 0 where false",
        ),
        ("change the audit", &[], "update journal.audit set why = why where false"),
        ("delete from the audit", &[], "delete from journal.audit where false"),
        ("make tables", &[], "create table public.another ()"),
    ];
    let mut able = vec![Vec::new(); powers.len()];
    for principal in ANYBODY {
        let options = system.config.postgres.of(principal).options().expect("options");
        let connected = PgConnection::connect_with(&options).await;
        if principal == Principal::Service {
            assert!(connected.is_err(), "{principal} has no role");
            continue;
        }
        let mut connection = connected.expect("its role is let in");
        for (number, (what, _, statement)) in powers.iter().enumerate() {
            match sqlx::raw_sql(*statement).execute(&mut connection).await {
                Ok(_) => able[number].push(principal),
                Err(error) => {
                    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                    assert_eq!(code.as_deref(), Some("42501"), "{principal}, {what}: {error}");
                }
            }
        }
    }
    for ((what, who, _), able) in powers.iter().zip(able) {
        assert_eq!(names(&able), names(who), "who can {what}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_redis_only_projection_and_operators_write_views_and_nobody_leaves_the_namespace() {
    use Principal::{Api, Operator, Projection};
    let system = System::without_workers().await;
    let ns = system.topology.namespace();
    let own = |key: &str| format!("{ns}:{key}");
    let (writers, readers) = (&[Projection, Operator][..], &[Api, Projection, Operator][..]);
    let (product, order) = (own("1:product:p"), own("1:order:o"));
    let (set, list) = (own("1:products"), own("changes"));
    let powers: Vec<(&str, &[Principal], Vec<&str>)> = vec![
        ("read views", readers, vec!["GET", &product]),
        ("mark orders as pending", readers, vec!["SET", &order, "0 {}", "NX"]),
        ("write products", writers, vec!["SET", &product, "1 {}"]),
        ("remove orders", writers, vec!["DEL", &order]),
        ("write lists", writers, vec!["ZADD", &set, "0", "p"]),
        ("tell of changes", writers, vec!["PUBLISH", &list, ""]),
        ("read what is another's", &[], vec!["GET", "another:1:order:o"]),
        ("write what is another's", &[], vec!["SET", "another:1:order:o", "x"]),
        ("empty it", &[], vec!["FLUSHALL"]),
        ("list all keys", &[], vec!["KEYS", "*"]),
        ("change its settings", &[], vec!["CONFIG", "SET", "maxmemory", "1"]),
        ("make users", &[], vec!["ACL", "SETUSER", "another"]),
        ("stop it", &[], vec!["SHUTDOWN"]),
        ("see what others do", &[], vec!["MONITOR"]),
    ];
    for (what, who, words) in powers {
        let mut able = Vec::new();
        for principal in ANYBODY {
            let answer = redis_as(&system.config.redis.of(principal), &words).await;
            if principal.at_redis(ns).is_none() {
                assert!(answer.contains("WRONGPASS"), "{principal} has no user: {answer}");
            } else if !answer.contains("NOPERM") {
                assert!(!answer.contains("\r\n-"), "{principal}, {what}: {answer}");
                able.push(principal);
            }
        }
        assert_eq!(names(&able), names(who), "who can {what}");
    }
    system.stop().await;
}
