//! An API server of Kubernetes for tests: it keeps objects of any kind with resource versions,
//! refuses stale changes, reviews tokens, and records every request. Plain HTTP on loopback.
//!
//! It knows no schemas, no defaults and no rights: `recorded` says who has asked for what.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::oneshot;

const BODY_BYTES_MAX: usize = 4 << 20;

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The bearer's token.
    pub token: String,
    /// Such as `PATCH nodes/a/status`.
    pub what: String,
    pub body: Value,
}

/// Whom a token belongs to.
#[derive(Clone, Debug)]
struct Bearer {
    username: String,
    audience: String,
    extra: Value,
}

/// Kind (plural), namespace (empty for objects without one) and name.
type Key = (String, String, String);

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    version: u64,
    tokens: BTreeMap<String, Bearer>,
    recorded: Vec<Recorded>,
    /// The server answers nothing but 503.
    is_down: bool,
}

/// The server; it ends when this is dropped.
pub struct FakeApi {
    store: Arc<Mutex<Store>>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Where a request points.
struct Target {
    kind: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl FakeApi {
    pub fn start() -> FakeApi {
        FakeApi::on(std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    /// Serves on a listener of the test, perhaps on another machine.
    pub fn on(listener: std::net::TcpListener) -> FakeApi {
        let store = Arc::new(Mutex::new(Store::default()));
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new().fallback(answer).with_state(store.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        FakeApi { store, address, stop: Some(stop), thread: Some(thread) }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a file for `KUBECONFIG` whose bearer has this token.
    pub fn kubeconfig(&self, directory: &Path, token: &str) -> PathBuf {
        let file = directory.join(format!("kubeconfig-{token}"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{
                "name": "test", "cluster": { "server": format!("http://{}", self.address) }
            }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// A token of a service account, projected into a Pod on a node.
    pub fn give_token(&self, token: &str, username: &str, pod: &str, node: &str) {
        let extra = json!({
            "authentication.kubernetes.io/pod-name": [pod],
            "authentication.kubernetes.io/node-name": [node],
        });
        self.give(token, username, "holdfast", extra);
    }

    /// A token with any audience and any further words on its bearer.
    pub fn give(&self, token: &str, username: &str, audience: &str, extra: Value) {
        let (username, audience) = (username.to_owned(), audience.to_owned());
        self.store().tokens.insert(token.to_owned(), Bearer { username, audience, extra });
    }

    /// Puts an object, whatever was there.
    pub fn put(&self, kind: &str, namespace: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        self.store().keep((kind.to_owned(), namespace.to_owned(), name), &mut object);
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.store().objects.get(&key).cloned()
    }

    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.store().objects.remove(&key).is_some()
    }

    /// The names of all objects of a kind.
    #[allow(dead_code, reason = "for the tests of manifests")]
    pub fn names(&self, kind: &str) -> Vec<String> {
        let store = self.store();
        let of_kind = store.objects.keys().filter(|(found, ..)| found == kind);
        of_kind.map(|(_, _, name)| name.clone()).collect()
    }

    /// All requests so far.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.store().recorded.clone()
    }

    /// From now on, or no longer, every request fails with 503.
    pub fn set_down(&self, is_down: bool) {
        self.store().is_down = is_down;
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn answer(State(store): State<Arc<Mutex<Store>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let bearer = parts.headers.get("authorization").and_then(|it| it.to_str().ok());
    let token = bearer.and_then(|it| it.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    if store.is_down {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    if parts.uri.path() == "/version" {
        return success(&version());
    }
    let Some(target) = target(parts.uri.path()) else {
        return failure(StatusCode::NOT_FOUND, "NotFound");
    };
    let path = [Some(&target.kind), target.name.as_ref(), target.subresource.as_ref()];
    let path: Vec<&str> = path.into_iter().flatten().map(String::as_str).collect();
    let what = format!("{} {}", parts.method, path.join("/"));
    store.recorded.push(Recorded { token, what, body: body.clone() });
    store.carry_out(&parts.method, target, &query, body)
}

/// `/api/v1/...` or `/apis/GROUP/VERSION/...`, then `[namespaces/NS/]KIND[/NAME[/SUBRESOURCE]]`.
fn target(path: &str) -> Option<Target> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let rest = match words.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let at = |place: usize| rest.get(place).map(|word| (*word).to_owned());
    Some(Target { kind: at(0)?, namespace: namespace.into(), name: at(1), subresource: at(2) })
}

impl Store {
    fn keep(&mut self, key: Key, object: &mut Value) {
        self.version += 1;
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            meta["uid"] = format!("uid-{}", self.version).into();
        }
        if !key.1.is_empty() {
            meta["namespace"] = key.1.clone().into();
        }
        meta["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key, object.clone());
    }

    fn carry_out(
        &mut self,
        method: &Method,
        target: Target,
        query: &str,
        mut body: Value,
    ) -> Response {
        if target.kind == "tokenreviews" {
            return success(&self.review(body));
        }
        let Target { kind, namespace, name, .. } = target;
        let Some(name) = name else {
            return match *method {
                Method::GET => success(&self.list(&kind, &namespace, query)),
                Method::POST => {
                    if body["metadata"]["name"].is_null() {
                        body["metadata"]["name"] = format!("{kind}-{}", self.version).into();
                    }
                    let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    let key = (kind, namespace, name);
                    if self.objects.contains_key(&key) {
                        return failure(StatusCode::CONFLICT, "AlreadyExists");
                    }
                    self.keep(key, &mut body);
                    success(&body)
                }
                _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            };
        };
        let key = (kind, namespace, name);
        let Some(found) = self.objects.get(&key).cloned() else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        match *method {
            Method::GET => success(&found),
            Method::PUT => self.replace(key, &found, body),
            Method::PATCH => {
                if is_stale(&found, &body) {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                let mut object = found;
                merge(&mut object, &body);
                self.keep(key, &mut object);
                success(&object)
            }
            Method::DELETE => {
                let wanted = &body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != found["metadata"]["uid"] {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                self.objects.remove(&key);
                success(&found)
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn replace(&mut self, key: Key, found: &Value, mut object: Value) -> Response {
        if is_stale(found, &object) {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        object["metadata"]["uid"] = found["metadata"]["uid"].clone();
        self.keep(key, &mut object);
        success(&object)
    }

    fn list(&self, kind: &str, namespace: &str, query: &str) -> Value {
        let selector = |name: &str| {
            let found = query.split('&').find_map(|part| part.strip_prefix(name));
            let text = found?.replace("%2F", "/").replace("%3D", "=");
            text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
        };
        let (labels, fields) = (selector("labelSelector="), selector("fieldSelector="));
        let is_chosen = |object: &Value| {
            let found = |path: &str| {
                path.split('.').fold(object, |at, key| &at[key]).as_str().map(str::to_owned)
            };
            let label = |key: &str| object["metadata"]["labels"][key].as_str().map(str::to_owned);
            labels.as_ref().is_none_or(|(key, value)| label(key).as_ref() == Some(value))
                && fields.as_ref().is_none_or(|(key, value)| found(key).as_ref() == Some(value))
        };
        let items = self.objects.iter().filter(|((found, place, _), object)| {
            found == kind && (namespace.is_empty() || place == namespace) && is_chosen(object)
        });
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        let version = self.version.to_string();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version },
                "items": items })
    }

    fn review(&self, mut body: Value) -> Value {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        let wanted = body["spec"]["audiences"].as_array().cloned().unwrap_or_default();
        let bearer = self.tokens.get(token);
        let bearer = bearer.filter(|it| wanted.iter().any(|found| *found == it.audience));
        body["status"] = match bearer {
            None => json!({ "authenticated": false, "error": "invalid bearer token" }),
            Some(Bearer { username, audience, extra }) => json!({
                "authenticated": true, "audiences": [audience],
                "user": { "username": username, "extra": extra },
            }),
        };
        body
    }
}

fn is_stale(found: &Value, given: &Value) -> bool {
    let given = &given["metadata"]["resourceVersion"];
    !given.is_null() && *given != found["metadata"]["resourceVersion"]
}

/// A JSON merge patch (RFC 7396).
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    let fields = object.as_object_mut().expect("it is one");
    for (key, value) in patch {
        match value.is_null() {
            true => drop(fields.remove(key)),
            false => merge(fields.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

fn version() -> Value {
    let mut version = json!({ "major": "1", "minor": "34+", "gitVersion": "v1.34.1-test" });
    for unused in ["gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"] {
        version[unused] = json!("");
    }
    version
}

fn success(object: &Value) -> Response {
    response(StatusCode::OK, object)
}

fn failure(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("refused: {reason}"), "reason": reason, "code": code.as_u16(),
    });
    response(code, &status)
}

fn response(code: StatusCode, body: &Value) -> Response {
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(Body::from(body.to_string())).expect("a plain answer")
}
