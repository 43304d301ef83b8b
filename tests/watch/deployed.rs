//! What is in `deploy/` for Prometheus and Grafana.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use promql_parser::parser::{self, Expr};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> Vec<Value> {
    let groups = yaml("deploy/prometheus/rules.yaml")["groups"].clone();
    let groups = groups.as_array().expect("groups");
    groups.iter().flat_map(|it| it["rules"].as_array().expect("rules").clone()).collect()
}

/// All expressions, with the file that has them.
pub fn expressions() -> Vec<(&'static str, String)> {
    let (board, alerts) =
        ("deploy/grafana/dashboards/millrace.json", "deploy/prometheus/rules.yaml");
    let mut found = Vec::new();
    for rule in rules() {
        found.push((alerts, rule["expr"].as_str().expect("an expression").to_owned()));
    }
    let dashboard: Value = serde_json::from_str(&read(board)).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((board, target["expr"].as_str().expect("an expression").to_owned()));
        }
    }
    found
}

/// The metrics that an expression names.
pub fn metrics_in(expression: &str) -> BTreeSet<String> {
    struct Names(BTreeSet<String>);
    impl ExprVisitor for Names {
        type Error = std::convert::Infallible;
        fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Self::Error> {
            let selector = match expression {
                Expr::VectorSelector(selector) => Some(selector),
                Expr::MatrixSelector(matrix) => Some(&matrix.vs),
                _ => None,
            };
            self.0.extend(selector.and_then(|selector| selector.name.clone()));
            Ok(true)
        }
    }
    let parsed = parser::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut names = Names(BTreeSet::new());
    walk_expr(&mut names, &parsed).expect("it cannot fail");
    assert!(!names.0.is_empty(), "{expression} names no metric");
    names.0
}

/// The anchor of a heading, as GitHub and others make it.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
            kept.map(|it| if it == ' ' { '-' } else { it }).collect()
        })
        .collect()
}

#[test]
fn every_alert_can_be_evaluated_and_leads_to_what_to_do() {
    let anchors = anchors(&read("docs/operations.md"));
    let mut seen = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().expect("a name").to_owned();
        metrics_in(rule["expr"].as_str().expect("an expression"));
        let runbook = rule["annotations"]["runbook"].as_str().expect("a runbook");
        let anchor = runbook.strip_prefix("docs/operations.md#").expect("a heading of the runbook");
        assert!(anchors.contains(anchor), "{name}: there is no heading for {runbook}");
        assert!(rule["annotations"]["summary"].is_string(), "{name} says nothing");
        assert!(
            ["critical", "warning", "info"]
                .contains(&rule["labels"]["severity"].as_str().expect("a severity"))
        );
        if let Some(time) = rule["for"].as_str() {
            promql_parser::util::parse_duration(time).expect("a duration");
        }
        assert!(seen.insert(name), "two alerts of one name");
    }
    assert!(seen.len() > 8);
}

#[test]
fn prometheus_asks_the_services_at_the_port_where_they_tell() {
    let compose = yaml("compose.yaml");
    let services = compose["services"].as_object().expect("services");
    let jobs = yaml("deploy/prometheus/prometheus.yaml");
    let discovery = &jobs["scrape_configs"][0]["dns_sd_configs"][0];
    let asked: BTreeSet<&str> =
        discovery["names"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    let tells = |service: &&str| {
        let command = &services[*service]["command"][0];
        command == "api" || command == "worker"
    };
    let telling: BTreeSet<&str> = services.keys().map(String::as_str).filter(tells).collect();
    assert_eq!(asked, telling);
    for service in asked {
        let listens = services[service]["environment"]["MILLRACE_METRICS"].as_str();
        let port = listens.and_then(|it| it.rsplit(':').next()).expect("a port");
        assert_eq!(discovery["port"].to_string(), port, "{service}");
    }
    // The files that the configuration names are where compose puts them.
    assert_eq!(jobs["rule_files"][0], "/etc/prometheus/rules.yaml");
    let mounts = services["prometheus"]["volumes"].as_array().expect("volumes");
    assert!(mounts.contains(&"./deploy/prometheus:/etc/prometheus:ro".into()));
    assert!(root().join("deploy/prometheus/rules.yaml").exists());
}

#[test]
fn what_watches_is_reached_from_this_machine_only_and_has_no_password_of_its_own() {
    let compose = yaml("compose.yaml");
    for (name, service) in compose["services"].as_object().expect("services") {
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = port.as_str().expect("a port");
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        let image = service["image"].as_str().unwrap_or_default();
        assert!(
            image.contains(':') && !image.ends_with(":latest"),
            "{name}: {image} is not pinned"
        );
    }
    let grafana = &compose["services"]["grafana"]["environment"];
    assert_eq!(grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"], "Viewer");
    assert_eq!(grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"], "true");
    assert_eq!(grafana["GF_AUTH_DISABLE_LOGIN_FORM"], "true");
}
