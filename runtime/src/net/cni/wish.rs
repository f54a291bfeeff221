//! What a pod's plugins are told beside their configuration: CNI_ARGS and the capability arguments. Pure.
//!
//! Capability arguments after the conventions of the CNI project: portMappings, bandwidth, ipRanges, dns, mac, ips,
//! aliases, cgroupPath, and the pod's annotations as containerd and CRI-O pass them on.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value, json};

use crate::{Error, Kind, Result, error::Cause, net::HostPort};

/// What a pod asks of its network; plain data, so that this room need not know CRI.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    pub ports: Vec<HostPort>,
    pub dns: Dns,
    /// The pod's cgroup, as a path in a hierarchy.
    pub cgroup: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Kubernetes' annotations for a pod's bandwidth, bits per second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Ours: an address or several, separated by commas, and a link address.
pub const IPS: &str = "berth.dev/ips";
const MAC: &str = "berth.dev/mac";

impl Wish {
    /// The addresses that the pod is to have, where it says so.
    ///
    /// # Errors
    /// `Invalid` for what is none.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let words = self.annotations.get(IPS).map(|words| words.split(',')).into_iter().flatten();
        words.map(|word| word.trim().parse().map_err(|_| not_understood(IPS, word))).collect()
    }
}

/// CNI_ARGS as pairs.
///
/// # Errors
/// `Invalid` for a name that would be read as more than one pair.
pub fn arguments(wish: &Wish, id: &str) -> Result<Vec<(String, String)>> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &wish.namespace),
        ("K8S_POD_NAME", &wish.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", &wish.uid),
    ];
    let pair = |(name, value): (&str, &str)| match value.contains([';', '=', '\0']) {
        true => {
            let cause = "network plugins can't be told of a value with a semicolon or an equals sign";
            Err(Error::invalid("pass to network plugins", format!("{name} {value:?}"), cause))
        }
        false => Ok((name.to_owned(), value.to_owned())),
    };
    pairs.into_iter().map(pair).collect()
}

/// Every capability argument that there is something to say in.
///
/// # Errors
/// `Invalid` for an annotation that can't be understood.
pub fn capabilities(wish: &Wish, pod_ranges: &[String]) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    if !wish.ports.is_empty() {
        all.insert("portMappings".into(), wish.ports.iter().map(mapping).collect());
    }
    if let Some(bandwidth) = bandwidth(&wish.annotations)? {
        all.insert("bandwidth".into(), bandwidth);
    }
    if !pod_ranges.is_empty() {
        let ranges: Vec<Value> = pod_ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        all.insert("ipRanges".into(), ranges.into());
    }
    if wish.dns != Dns::default() {
        let Dns { servers, searches, options } = &wish.dns;
        all.insert("dns".into(), json!({ "servers": servers, "searches": searches, "options": options }));
    }
    if let Some(mac) = wish.annotations.get(MAC) {
        all.insert("mac".into(), json!(link_address(mac)?));
    }
    if let Some(ips) = wish.annotations.get(IPS) {
        let ips: Vec<String> = ips.split(',').map(|ip| address(ip.trim())).collect::<Result<_>>()?;
        all.insert("ips".into(), ips.into());
    }
    if !wish.name.is_empty() {
        all.insert("aliases".into(), json!([wish.name]));
    }
    if !wish.cgroup.is_empty() {
        all.insert("cgroupPath".into(), json!(wish.cgroup));
    }
    if !wish.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(wish.annotations));
    }
    Ok(all)
}

fn mapping(port: &HostPort) -> Value {
    let address = port.address.map(|address| address.to_string()).unwrap_or_default();
    json!({
        "hostPort": port.host,
        "containerPort": port.pod,
        "protocol": port.protocol.to_string(),
        "hostIP": address,
    })
}

/// Bits per second, to the pod and from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    pub ingress: Option<u64>,
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// What the pod's annotations ask for.
    ///
    /// # Errors
    /// `Invalid` for one that can't be understood.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let read = |annotation| {
            let text = annotations.get(annotation);
            text.map(|text: &String| bits(text).ok_or_else(|| not_understood(annotation, text))).transpose()
        };
        Ok(Self { ingress: read(INGRESS)?, egress: read(EGRESS)? })
    }
}

/// Both ways; a burst without bound, as Kubernetes itself gave the plugin.
fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>> {
    let Bandwidth { ingress, egress } = Bandwidth::of(annotations)?;
    let mut told = Map::new();
    for (bits, rate, burst) in
        [(ingress, "ingressRate", "ingressBurst"), (egress, "egressRate", "egressBurst")]
    {
        if let Some(bits) = bits {
            told.insert(rate.into(), json!(bits));
            told.insert(burst.into(), json!(u32::MAX));
        }
    }
    Ok(if told.is_empty() { None } else { Some(Value::Object(told)) })
}

/// A quantity of Kubernetes, 1k to 1P as its validation has it.
fn bits(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 12] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("e3", 1_000),
        ("e6", 1_000_000),
    ];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) =
        unit.map_or((text, 1), |(unit, factor)| (&text[..text.len() - unit.len()], *factor));
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = number.parse().ok().filter(|_| plain)?;
    let bits = number * factor as f64;
    (1e3..=1e15).contains(&bits).then_some(bits as u64)
}

fn link_address(text: &str) -> Result<&str> {
    let parts: Vec<&str> = text.split(':').collect();
    let right =
        parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok());
    if right { Ok(text) } else { Err(not_understood(MAC, text)) }
}

fn address(text: &str) -> Result<String> {
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "0"));
    match (ip.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(_), Ok(0..=128)) => Ok(text.to_owned()),
        _ => Err(not_understood(IPS, text)),
    }
}

fn not_understood(annotation: &str, text: &str) -> Error {
    Error::new(Kind::Invalid, "read annotation", annotation)
        .because(Cause(format!("{text:.64?} is not what it takes")))
        .hint("bandwidths are 1k to 1P bits per second; addresses are separated by commas")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(pairs: &[(&str, &str)]) -> Wish {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Wish { annotations, ..Wish::default() }
    }

    #[test]
    fn a_pods_wishes_become_capability_arguments() {
        let mut wish = annotated(&[
            (INGRESS, "10M"),
            (EGRESS, "1.5Gi"),
            (IPS, "10.0.0.5/24, fd00::5"),
            (MAC, "02:00:00:00:00:01"),
        ]);
        wish.name = "web".into();
        wish.ports = vec!["tcp *:80 8080".parse().unwrap(), "sctp 10.0.0.1:9 9".parse().unwrap()];
        wish.dns.servers = vec!["10.0.0.10".into()];
        let all = capabilities(&wish, &["10.2.0.0/24".into(), "fd02::/64".into()]).unwrap();
        assert_eq!(
            all["portMappings"],
            json!([{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""},
                   {"hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "10.0.0.1"}])
        );
        assert_eq!(all["bandwidth"]["ingressRate"], 10_000_000);
        assert_eq!(all["bandwidth"]["egressRate"], 1_610_612_736_u64);
        assert_eq!(all["bandwidth"]["egressBurst"], u32::MAX);
        assert_eq!(all["ipRanges"], json!([[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd02::/64"}]]));
        assert_eq!(all["ips"], json!(["10.0.0.5/24", "fd00::5"]));
        assert_eq!((&all["mac"], &all["aliases"]), (&json!("02:00:00:00:00:01"), &json!(["web"])));
        assert!(!all.contains_key("cgroupPath"));
        assert!(capabilities(&Wish::default(), &[]).unwrap().is_empty());
    }

    #[test]
    fn annotations_that_say_nothing_are_refused() {
        for (key, value) in
            [(INGRESS, "fast"), (INGRESS, "-1M"), (EGRESS, "1"), (EGRESS, "2P"), (IPS, "x"), (MAC, "02:00")]
        {
            let error = capabilities(&annotated(&[(key, value)]), &[]).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.chain().contains(key), "{}", error.chain());
        }
    }

    #[test]
    fn arguments_are_pairs_and_nothing_hides_in_one() {
        let wish = Wish { name: "web".into(), namespace: "d".into(), uid: "u".into(), ..Wish::default() };
        let pairs = arguments(&wish, "id").unwrap();
        assert_eq!(pairs[0], ("IgnoreUnknown".into(), "1".into()));
        assert_eq!(pairs[3], ("K8S_POD_INFRA_CONTAINER_ID".into(), "id".into()));
        let hostile = Wish { name: "x;K8S_POD_NAMESPACE=kube-system".into(), ..wish };
        assert_eq!(arguments(&hostile, "id").unwrap_err().kind, Kind::Invalid);
    }
}
