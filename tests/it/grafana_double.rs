//! A test double of Grafana's HTTP API and of the part of InfluxDB's API that the playbooks use. It keeps state,
//! requires credentials and refuses what the real servers refuse: 409 for a team, folder or data source that exists,
//! 412 for a dashboard's uid or version, 404 for an unknown uid, 422 for a bucket that exists.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};

pub const USER: &str = "admin";
pub const PASSWORD: &str = "grafana-secret-4711";
const BASIC: &str = "Basic YWRtaW46Z3JhZmFuYS1zZWNyZXQtNDcxMQ==";
pub const ADMIN_TOKEN: &str = "influx-admin-secret-0815";
pub const ORG: &str = "powerview";
pub const ORG_ID: &str = "6f9dd2f6ebb29ea7";

/// The permissions of a folder or dashboard: (kind, name or id, level). Levels are 1 view, 2 edit, 4 admin.
type Rights = Vec<Value>;

/// A user of Grafana.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct User {
    pub id: u64,
    pub mail: String,
    pub password: String,
    pub is_admin: bool,
    pub is_disabled: bool,
    /// Organisation -> role. The organisation of the teams is 1.
    pub orgs: BTreeMap<u64, String>,
    /// Ids of the teams.
    pub teams: Vec<u64>,
}

#[derive(Default)]
pub struct State {
    pub teams: Vec<(u64, String)>,
    pub users: Vec<User>,
    /// uid -> title, permissions
    pub folders: BTreeMap<String, (String, Rights)>,
    /// uid -> folder, model, own permissions
    pub dashboards: BTreeMap<String, (String, Value, Rights)>,
    /// name -> what Grafana returns, and the secrets, which it never returns
    pub data_sources: BTreeMap<String, (Value, Value)>,
    /// The uids of the alert rules.
    pub rules: Vec<String>,
    /// id -> name
    pub buckets: BTreeMap<String, String>,
    /// id -> authorization
    pub tokens: BTreeMap<String, Value>,
    /// All successful requests that changed something, as "METHOD path".
    pub changes: Vec<String>,
    /// All requests, as "METHOD path".
    pub requests: Vec<String>,
    /// The number of changes after which the answer is lost and the servers are unavailable.
    pub break_after: Option<usize>,
    next_id: u64,
}

impl State {
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn team_id(&self, name: &str) -> Option<u64> {
        self.teams.iter().find(|t| t.1 == name).map(|t| t.0)
    }

    pub fn add_team(&mut self, name: &str) -> u64 {
        let id = self.id();
        self.teams.push((id, name.into()));
        id
    }

    /// Adds a viewer of the organisation 1 who is in no team.
    pub fn add_user(&mut self, mail: &str) -> &mut User {
        let id = 100 + self.id();
        self.users.push(User {
            id,
            mail: mail.into(),
            password: "of-the-user".into(),
            orgs: BTreeMap::from([(1, "Viewer".to_owned())]),
            ..User::default()
        });
        self.users.last_mut().expect("a user")
    }

    pub fn user(&self, mail: &str) -> Option<&User> {
        self.users.iter().find(|u| u.mail == mail)
    }

    fn user_by_id(&mut self, id: &str) -> Option<&mut User> {
        self.users.iter_mut().find(|u| u.id.to_string() == id)
    }

    pub fn folder_uid(&self, title: &str) -> Option<String> {
        self.folders
            .iter()
            .find(|f| f.1.0 == title)
            .map(|f| f.0.clone())
    }

    pub fn dashboard(&self, title: &str) -> Option<(&String, &(String, Value, Rights))> {
        self.dashboards.iter().find(|d| d.1.1["title"] == title)
    }

    pub fn bucket_id(&self, name: &str) -> Option<String> {
        self.buckets
            .iter()
            .find(|b| b.1 == name)
            .map(|b| b.0.clone())
    }

    pub fn add_folder(&mut self, uid: &str, title: &str) {
        // The permissions of a new folder in Grafana: its creator is admin, editors edit, viewers view.
        let rights = vec![
            json!({"userId": 1, "teamId": 0, "permission": 4}),
            json!({"userId": 0, "teamId": 0, "role": "Editor", "permission": 2}),
            json!({"userId": 0, "teamId": 0, "role": "Viewer", "permission": 1}),
        ];
        self.folders.insert(uid.into(), (title.into(), rights));
    }

    /// Stores a data source, and returns it like Grafana: with the names of its secrets, except of empty ones.
    pub fn add_data_source(&mut self, name: &str, mut shown: Value, secrets: Value) -> Value {
        let stored = secrets.as_object().expect("secrets by name");
        let fields = stored
            .iter()
            .filter(|(_, secret)| **secret != "")
            .map(|(key, _)| (key.clone(), json!(true)))
            .collect();
        let source = shown.as_object_mut().expect("an object");
        source.remove("secureJsonData");
        source.insert("secureJsonFields".into(), Value::Object(fields));
        for (key, empty) in [
            ("user", json!("")),
            ("database", json!("")),
            ("basicAuth", json!(false)),
            ("basicAuthUser", json!("")),
            ("withCredentials", json!(false)),
        ] {
            if source.get(key).is_none_or(Value::is_null) {
                source.insert(key.into(), empty);
            }
        }
        self.data_sources
            .insert(name.into(), (shown.clone(), secrets));
        shown
    }

    pub fn add_dashboard(&mut self, uid: &str, folder: &str, mut model: Value) {
        model["id"] = json!(self.id());
        model["uid"] = json!(uid);
        model["version"] = json!(1);
        let creator = vec![json!({"userId": 1, "teamId": 0, "permission": 4})];
        self.dashboards
            .insert(uid.into(), (folder.into(), model, creator));
    }
}

/// Both servers on one port of 127.0.0.1. They stop on drop.
pub struct Double {
    pub url: String,
    state: Arc<Mutex<State>>,
    server: Arc<Server>,
}

impl Double {
    pub fn start() -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a port"));
        let url = format!("http://{}", server.server_addr());
        let state = Arc::new(Mutex::new(State::default()));
        for _ in 0..2 {
            let (server, state) = (server.clone(), state.clone());
            thread::spawn(move || {
                for request in server.incoming_requests() {
                    answer(request, &state);
                }
            });
        }
        Self { url, state, server }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the double panicked")
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.server.unblock();
        self.server.unblock();
    }
}

fn answer(mut request: Request, state: &Mutex<State>) {
    let mut body = String::new();
    let _ = request.as_reader().read_to_string(&mut body);
    let body = serde_json::from_str(&body).unwrap_or(Value::Null);
    let url = url::Url::parse("http://x")
        .unwrap()
        .join(request.url())
        .expect("a URL");
    let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
    let path: Vec<String> = url
        .path_segments()
        .into_iter()
        .flatten()
        .map(percent_decoded)
        .collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let authorization = request
        .headers()
        .iter()
        .find(|h| h.field.equiv("Authorization"))
        .map(|h| h.value.to_string())
        .unwrap_or_default();

    let mut state = state.lock().expect("no thread of the double panicked");
    let line = format!("{} {}", request.method(), request.url());
    state.requests.push(line.clone());
    let gone = state.break_after.is_some_and(|n| state.changes.len() >= n);
    let (status, shown) = if gone {
        (503, json!({"message": "gone"}))
    } else if path.starts_with(&["api", "v2"]) {
        if authorization == format!("Token {ADMIN_TOKEN}") {
            influxdb(&mut state, request.method(), &path[2..], &query, &body)
        } else {
            (
                401,
                json!({"code": "unauthorized", "message": "unauthorized access"}),
            )
        }
    } else if path == ["api", "health"] {
        (200, json!({"database": "ok"}))
    } else if authorization != BASIC {
        (401, json!({"message": "Invalid username or password"}))
    } else {
        grafana(&mut state, request.method(), &path[1..], &query, &body)
    };
    let (mut status, mut shown) = (status, shown);
    if !matches!(request.method(), Method::Get) && status < 300 {
        state.changes.push(line);
        if state.break_after.is_some_and(|n| state.changes.len() >= n) {
            (status, shown) = (502, json!({"message": "the answer got lost"}));
        }
    }
    drop(state);
    let json_type =
        Header::from_bytes("Content-Type", "application/json; charset=UTF-8").expect("a header");
    let response = Response::from_string(if status == 204 {
        String::new()
    } else {
        shown.to_string()
    });
    let _ = request.respond(response.with_status_code(status).with_header(json_type));
}

fn percent_decoded(segment: &str) -> String {
    let form = format!("x={}", segment.replace('+', "%2B"));
    url::form_urlencoded::parse(form.as_bytes())
        .next()
        .map(|p| p.1.into_owned())
        .unwrap_or_default()
}

type Answer = (u16, Value);
type Query = BTreeMap<String, String>;

fn message(status: u16, text: &str) -> Answer {
    (status, json!({"message": text}))
}

fn grafana(
    state: &mut State,
    method: &Method,
    path: &[&str],
    query: &Query,
    body: &Value,
) -> Answer {
    use Method::{Delete, Get, Post, Put};
    match (method, path) {
        (Get, ["org"]) => (200, json!({"id": 1, "name": "Main Org."})),

        (Get, ["teams", "search"]) => {
            let found: Vec<Value> = state
                .teams
                .iter()
                .filter(|t| {
                    query
                        .get("name")
                        .is_none_or(|n| n.eq_ignore_ascii_case(&t.1))
                })
                .map(|t| {
                    let members = state.users.iter().filter(|u| u.teams.contains(&t.0));
                    json!({"id": t.0, "orgId": 1, "name": t.1, "memberCount": members.count()})
                })
                .collect();
            (
                200,
                json!({"totalCount": found.len(), "teams": found, "page": 1, "perPage": 1000}),
            )
        }
        (Post, ["teams"]) => {
            let name = body["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                return message(400, "bad request data");
            }
            if state.team_id(name).is_some() {
                return message(409, "Team name taken");
            }
            let id = state.add_team(name);
            (200, json!({"message": "Team created", "teamId": id}))
        }
        (Delete, ["teams", id]) => {
            let before = state.teams.len();
            state.teams.retain(|t| t.0.to_string() != *id);
            if state.teams.len() == before {
                message(404, "Team not found")
            } else {
                message(200, "Team deleted")
            }
        }

        (_, ["users" | "admin" | "org" | "teams", _, ..]) => {
            users(state, method, path, query, body)
        }

        (Get, ["folders"]) => {
            let all = state
                .folders
                .iter()
                .map(|(uid, f)| json!({"id": 1, "uid": uid, "title": f.0}));
            (200, all.collect())
        }
        (Post, ["folders"]) => {
            let (uid, title) = (
                body["uid"].as_str().unwrap_or_default(),
                body["title"].as_str().unwrap_or_default(),
            );
            if title.is_empty() || uid.len() > 40 {
                return message(400, "folder title cannot be empty");
            }
            if state.folders.contains_key(uid) || state.folder_uid(title).is_some() {
                return message(
                    409,
                    "a folder with the same name already exists in the current location",
                );
            }
            state.add_folder(uid, title);
            (
                200,
                json!({"id": 1, "uid": uid, "title": title, "version": 1}),
            )
        }
        (Get, ["folders", uid]) => match state.folders.get(*uid) {
            Some(f) => (
                200,
                json!({"id": 1, "uid": uid, "title": f.0, "version": 1}),
            ),
            None => (
                404,
                json!({"message": "folder not found", "status": "not-found"}),
            ),
        },
        (Delete, ["folders", uid]) => match state.folders.remove(*uid) {
            Some(_) => {
                state.dashboards.retain(|_, d| d.0 != *uid);
                message(200, "Folder deleted")
            }
            None => message(404, "folder not found"),
        },
        (Get, ["folders", uid, "permissions"]) => match state.folders.get(*uid) {
            Some(f) => (200, json!(f.1)),
            None => message(404, "folder not found"),
        },
        (Post, ["folders", uid, "permissions"]) => {
            match (rights(body), state.folders.get_mut(*uid)) {
                (_, None) => message(404, "folder not found"),
                (None, _) => message(400, "bad request data"),
                (Some(new), Some(f)) => {
                    f.1 = new;
                    message(200, "Folder permissions updated")
                }
            }
        }

        (Get, ["search"]) => {
            let folder = query.get("folderUIDs").cloned().unwrap_or_default();
            let hits = state
                .dashboards
                .iter()
                .filter(|(_, d)| folder.is_empty() || d.0 == folder);
            (
                200,
                hits.map(|(uid, d)| json!({"uid": uid, "title": d.1["title"], "type": "dash-db"}))
                    .collect(),
            )
        }
        (Get, ["dashboards", "uid", uid]) => match state.dashboards.get(*uid) {
            Some(d) => (
                200,
                json!({"dashboard": d.1, "meta": {"folderUid": d.0, "version": d.1["version"]}}),
            ),
            None => message(404, "Dashboard not found"),
        },
        (Post, ["dashboards", "db"]) => save_dashboard(state, body),
        (Delete, ["dashboards", "uid", uid]) => match state.dashboards.remove(*uid) {
            Some(_) => message(200, "Dashboard deleted"),
            None => message(404, "Dashboard not found"),
        },
        (Get, ["dashboards", "uid", uid, "permissions"]) => match state.dashboards.get(*uid) {
            Some(d) => {
                let mut all = d.2.clone();
                for inherited in state.folders.get(&d.0).into_iter().flat_map(|f| &f.1) {
                    let mut inherited = inherited.clone();
                    inherited["inherited"] = json!(true);
                    all.push(inherited);
                }
                (200, json!(all))
            }
            None => message(404, "Dashboard not found"),
        },
        (Post, ["dashboards", "uid", uid, "permissions"]) => {
            match (rights(body), state.dashboards.get_mut(*uid)) {
                (_, None) => message(404, "Dashboard not found"),
                (None, _) => message(400, "bad request data"),
                (Some(new), Some(d)) => {
                    d.2 = new;
                    message(200, "Dashboard permissions updated")
                }
            }
        }

        (Get, ["datasources"]) => {
            let all = state.data_sources.values().map(|s| s.0.clone());
            (200, all.collect())
        }
        (Get, ["datasources", "name", name]) => match state.data_sources.get(*name) {
            Some(d) => (200, d.0.clone()),
            None => message(404, "Data source not found"),
        },
        (Get, ["datasources", "uid", uid]) => {
            let mut found = state.data_sources.values();
            match found.find(|d| d.0["uid"] == **uid) {
                Some(d) => (200, d.0.clone()),
                None => message(404, "Data source not found"),
            }
        }
        (Get, ["v1", "provisioning", "alert-rules"]) => {
            let rules = state.rules.iter();
            (200, rules.map(|uid| json!({"uid": uid})).collect())
        }
        (Post, ["datasources"]) => {
            let name = body["name"].as_str().unwrap_or_default().to_owned();
            let uid_taken = state
                .data_sources
                .values()
                .any(|d| d.0["uid"] == body["uid"]);
            if state.data_sources.contains_key(&name) || uid_taken {
                return message(409, "data source with the same name already exists");
            }
            save_data_source(state, &name, body, Value::Null, 1)
        }
        (Put, ["datasources", "uid", uid]) => {
            let Some(name) = state
                .data_sources
                .iter()
                .find(|d| d.1.0["uid"] == **uid)
                .map(|d| d.0.clone())
            else {
                return message(404, "Data source not found");
            };
            let (old, secrets) = state.data_sources[&name].clone();
            let mut body = body.clone();
            // Grafana does not change this column if it is empty in the request.
            if body["basicAuthUser"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
            {
                body["basicAuthUser"] = old["basicAuthUser"].clone();
            }
            if body["version"].as_u64() < old["version"].as_u64() {
                return message(
                    409,
                    "Datasource has already been updated by someone else. Please reload and try again",
                );
            }
            let version = old["version"].as_u64().unwrap_or(0) + 1;
            save_data_source(state, &name, &body, secrets, version)
        }
        (Delete, ["datasources", "uid", uid]) => {
            let before = state.data_sources.len();
            state.data_sources.retain(|_, d| d.0["uid"] != **uid);
            if state.data_sources.len() == before {
                message(404, "Data source not found")
            } else {
                message(200, "Data source deleted")
            }
        }
        _ => message(404, "Not found"),
    }
}

/// The requests about users and the members of teams.
fn users(state: &mut State, method: &Method, path: &[&str], query: &Query, body: &Value) -> Answer {
    use Method::{Delete, Get, Patch, Post, Put};
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_lowercase();
    let shown = |u: &User| {
        json!({"id": u.id, "email": u.mail, "login": u.mail, "name": u.mail, "orgId": 1, "isExternal": false,
            "isGrafanaAdmin": u.is_admin, "isDisabled": u.is_disabled})
    };
    let not_found = || message(404, "user not found");
    match (method, path) {
        (Get, ["users", "lookup"]) => {
            let wanted = query.get("loginOrEmail").cloned().unwrap_or_default();
            state
                .user(&wanted)
                .map_or_else(not_found, |u| (200, shown(u)))
        }
        (Get, ["users", id]) => state
            .user_by_id(id)
            .map_or_else(not_found, |u| (200, shown(u))),
        (Get, ["users", id, "orgs"]) => state.user_by_id(id).map_or_else(not_found, |u| {
            let org = |(id, role)| json!({"orgId": id, "name": format!("Org {id}"), "role": role});
            (200, u.orgs.iter().map(org).collect())
        }),
        (Get, ["users", id, "teams"]) => {
            let Some(user) = state.user_by_id(id).cloned() else {
                return not_found();
            };
            let of_user = state.teams.iter().filter(|t| user.teams.contains(&t.0));
            let team = |t: &(u64, String)| json!({"id": t.0, "orgId": 1, "name": t.1});
            (200, of_user.map(team).collect())
        }
        (Post, ["admin", "users"]) => {
            let (mail, password) = (text("email"), body["password"].as_str().unwrap_or_default());
            if state.user(&mail).is_some() {
                return message(412, "user already exists");
            }
            if mail.is_empty() || password.len() < 4 || body["OrgId"] != 1 {
                return message(400, "bad request data");
            }
            let user = state.add_user(&mail);
            user.password = password.into();
            (200, json!({"id": user.id, "message": "User created"}))
        }
        (Put, ["admin", "users", id, "password"]) => {
            let password = body["password"].as_str().unwrap_or_default().to_owned();
            state.user_by_id(id).map_or_else(not_found, |u| {
                u.password = password;
                message(200, "User password updated")
            })
        }
        (Post, ["admin", "users", id, what @ ("enable" | "disable")]) => {
            state.user_by_id(id).map_or_else(not_found, |u| {
                u.is_disabled = *what == "disable";
                message(200, "User changed")
            })
        }
        (Post, ["org", "users"]) => {
            let mail = text("loginOrEmail");
            let Some(user) = state.users.iter_mut().find(|u| u.mail == mail) else {
                return not_found();
            };
            if user.orgs.contains_key(&1) {
                return message(409, "User is already member of this organization");
            }
            let role = body["role"].as_str().unwrap_or_default();
            user.orgs.insert(1, role.into());
            message(200, "User added to organization")
        }
        (Patch, ["org", "users", id]) => {
            let role = body["role"].as_str().unwrap_or_default().to_owned();
            state.user_by_id(id).map_or_else(not_found, |u| {
                u.orgs.insert(1, role);
                message(200, "Organization user updated")
            })
        }
        (Get, ["teams", team, "members"]) => {
            let id: u64 = team.parse().unwrap_or_default();
            let members = state.users.iter().filter(|u| u.teams.contains(&id));
            let member =
                |u: &User| json!({"userId": u.id, "teamId": id, "email": u.mail, "login": u.mail});
            (200, members.map(member).collect())
        }
        (Post, ["teams", team, "members"]) => {
            let id: u64 = team.parse().unwrap_or_default();
            if !state.teams.iter().any(|t| t.0 == id) || !body["userId"].is_u64() {
                return message(400, "bad request data");
            }
            let Some(user) = state.user_by_id(&body["userId"].to_string()) else {
                return not_found();
            };
            if user.teams.contains(&id) {
                return message(400, "User is already added to this team");
            }
            user.teams.push(id);
            message(200, "Member added to Team")
        }
        (Delete, ["teams", team, "members", id]) => {
            let team: u64 = team.parse().unwrap_or_default();
            state.user_by_id(id).map_or_else(not_found, |u| {
                u.teams.retain(|t| *t != team);
                message(200, "Team Member removed")
            })
        }
        _ => message(404, "Not found"),
    }
}

/// The `items` of a permissions request. Each must have a level and exactly one holder.
fn rights(body: &Value) -> Option<Rights> {
    let items = body["items"].as_array()?;
    for item in items {
        let holders = [&item["userId"], &item["teamId"]]
            .iter()
            .filter(|h| h.as_u64().is_some_and(|n| n > 0))
            .count()
            + usize::from(item["role"].is_string());
        if holders != 1 || !matches!(item["permission"].as_u64(), Some(1 | 2 | 4)) {
            return None;
        }
    }
    Some(items.clone())
}

fn save_dashboard(state: &mut State, body: &Value) -> Answer {
    let model = &body["dashboard"];
    let (Some(title), Some(uid)) = (model["title"].as_str(), model["uid"].as_str()) else {
        return message(400, "Dashboard title cannot be empty");
    };
    let folder = body["folderUid"].as_str().unwrap_or_default();
    if uid.len() > 40 || title.trim() != title || title.is_empty() {
        return message(400, "bad request data");
    }
    if !folder.is_empty() && !state.folders.contains_key(folder) {
        return message(404, "folder not found");
    }
    if !model["id"].is_null() && !state.dashboards.values().any(|d| d.1["id"] == model["id"]) {
        return message(404, "Dashboard not found");
    }
    if state.dashboards.contains_key(uid) && body["overwrite"] != true {
        let text = "The dashboard has been changed by someone else";
        return (412, json!({"message": text, "status": "version-mismatch"}));
    }
    state.add_dashboard(uid, folder, model.clone());
    (200, json!({"uid": uid, "status": "success", "version": 1}))
}

/// Updates a data source like Grafana: secrets of the request replace the stored ones, so that only an empty text
/// erases one. Settings that the request lacks are empty afterwards.
fn save_data_source(
    state: &mut State,
    name: &str,
    body: &Value,
    mut secrets: Value,
    version: u64,
) -> Answer {
    if body["type"] != "influxdb" || body["access"] != "proxy" || !body["jsonData"].is_object() {
        return message(400, "bad request data");
    }
    if !secrets.is_object() {
        secrets = json!({});
    }
    for (key, secret) in body["secureJsonData"].as_object().into_iter().flatten() {
        secrets[key] = secret.clone();
    }
    let mut shown = body.clone();
    shown["id"] = json!(state.id());
    shown["version"] = json!(version);
    shown["readOnly"] = json!(false);
    let shown = state.add_data_source(name, shown, secrets);
    (
        200,
        json!({"datasource": shown, "id": shown["id"], "message": "Datasource added", "name": name}),
    )
}

/// The headers that Grafana sends to InfluxDB with a Flux query of this data source: its token, which custom headers
/// may replace. They are read by number up to the first one without a name, and sent if a secret is stored, even an
/// empty one.
pub fn headers_of_a_query(source: &Value, secrets: &Value) -> BTreeMap<String, String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let token = format!("Token {}", text(&secrets["token"]));
    let mut headers = BTreeMap::from([("authorization".to_owned(), token)]);
    let json_data = &source["jsonData"];
    for n in 1.. {
        let name = text(&json_data[format!("httpHeaderName{n}")]);
        if name.is_empty() {
            break;
        }
        let secret = &secrets[format!("httpHeaderValue{n}")];
        if secret.is_string() {
            headers.insert(name.to_lowercase(), text(secret));
        }
    }
    if json_data["oauthPassThru"] == true {
        headers.insert("authorization".into(), "Bearer of-the-viewer".into());
    }
    headers
}

/// The user and password that Grafana's data source proxy sends to InfluxDB for all viewers.
pub fn sign_in_of_the_proxy(source: &Value, secrets: &Value) -> (String, String) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    if source["basicAuth"] == true {
        let password = text(&secrets["basicAuthPassword"]);
        (text(&source["basicAuthUser"]), password)
    } else {
        (text(&source["user"]), text(&secrets["password"]))
    }
}

fn influxdb(
    state: &mut State,
    method: &Method,
    path: &[&str],
    query: &Query,
    body: &Value,
) -> Answer {
    use Method::{Delete, Get, Post};
    let not_found = |what: &str| {
        (
            404,
            json!({"code": "not found", "message": format!("{what} not found")}),
        )
    };
    match (method, path) {
        (Get, ["orgs"]) if query.get("org").is_some_and(|o| o == ORG) => {
            (200, json!({"orgs": [{"id": ORG_ID, "name": ORG}]}))
        }
        (Get, ["orgs"]) => not_found("organization name"),
        (Get, ["buckets"]) => {
            let name = query.get("name").cloned().unwrap_or_default();
            match state.bucket_id(&name) {
                Some(id) => (
                    200,
                    json!({"buckets": [{"id": id, "name": name, "orgID": ORG_ID}]}),
                ),
                None => not_found(&format!("bucket \"{name}\"")),
            }
        }
        (Post, ["buckets"]) => {
            let name = body["name"].as_str().unwrap_or_default().to_owned();
            if body["orgID"] != ORG_ID {
                return not_found("organization");
            }
            if name.starts_with('_') || name.contains('"') {
                return (
                    400,
                    json!({"code": "invalid", "message": format!("bucket name {name} is invalid")}),
                );
            }
            if state.bucket_id(&name).is_some() {
                return (
                    422,
                    json!({"code": "conflict", "message": format!("bucket with name {name} already exists")}),
                );
            }
            let id = format!("{:016x}", 0xb000 + state.id());
            state.buckets.insert(id.clone(), name.clone());
            (201, json!({"id": id, "name": name, "orgID": ORG_ID}))
        }
        (Get, ["authorizations"]) => (
            200,
            json!({"authorizations": state.tokens.values().cloned().collect::<Vec<_>>()}),
        ),
        (Get, ["authorizations", id]) => match state.tokens.get(*id) {
            Some(token) => (200, token.clone()),
            None => not_found("authorization"),
        },
        (Post, ["authorizations"]) => {
            let known = |p: &Value| {
                let resource = &p["resource"];
                resource["type"] != "buckets"
                    || resource["id"]
                        .as_str()
                        .is_some_and(|id| state.buckets.contains_key(id))
            };
            let permissions = body["permissions"].as_array().cloned().unwrap_or_default();
            if body["orgID"] != ORG_ID || permissions.is_empty() || !permissions.iter().all(known) {
                return (
                    400,
                    json!({"code": "invalid", "message": "unable to create authorization"}),
                );
            }
            let n = state.id();
            let id = format!("{:016x}", 0xa000 + n);
            let token = json!({"id": id, "token": format!("read-secret-{n}"), "status": "active", "orgID": ORG_ID,
                "org": ORG, "description": body["description"], "permissions": permissions});
            state.tokens.insert(id, token.clone());
            (201, token)
        }
        (Delete, ["authorizations", id]) => match state.tokens.remove(*id) {
            Some(_) => (204, Value::Null),
            None => not_found("authorization"),
        },
        _ => not_found("path"),
    }
}
