//! Versions of CNI and their results: one is turned into another, unknown fields and all. Pure.
//!
//! ```text
//! 0.1.0, 0.2.0   {"ip4": {"ip", "gateway", "routes"}, "ip6", "dns"}
//! 0.3.0 … 0.4.0  {"interfaces", "ips": [{"version": "4", "address", "gateway", "interface"}], "routes", "dns"}
//! 1.0.0, 1.1.0   the same without ips[].version
//! ```

use std::net::IpAddr;

use serde_json::{Map, Value, json};

/// What is spoken to plugins. Older ones have no lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
        all.into_iter().find(|version| version.text() == text)
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// CHECK, and DEL that is told the result of ADD.
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// GC and STATUS.
    pub fn has_gc(self) -> bool {
        self >= Self::V1_1_0
    }
}

/// Turns a plugin's result, of whatever version it says, into one of `wanted`.
///
/// # Errors
/// Why it is no result.
pub fn convert(result: Value, wanted: Version) -> Result<Value, String> {
    let Value::Object(mut object) = result else { return Err("it is no JSON object".into()) };
    let said = match object.get("cniVersion") {
        Some(Value::String(version)) if !version.is_empty() => version.clone(),
        // libcni takes one that says nothing for the first there was.
        Some(Value::String(_)) | None => "0.1.0".to_owned(),
        Some(other) => return Err(format!("its cniVersion is {other}")),
    };
    match said.as_str() {
        "0.1.0" | "0.2.0" => {
            if !object.contains_key("ips") {
                object = from_first(&object)?;
            }
        }
        other if Version::parse(other).is_some() => {}
        other => return Err(format!("its cniVersion {other:?} is not known; 0.1.0 to 1.1.0 are")),
    }
    if let Some(ips) = object.get_mut("ips") {
        let Value::Array(ips) = ips else {
            // Go writes an empty list as null.
            if !ips.is_null() {
                return Err("its ips are no list".into());
            }
            object.remove("ips");
            object.insert("cniVersion".into(), json!(wanted.text()));
            return Ok(Value::Object(object));
        };
        for ip in ips {
            let family = match address(ip)? {
                IpAddr::V4(_) => "4",
                IpAddr::V6(_) => "6",
            };
            let Value::Object(ip) = ip else { return Err("one of its ips is no JSON object".into()) };
            match wanted < Version::V1_0_0 {
                true => ip.insert("version".into(), json!(family)),
                false => ip.remove("version"),
            };
        }
    }
    object.insert("cniVersion".into(), json!(wanted.text()));
    Ok(Value::Object(object))
}

/// The pod's addresses in a result, in its order: those of interfaces in the pod, or of none in particular.
///
/// # Errors
/// Why it is no result.
pub fn pod_ips(result: &Value) -> Result<Vec<IpAddr>, String> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let in_pod = |ip: &Value| {
        let Some(index) = ip.get("interface").and_then(Value::as_u64) else { return true };
        let interface = interfaces.and_then(|all| all.get(usize::try_from(index).ok()?));
        let sandbox = interface.and_then(|interface| interface.get("sandbox")).and_then(Value::as_str);
        sandbox.is_none_or(|sandbox| !sandbox.is_empty()) || interface.is_none()
    };
    let ips = result.get("ips").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut found = Vec::new();
    for ip in ips.iter().filter(|ip| in_pod(ip)) {
        let ip = address(ip)?;
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

fn address(ip: &Value) -> Result<IpAddr, String> {
    let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    address.parse().map_err(|_| format!("the address {text:?} is none"))
}

fn from_first(old: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for family in ["ip4", "ip6"] {
        let Some(Value::Object(config)) = old.get(family) else { continue };
        let mut ip = Map::new();
        ip.insert("address".into(), config.get("ip").cloned().unwrap_or_default());
        if let Some(gateway) = config.get("gateway") {
            ip.insert("gateway".into(), gateway.clone());
        }
        ips.push(Value::Object(ip));
        match config.get("routes") {
            Some(Value::Array(more)) => routes.extend(more.iter().cloned()),
            Some(Value::Null) | None => {}
            Some(_) => return Err(format!("{family}.routes is no list")),
        }
    }
    let mut object = Map::new();
    object.insert("ips".into(), Value::Array(ips));
    object.insert("routes".into(), Value::Array(routes));
    object.insert("dns".into(), old.get("dns").cloned().unwrap_or_else(|| json!({})));
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_every_version_become_those_of_every_other() {
        let first = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1",
            "routes": [{"dst": "0.0.0.0/0"}]}, "ip6": {"ip": "fd00::5/64"}});
        let third = json!({"cniVersion": "0.3.1", "interfaces": [{"name": "eth0", "sandbox": "/n", "kept": 1}],
            "ips": [{"version": "4", "address": "10.1.0.5/16", "interface": 0},
                    {"version": "6", "address": "fd00::5/64", "interface": 0}]});
        let expected: Vec<IpAddr> = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        for result in [first, third] {
            for wanted in [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
                let converted = convert(result.clone(), wanted).unwrap();
                assert_eq!(converted["cniVersion"], wanted.text());
                assert_eq!(pod_ips(&converted).unwrap(), expected);
                assert_eq!(converted["ips"][1].get("version").is_some(), wanted < Version::V1_0_0);
                assert_eq!(convert(converted.clone(), wanted).unwrap(), converted);
            }
        }
    }

    #[test]
    fn addresses_of_interfaces_on_the_node_are_not_the_pods() {
        let result = json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1", "sandbox": ""}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.1/24", "interface": 1}, {"address": "10.0.0.9/24", "interface": 2},
                    {"address": "10.0.0.9/24"}, {"address": "fd00::1/64"}]});
        let ips = pod_ips(&result).unwrap();
        assert_eq!(ips, ["10.0.0.9".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(pod_ips(&json!({"ips": null})).unwrap(), Vec::<IpAddr>::new());
    }

    #[test]
    fn garbage_is_no_result() {
        for garbage in [
            json!([]),
            json!(7),
            json!({"cniVersion": "2.0.0"}),
            json!({"cniVersion": 1}),
            json!({"cniVersion": "1.0.0", "ips": 7}),
            json!({"cniVersion": "1.0.0", "ips": [7]}),
            json!({"cniVersion": "1.0.0", "ips": [{"address": "x"}]}),
            json!({"ip4": {"ip": 7}}),
            json!({"ip4": {"ip": "10.0.0.1/8", "routes": 1}}),
        ] {
            assert!(convert(garbage.clone(), Version::V1_0_0).is_err(), "{garbage}");
        }
        assert!(convert(json!({}), Version::V1_0_0).is_ok());
        assert!(convert(json!({"cniVersion": "1.0.0", "ips": null}), Version::V0_4_0).is_ok());
    }
}
