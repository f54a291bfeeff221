//! network create, ls, rm, inspect.

use berth_cri::berth::{
    CreateNetworkRequest, InspectNetworkRequest, InspectNetworkResponse, ListNetworksRequest, Network,
    NetworkSpec, RemoveNetworkRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    command::Shape,
    connect::Daemon,
    failure::Result,
    flags::text,
    human,
    inspect::time,
    lifecycle,
    output::{self, Format, Notation},
    parse,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Makes a network for containers, kept apart from all others
    Create(Create),
    /// Lists networks
    #[command(visible_alias = "list")]
    Ls(List),
    /// Removes networks that no container is in
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Prints all about networks and who is in them, in docker's JSON
    Inspect(Inspect),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its addresses, IPv4, IPv6 or one of each; free ones are found otherwise
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<String>,
    /// The node's own address on it; the first of its subnet otherwise
    #[arg(long, value_name = "IP")]
    gateway: Vec<String>,
    /// Nothing beside it and this host is reached from it
    #[arg(long)]
    internal: bool,
    /// NAME=VALUE, kept with it
    #[arg(short, long, value_name = "LABEL", value_parser = text(parse::label))]
    label: Vec<(String, String)>,
    /// The longest packet; that of the link with the default route otherwise
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    mtu: u32,
    #[command(flatten)]
    shape: Shape,
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Names only
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    #[command(flatten)]
    shape: Shape,
}

pub(super) async fn network(daemon: &Daemon, verb: Verb, format: Format) -> Result<u8> {
    match verb {
        Verb::Create(flags) => create(daemon, flags, format).await,
        Verb::Ls(flags) => list(daemon, flags, format).await,
        Verb::Rm(flags) => rm(daemon, flags, format).await,
        Verb::Inspect(flags) => inspect(daemon, flags, format).await,
    }
}

async fn create(daemon: &Daemon, flags: Create, format: Format) -> Result<u8> {
    let format = flags.shape.or(format);
    let spec = NetworkSpec {
        name: flags.name,
        subnets: flags.subnet,
        gateways: flags.gateway,
        internal: flags.internal,
        labels: flags.label.into_iter().collect(),
        mtu: flags.mtu,
    };
    let created = daemon.networks().create(CreateNetworkRequest { spec: Some(spec) }).await?.into_inner();
    output::show(format, "berth.v1.CreateNetworkResponse", &created, || {
        created.network.clone().unwrap_or_default().name + "\n"
    })?;
    Ok(0)
}

async fn list(daemon: &Daemon, flags: List, format: Format) -> Result<u8> {
    let listed = daemon.networks().list(ListNetworksRequest {}).await?.into_inner();
    if flags.quiet {
        let names: String = listed.networks.iter().map(|network| network.name.clone() + "\n").collect();
        output::print(names)?;
        return Ok(0);
    }
    output::show(flags.shape.or(format), "berth.v1.ListNetworksResponse", &listed, || {
        let row = |network: &Network| {
            let id = if flags.no_trunc { &network.id } else { human::short_id(&network.id) };
            let subnets: Vec<&str> = network.subnets.iter().map(|one| one.subnet.as_str()).collect();
            let (name, driver) = (network.name.clone(), network.driver.clone());
            let scope = if network.internal { "internal" } else { "local" };
            [id.to_owned(), name, driver, scope.into(), subnets.join(", ")]
        };
        let header = ["NETWORK ID", "NAME", "DRIVER", "SCOPE", "SUBNETS"];
        output::table(header, listed.networks.iter().map(row))
    })?;
    Ok(0)
}

async fn rm(daemon: &Daemon, flags: Rm, format: Format) -> Result<u8> {
    let format = flags.shape.or(format);
    lifecycle::each(flags.networks, async |network| {
        let request = RemoveNetworkRequest { network: network.to_owned() };
        let removed = daemon.networks().remove(request).await?.into_inner();
        output::show(format, "berth.v1.RemoveNetworkResponse", &removed, || format!("{network}\n"))
    })
    .await
}

/// Prints those there are; one that is missing is a failure all the same.
async fn inspect(daemon: &Daemon, flags: Inspect, format: Format) -> Result<u8> {
    let (mut found, mut missing) = (Vec::new(), None);
    for network in flags.networks {
        match daemon.networks().inspect(InspectNetworkRequest { network }).await {
            Ok(told) => found.push(document(&told.into_inner())),
            Err(status) => missing = Some(status),
        }
    }
    // There are no columns for this much: a person gets JSON as well.
    let notation = flags.shape.or(format).notation().unwrap_or(Notation::Json);
    output::print(output::write(notation, &Value::Array(found))?)?;
    missing.map_or(Ok(0), |status| Err(status.into()))
}

/// docker's main keys, so that scripts written for it find what they look for.
fn document(told: &InspectNetworkResponse) -> Value {
    let network = told.network.clone().unwrap_or_default();
    let of_family = |ips: &[String], six: bool| -> String {
        ips.iter().find(|ip| ip.contains(':') == six).cloned().unwrap_or_default()
    };
    let subnets: Vec<Value> =
        network.subnets.iter().map(|one| json!({ "Subnet": one.subnet, "Gateway": one.gateway })).collect();
    let containers: serde_json::Map<String, Value> = told
        .members
        .iter()
        .map(|member| {
            let about = json!({
                "Name": member.name,
                "IPv4Address": of_family(&member.ips, false),
                "IPv6Address": of_family(&member.ips, true),
            });
            (member.id.clone(), about)
        })
        .collect();
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": time(network.created_at),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv6": network.subnets.iter().any(|one| one.subnet.contains(':')),
        "IPAM": { "Driver": "default", "Config": subnets },
        "Internal": network.internal,
        "Containers": containers,
        "Options": {
            "com.docker.network.bridge.name": network.link,
            "com.docker.network.driver.mtu": network.mtu.to_string(),
        },
        "Labels": network.labels,
        "Berth": { "Error": network.message },
    })
}

#[cfg(test)]
mod tests {
    use berth_cri::berth::{Member, Subnet};

    use super::*;

    #[test]
    fn scripts_find_dockers_keys() {
        let subnet = |subnet: &str, gateway: &str| Subnet { subnet: subnet.into(), gateway: gateway.into() };
        let told = InspectNetworkResponse {
            network: Some(Network {
                id: "ab".into(),
                name: "blue".into(),
                driver: "bridge".into(),
                link: "btnab".into(),
                subnets: vec![subnet("10.9.0.0/24", "10.9.0.1"), subnet("fd09::/64", "fd09::1")],
                internal: true,
                mtu: 1400,
                created_at: 1_500_000_000,
                ..Default::default()
            }),
            members: vec![Member {
                id: "cd".into(),
                name: "web".into(),
                ips: vec!["10.9.0.2".into(), "fd09::2".into()],
            }],
        };
        let value = document(&told);
        assert_eq!((&value["Name"], &value["Id"]), (&"blue".into(), &"ab".into()));
        assert_eq!((&value["Internal"], &value["EnableIPv6"]), (&true.into(), &true.into()));
        assert_eq!(value["IPAM"]["Config"][0], json!({ "Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1" }));
        assert_eq!(value["Containers"]["cd"]["Name"], "web");
        assert_eq!(value["Containers"]["cd"]["IPv6Address"], "fd09::2");
        assert_eq!(value["Options"]["com.docker.network.driver.mtu"], "1400");
        assert_eq!(value["Created"], "1970-01-01T00:00:01.5Z");
    }
}
