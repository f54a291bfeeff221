//! The Networks service: what people make for their containers to be in.

use berth_cri::berth::{self as api, networks_server::Networks};
use tonic::Request;
use tracing::{Instrument, info_span};

use super::Answer;
use crate::{
    Error, Kind, Result,
    api::{Door, status::call},
    error::Cause,
    net::{NetworkView, NewNetwork, Reach},
    pod::{ContainerView, PodView},
};

#[tonic::async_trait]
impl Networks for Door {
    async fn create(
        &self,
        request: Request<api::CreateNetworkRequest>,
    ) -> Answer<api::CreateNetworkResponse> {
        let spec = request.into_inner().spec.unwrap_or_default();
        let span = info_span!("rpc", op = "Network.Create", network = spec.name);
        call(span, create(self, spec)).await
    }

    async fn list(&self, _: Request<api::ListNetworksRequest>) -> Answer<api::ListNetworksResponse> {
        let networks = self.rooms.network.networks().iter().map(message).collect();
        call(info_span!("rpc", op = "Network.List"), async { Ok(api::ListNetworksResponse { networks }) })
            .await
    }

    async fn inspect(
        &self,
        request: Request<api::InspectNetworkRequest>,
    ) -> Answer<api::InspectNetworkResponse> {
        let network = request.into_inner().network;
        let span = info_span!("rpc", op = "Network.Inspect", network);
        call(span, async { inspect(self, &network) }).await
    }

    async fn remove(
        &self,
        request: Request<api::RemoveNetworkRequest>,
    ) -> Answer<api::RemoveNetworkResponse> {
        let network = request.into_inner().network;
        let span = info_span!("rpc", op = "Network.Remove", network);
        call(span, remove(self, network)).await
    }
}

async fn create(door: &Door, spec: api::NetworkSpec) -> Result<api::CreateNetworkResponse> {
    let new = NewNetwork {
        name: spec.name,
        subnets: spec.subnets,
        gateways: spec.gateways,
        reach: if spec.internal { Reach::Internal } else { Reach::Everybody },
        mtu: spec.mtu,
        labels: spec.labels.into_iter().collect(),
    };
    let network = door.rooms.network.clone();
    // On a task of its own: a caller that goes away leaves no half of a network.
    let made = on_its_own("create network", async move { network.create(new).await }).await?;
    Ok(api::CreateNetworkResponse { network: Some(message(&made)) })
}

async fn remove(door: &Door, text: String) -> Result<api::RemoveNetworkResponse> {
    let name = match find(&door.rooms.network.networks(), &text) {
        Ok(found) => found.name.clone(),
        // One that could not wholly be removed is in no list, and is removed by its name.
        Err(error) if error.kind == Kind::NotFound => text,
        Err(error) => return Err(error),
    };
    let listed = door.pods.list();
    let names: Vec<String> =
        members(&listed, &name).map(|(_, container)| shown(container).to_owned()).collect();
    if !names.is_empty() {
        return Err(Error::new(Kind::Precondition, "remove network", name)
            .because(Cause(format!("containers are in it: {}", names.join(", "))))
            .hint("remove them first"));
    }
    let (network, removed) = (door.rooms.network.clone(), name.clone());
    on_its_own("remove network", async move { network.remove(&removed).await }).await?;
    Ok(api::RemoveNetworkResponse { name })
}

fn inspect(door: &Door, text: &str) -> Result<api::InspectNetworkResponse> {
    let networks = door.rooms.network.networks();
    let found = find(&networks, text)?;
    let listed = door.pods.list();
    let member = |(pod, container): (&PodView, &ContainerView)| api::Member {
        id: container.id.to_string(),
        name: shown(container).to_owned(),
        ips: pod.ips.iter().map(ToString::to_string).collect(),
    };
    let members = members(&listed, &found.name).map(member).collect();
    Ok(api::InspectNetworkResponse { network: Some(message(found)), members })
}

/// People's containers that are in a network, running or not.
fn members<'a>(
    listed: &'a [std::sync::Arc<PodView>],
    network: &'a str,
) -> impl Iterator<Item = (&'a PodView, &'a ContainerView)> {
    let of_pod =
        |pod: &'a std::sync::Arc<PodView>| pod.containers.iter().map(move |container| (&**pod, container));
    listed.iter().flat_map(of_pod).filter(move |(_, container)| {
        let asked = container.standalone.as_ref().map(|spec| spec.network.as_str());
        asked.is_some_and(|asked| asked == network || (asked.is_empty() && network == crate::net::DEFAULT))
    })
}

fn shown(container: &ContainerView) -> &str {
    container.standalone.as_ref().map_or(container.id.short(), |spec| spec.name.as_str())
}

/// By its name, its id or the beginning of that.
fn find<'a>(networks: &'a [NetworkView], text: &str) -> Result<&'a NetworkView> {
    const OP: &str = "find network";
    if let Some(named) = networks.iter().find(|network| network.name == text) {
        return Ok(named);
    }
    let begins = |network: &&NetworkView| {
        !text.is_empty() && network.made.as_ref().is_some_and(|made| made.id.starts_with(text))
    };
    let mut matching = networks.iter().filter(begins);
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => {
            Err(Error::invalid(OP, text, "more than one id begins so").hint("give more digits of it"))
        }
        (None, _) => Err(Error::not_found(OP, text).hint("`berth network ls` shows those there are")),
    }
}

fn message(network: &NetworkView) -> api::Network {
    let subnet = |subnet: &crate::net::Subnet| api::Subnet {
        subnet: subnet.to_string(),
        gateway: subnet.gateway().to_string(),
    };
    let made = network.made.clone();
    api::Network {
        id: made.as_ref().map(|made| made.id.clone()).unwrap_or_default(),
        name: network.name.clone(),
        driver: "bridge".into(),
        link: network.link.clone(),
        subnets: network.subnets.iter().map(subnet).collect(),
        internal: network.reach == Reach::Internal,
        labels: made.as_ref().map(|made| made.labels.clone().into_iter().collect()).unwrap_or_default(),
        mtu: network.mtu,
        created_at: made.map_or(0, |made| made.created_at),
        message: network.trouble.clone().unwrap_or_default(),
    }
}

async fn on_its_own<T: Send + 'static>(
    op: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Error::new(Kind::Internal, op, "task").because(error))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{DEFAULT, Made};

    fn network(name: &str, id: &str) -> NetworkView {
        let made = Made { id: id.into(), labels: Default::default(), created_at: 5 };
        NetworkView {
            name: name.into(),
            link: "btn0".into(),
            subnets: Vec::new(),
            mtu: 1400,
            reach: Reach::Internal,
            made: (!id.is_empty()).then_some(made),
            trouble: Some("why".into()),
        }
    }

    #[test]
    fn a_network_is_found_by_its_name_or_the_beginning_of_its_id() {
        let all = [network(DEFAULT, ""), network("blue", "ab01"), network("ab", "ab02")];
        let found = |text| find(&all, text).map(|network| network.name.clone());
        for (text, name) in [("blue", "blue"), ("ab", "ab"), ("ab01", "blue"), ("bridge", "bridge")] {
            assert_eq!(found(text).unwrap(), name, "{text}");
        }
        assert_eq!(found("a").unwrap_err().kind, Kind::Invalid);
        for text in ["", "x", "ab03"] {
            assert_eq!(found(text).unwrap_err().kind, Kind::NotFound, "{text}");
        }
    }

    #[test]
    fn a_message_says_what_the_network_is() {
        let told = message(&network("blue", "ab01"));
        assert_eq!((told.id.as_str(), told.name.as_str(), told.driver.as_str()), ("ab01", "blue", "bridge"));
        assert!(told.internal && told.created_at == 5 && told.mtu == 1400 && told.message == "why");
        assert!(message(&network(DEFAULT, "")).id.is_empty());
    }
}
