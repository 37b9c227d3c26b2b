//! When two worlds are the same: the same objects less what differs from tenant to tenant and from try to try, that
//! is uid, resourceVersion, times, generations, assigned ports and addresses, and the bytes of key material.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kaas_pki::Certificate;
use serde_json::{Map, Value, json};

use crate::player::entry;
use crate::record::Record;
use crate::wire::Scope;

/// A world as text, an object an entry.
pub(crate) type Picture = BTreeMap<String, String>;

/// Everything of one tenant in the management cluster, and what was found inside it.
pub(crate) fn picture(record: &Record, scope: &Scope, found_inside: Vec<(String, Value)>) -> Picture {
    let (home, team) = (scope.home(), &scope.team);
    let inside = record.live(&home);
    let service = inside.get(&("Service", "kube-apiserver".to_owned()));
    let ports = service.and_then(|service| service.pointer("/spec/ports")?.as_array());
    let ports = ports.into_iter().flatten().filter_map(|port| port["nodePort"].as_u64()).collect();
    let authority = inside.get(&("Secret", "authority".to_owned()));
    let (beside, machines) = (record.live(team), record.live(&scope.machines()));
    // Names are the same in different places.
    let told = |kind: &str, name: &str, object: &Value| {
        let place = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let place = if place == scope.machines() { " of machines" } else { "" };
        format!("{kind} {name}{place}")
    };
    let all = || inside.iter().chain(&beside).chain(&machines);
    let mut eraser = Eraser::new(scope, ports);
    for ((kind, name), object) in all() {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let known = format!("UID of {}", told(kind, &eraser.text(name), object));
        eraser.uids.push((uid.to_owned(), known));
    }
    for (key, object) in &found_inside {
        let uid = object["metadata"]["uid"].as_str();
        eraser.uids.extend(uid.map(|uid| (uid.to_owned(), format!("UID of {key}"))));
    }
    let mut picture = Picture::new();
    for ((kind, name), object) in all() {
        let mut plain = (**object).clone();
        if *kind == "Secret" {
            plain["data"] = secret(object, authority.map(|found| &**found));
        }
        if let Some(history) = plain.pointer_mut("/status/history").and_then(Value::as_array_mut) {
            // A roll is told only if a status was written in the midst of it, which is a matter of time.
            history.retain(|entry| entry["type"] != "Roll");
        }
        let plain = eraser.object(plain);
        let key = told(kind, &eraser.text(name), object);
        picture.insert(key, serde_json::to_string_pretty(&plain).unwrap());
    }
    for (key, object) in found_inside {
        picture.insert(key, serde_json::to_string_pretty(&eraser.object(object)).unwrap());
    }
    picture
}

/// Lines that differ.
pub(crate) fn difference(wanted: &Picture, found: &Picture) -> String {
    let mut lines = Vec::new();
    for (key, content) in wanted {
        match found.get(key) {
            None => lines.push(format!("  {key} is missing")),
            Some(other) if other != content => {
                lines.push(format!("  {key} differs"));
                let [before, after] =
                    [content, other].map(|text| serde_json::from_str(text).unwrap_or_default());
                compare("", &before, &after, &mut lines);
            }
            Some(_) => {}
        }
    }
    lines.extend(
        found.keys().filter(|key| !wanted.contains_key(*key)).map(|key| format!("  {key} is one too many")),
    );
    lines.truncate(60);
    lines.join("\n")
}

fn compare(path: &str, wanted: &Value, found: &Value, lines: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(before), Value::Object(after)) => {
            let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}/{key}"), &of(before), &of(after), lines);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            before.iter().zip(after).enumerate().for_each(|(at, (before, after))| {
                compare(&format!("{path}/{at}"), before, after, lines);
            });
        }
        _ if wanted != found => lines.push(format!("    {path}: wanted {wanted}, found {found}")),
        _ => {}
    }
}

/// What a Secret's entries say, without their bytes.
fn secret(object: &Value, authority: Option<&Value>) -> Value {
    let keys = object["data"].as_object().into_iter().flatten().map(|(key, _)| key);
    let told = keys.map(|key| {
        let content = entry(object, key).unwrap_or_default();
        let text = match key.as_str() {
            "value" => json!(kubeconfig(&content, authority)),
            _ if key.ends_with(".crt") => certificate(&content, authority),
            _ if key.ends_with(".kubeconfig") => json!(content),
            _ => json!(content.lines().next()),
        };
        (key.clone(), text)
    });
    Value::Object(told.collect::<Map<_, _>>())
}

fn kubeconfig(content: &str, authority: Option<&Value>) -> Value {
    use base64::Engine as _;
    let document: Value = serde_yaml::from_str(content).unwrap_or_default();
    let decoded = document
        .pointer("/users/0/user/client-certificate-data")
        .and_then(|data| base64::engine::general_purpose::STANDARD.decode(data.as_str()?).ok())
        .and_then(|pem| String::from_utf8(pem).ok());
    json!({
        "server": document.pointer("/clusters/0/cluster/server"),
        "certificate": certificate(&decoded.unwrap_or_default(), authority),
    })
}

fn certificate(pem: &str, authority: Option<&Value>) -> Value {
    let Ok(found) = Certificate::parse(pem) else { return "cannot be read".into() };
    let signers = ["cluster-ca", "etcd-ca", "front-proxy-ca"].into_iter().filter(|name| {
        let signer = authority.and_then(|secret| entry(secret, &format!("{name}.crt")));
        signer.and_then(|pem| Certificate::parse(&pem).ok()).is_some_and(|signer| found.is_issued_by(&signer))
    });
    let hours = found.not_after.duration_since(jiff::Timestamp::now()).as_hours();
    json!({
        "name": found.common_name,
        "organizations": found.organizations,
        "dns": found.dns_names,
        "addresses": found.ip_addresses,
        "signed by": signers.collect::<Vec<_>>(),
        // Rounded up: the hour may turn in the middle of a run.
        "days left": (hours + 23) / 24,
    })
}

struct Eraser<'a> {
    scope: &'a Scope,
    /// Node ports.
    ports: Vec<u64>,
    /// UIDs and what stands for them: who is meant must stay the same.
    uids: Vec<(String, String)>,
}

impl<'a> Eraser<'a> {
    fn new(scope: &'a Scope, ports: Vec<u64>) -> Self {
        Eraser { scope, ports, uids: Vec::new() }
    }

    fn object(&self, mut object: Value) -> Value {
        let generation = object.pointer("/metadata/generation").cloned();
        // Known from where it stands; items of lists come without.
        if let Some(object) = object.as_object_mut() {
            object.remove("apiVersion");
            object.remove("kind");
        }
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
                metadata.remove(field);
            }
        }
        self.value(object, generation.as_ref())
    }

    fn value(&self, value: Value, generation: Option<&Value>) -> Value {
        match value {
            Value::Object(map) => {
                let erased = map.into_iter().map(|(key, value)| {
                    let value = match key.as_str() {
                        "observedGeneration" if Some(&value) == generation => "current".into(),
                        "clusterIP" | "clusterIPs" if value != "None" => "assigned".into(),
                        // Of a ControllerRevision: it counts what the life before has stored.
                        "revision" if value.is_u64() => "counted".into(),
                        // The endpoint's own are looked for by their numbers, wherever they stand.
                        "nodePort" if !value.as_u64().is_some_and(|port| self.ports.contains(&port)) => {
                            "assigned".into()
                        }
                        _ => self.value(value, generation),
                    };
                    (self.text(&key), value)
                });
                // Sorted, whatever the map's own order.
                Value::Object(erased.collect::<BTreeMap<_, _>>().into_iter().collect())
            }
            Value::Array(list) => list.into_iter().map(|value| self.value(value, generation)).collect(),
            Value::String(text) => self.text(&text).into(),
            Value::Number(number) if number.as_u64().is_some_and(|port| self.ports.contains(&port)) => {
                "PORT".into()
            }
            other => other,
        }
    }

    fn text(&self, text: &str) -> String {
        if text.parse::<jiff::Timestamp>().is_ok() {
            return "TIME".into();
        }
        if text
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback() && address != Ipv4Addr::LOCALHOST)
        {
            return "POD".into();
        }
        let mut text = text.replace(&self.scope.uid, "UID").replace(&self.scope.team, "TEAM");
        if text.len() >= 36 {
            self.uids.iter().for_each(|(uid, told)| text = text.replace(uid, told));
        }
        for port in &self.ports {
            text = text.replace(&format!(":{port}"), ":PORT");
        }
        without_hashes(&text)
    }
}

/// Hashes cover the tenant's identity: each run of twelve or more hexadecimal digits is one.
pub(crate) fn without_hashes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    for character in text.chars().map(Some).chain([None]) {
        match character {
            Some(digit) if digit.is_ascii_digit() || ('a'..='f').contains(&digit) => run.push(digit),
            other => {
                out.push_str(if run.len() >= 12 { "HASH" } else { &run });
                run.clear();
                out.extend(other);
            }
        }
    }
    out
}
