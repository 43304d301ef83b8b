//! Every operation of the `OpenAPI` document, so that a new one is looked at by itself.

use serde_json::Value;

use super::*;

/// An id that fits every path, and that nothing has.
const NOBODY: &str = "0193b7a2-0000-7000-8000-000000000001";

/// The operations of the document: method, path with ids in it, roles; none of them, if it needs no
/// token.
async fn operations(edge: &Guarded<'_>) -> Vec<(String, String, Vec<String>)> {
    let document = edge.get("/openapi.json", None).await.body;
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{id}", NOBODY).replace("{sequence}", "1");
        for (method, operation) in item.as_object().expect("operations") {
            let roles = operation["x-roles"].as_array().into_iter().flatten();
            let roles: Vec<String> = roles.filter_map(Value::as_str).map(str::to_owned).collect();
            let secured = operation["security"][0].get("bearer").is_some();
            assert_eq!(secured, !roles.is_empty(), "{method} {path} says both or neither");
            for status in ["401", "403"] {
                let told = operation["responses"].get(status).is_some();
                assert!(told || !secured, "{method} {path} does not tell of {status}");
            }
            operations.push((method.clone(), path.clone(), roles));
        }
    }
    operations
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_does_anything_for_who_has_no_token_or_not_the_role() {
    let system = System::start().await;
    let edge = Guarded::open(&system).await;
    let operations = operations(&edge).await;
    let open: Vec<&str> = operations
        .iter()
        .filter(|(.., roles)| roles.is_empty())
        .map(|(_, path, _)| path.as_str())
        .collect();
    let product = format!("/v1/products/{NOBODY}");
    assert_eq!(open, ["/livez", "/readyz", "/v1/products", &product]);
    let stored = commands(&system).await;
    let all = Role::ALL.map(|role| (role, token("ann", role)));
    let mut refused = 0;
    for (method, path, roles) in operations.iter().filter(|(.., roles)| !roles.is_empty()) {
        let methods: &[&str] = if method == "get" { &["get", "head"] } else { &[method] };
        for method in methods {
            let answer = edge.request(method, path, None).send().await.expect("an answer");
            assert_eq!(answer.status(), 401, "{method} {path}");
            let challenge = answer.headers()["www-authenticate"].to_str().expect("a challenge");
            assert!(challenge.starts_with("Bearer"), "{method} {path}: {challenge}");
        }
        for (role, token) in &all {
            if !roles.iter().any(|it| it == role.as_str()) {
                assert_eq!(edge.status(method, path, Some(token)).await, 403, "{role:?} {path}");
                refused += 1;
            }
        }
    }
    assert!(refused > 20, "{refused}");
    assert_eq!(commands(&system).await, stored, "nothing was stored");
    for (method, path, roles) in &operations {
        for (role, token) in &all {
            if roles.iter().any(|it| it == role.as_str()) {
                let status = edge.status(method, path, Some(token)).await;
                assert!(![401, 403].contains(&status), "{role:?} {method} {path}: {status}");
            }
        }
        if roles.is_empty() {
            assert_ne!(edge.status(method, path, None).await, 401, "{path}");
        }
    }
    edge.close().await;
    system.stop().await;
}
