//! Networks that people make, list and remove: each with a bridge, subnets and places of its own. What is begun and not
//! ended is taken back, by the next berthd too.
//!
//! ```text
//! create:  written as going ── bridge ── written as there ── places, tables
//! remove:  no places any more ── written as going ── bridge gone ── tables ── file gone
//! ```

use std::collections::BTreeMap;

use berth_launch::fault;
use tracing::{info, warn};

use super::{
    Bridge, blocking,
    bridge::{Known, State},
    choose::{self, Taken, Whose},
    lock,
    named::{Made, Named},
    route::Route,
    segment::{self, Reach},
    subnet::{Family, Subnet},
    table,
};
use crate::{Error, Kind, Result, error::Cause};

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct NewNetwork {
    pub name: String,
    /// CIDR, one of a family at most; none: free ones are found.
    pub subnets: Vec<String>,
    /// Each in one of the subnets; one without has its first address.
    pub gateways: Vec<String>,
    pub reach: Reach,
    /// 0: that of the node's way out.
    pub mtu: u32,
    pub labels: BTreeMap<String, String>,
}

/// A network as it is told.
#[derive(Debug, Clone)]
pub struct NetworkView {
    pub name: String,
    pub link: String,
    pub subnets: Vec<Subnet>,
    pub mtu: u32,
    pub reach: Reach,
    /// None: the node's own, which nobody made.
    pub made: Option<Made>,
    /// Why it can't be used now.
    pub trouble: Option<String>,
}

impl Bridge {
    /// Makes a network that is not there yet. After an error, and after a kill at any time, it is there wholly or not at
    /// all.
    ///
    /// # Errors
    /// `Invalid` for what can't be, `AlreadyExists` for a name that is taken, `Precondition` for addresses that somebody
    /// has, `Exhausted` where no subnet is free, `Unavailable` where the kernel does not make it.
    pub async fn create(&self, new: NewNetwork) -> Result<NetworkView> {
        const OP: &str = "create network";
        segment::check_name(&new.name)
            .map_err(|cause| Error::invalid(OP, format!("{:?}", new.name), cause))?;
        if !segment::good_mtu(new.mtu) {
            let cause = "not one of 68 to 65535, or 0 for that of the way out";
            return Err(Error::invalid(OP, format!("mtu {}", new.mtu), cause));
        }
        let mut subnets = choose::asked(&new.subnets, &new.gateways)?;
        if !table::has_ipv6()
            && let Some(six) = subnets.iter().find(|subnet| subnet.family() == Family::V6)
        {
            return Err(Error::new(Kind::Precondition, OP, format!("subnet {six}"))
                .because(Cause("the node's kernel has no IPv6, or it is off".into())));
        }
        let _alone = self.changing.lock().await;
        if let Some(there) = self.going_or_there(&new.name) {
            return Err(Error::new(Kind::AlreadyExists, OP, &new.name).because(Cause(there)).hint(format!(
                "choose another name, or remove that one with `berth network rm {}`",
                new.name
            )));
        }
        let route = Route::open()?;
        let taken = self.taken(&route).await?;
        match subnets.is_empty() {
            true => subnets = choose::free(&self.pools, &taken)?,
            false => choose::unmet(&subnets, &taken)?,
        }
        let named = Named::new(&new.name, subnets, new.mtu, new.reach, new.labels);
        let (shelf, written) = (self.shelf.clone(), named.clone());
        blocking(move || shelf.begin(&written)).await?;
        fault::point("network.intended");
        if let Err(error) = self.build(&route, &named).await {
            self.forget(&named);
            self.take_back(named).await;
            return Err(error);
        }
        info!(network = new.name, "network created");
        self.network(&new.name)
    }

    async fn build(&self, route: &Route, named: &Named) -> Result<()> {
        let link = route.bridge(&named.segment, &self.alias(&named.segment)).await?;
        fault::point("network.bridged");
        let (shelf, written) = (self.shelf.clone(), named.clone());
        blocking(move || shelf.settle(&written)).await?;
        fault::point("network.settled");
        lock(&self.leases).add(&named.segment);
        let known = Known {
            segment: named.segment.clone(),
            state: State::Ready(link),
            made: Some(named.made.clone()),
        };
        lock(&self.segments).insert(named.segment.name.clone(), known);
        self.open_ports().await?;
        self.serve(&named.segment, link).await;
        Ok(())
    }

    /// Removes a network that no pod is in; those that are leaving are waited for. After an error, or a kill, it is there
    /// still or being removed, which the next call or the next berthd ends.
    ///
    /// # Errors
    /// `NotFound`, or `Precondition` where pods are in it or it is the node's own.
    pub async fn remove(&self, name: &str) -> Result<()> {
        const OP: &str = "remove network";
        let _alone = self.changing.lock().await;
        let going = lock(&self.going).get(name).cloned();
        if let Some(named) = going {
            return self.take_down(&named).await;
        }
        let known = lock(&self.segments).get(name).cloned();
        let Some(Known { segment, made, .. }) = known else {
            return Err(Error::not_found(OP, name).hint("`berth network ls` shows those there are"));
        };
        let Some(made) = made else {
            return Err(Error::new(Kind::Precondition, OP, name)
                .because(Cause("it is the node's own".into()))
                .hint("its settings are network.bridge in the configuration"));
        };
        let named = Named { made, segment };
        // No new place from here on.
        loop {
            let removed = lock(&self.leases).remove(name);
            let Err(users) = removed else { break };
            if users.iter().all(|pod| self.leaving.has(pod)) && self.leaving.one_left().await {
                continue;
            }
            return Err(Error::new(Kind::Precondition, OP, name)
                .because(Cause(format!("{} pods or containers are in it", users.len())))
                .hint("remove them first"));
        }
        let (shelf, going) = (self.shelf.clone(), named.clone());
        if let Err(error) = blocking(move || shelf.mark_going(&going)).await {
            lock(&self.leases).add(&named.segment);
            return Err(error);
        }
        fault::point("network.going");
        self.forget(&named);
        lock(&self.going).insert(name.to_owned(), named.clone());
        self.take_down(&named).await?;
        info!(network = name, "network removed");
        Ok(())
    }

    /// Every network, the node's own first.
    pub fn networks(&self) -> Vec<NetworkView> {
        let segments = lock(&self.segments);
        let mut all: Vec<NetworkView> = segments.values().map(|known| self.view(known)).collect();
        all.sort_by_key(|network| network.made.as_ref().map(|made| made.created_at));
        all
    }

    /// One by its name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn network(&self, name: &str) -> Result<NetworkView> {
        let found = lock(&self.segments).get(name).map(|known| self.view(known));
        found.ok_or_else(|| {
            Error::not_found("find network", name).hint("`berth network ls` shows those there are")
        })
    }

    /// At the start: takes back what was being made or removed, and sets up what is there.
    pub async fn resume(&self) {
        let going: Vec<Named> = lock(&self.going).values().cloned().collect();
        for named in going {
            info!(network = named.segment.name, "a network that was being made or removed is taken back");
            self.take_back(named).await;
        }
        for network in self.networks().into_iter().filter(|network| network.made.is_some()) {
            if let Err(error) = self.ensure(&network.name).await {
                warn!(network = network.name, error = error.chain(), "a network can't be set up");
            }
        }
    }

    /// Takes it down, or notes that it is still to be.
    async fn take_back(&self, named: Named) {
        let name = named.segment.name.clone();
        lock(&self.going).insert(name.clone(), named.clone());
        if let Err(error) = self.take_down(&named).await {
            let error = error.chain();
            warn!(network = name, error, "a network is not wholly removed; `berth network rm` tries again");
        }
    }

    async fn take_down(&self, named: &Named) -> Result<()> {
        let link = named.segment.link.as_str();
        self.names.close(&named.segment.name).await;
        let route = Route::open()?;
        if let Some(found) = route.link(link).await? {
            route.delete(found, link).await?;
        }
        fault::point("network.unbridged");
        self.open_ports().await?;
        let (shelf, gone) = (self.shelf.clone(), named.clone());
        blocking(move || shelf.erase(&gone)).await?;
        fault::point("network.erased");
        lock(&self.going).remove(&named.segment.name);
        Ok(())
    }

    fn forget(&self, named: &Named) {
        lock(&self.segments).remove(&named.segment.name);
        // One that was made a moment ago has nobody; one that is removed has let its places go before.
        lock(&self.leases).remove(&named.segment.name).ok();
    }

    fn going_or_there(&self, name: &str) -> Option<String> {
        if lock(&self.segments).contains_key(name) {
            return Some("a network of that name exists".into());
        }
        lock(&self.going).contains_key(name).then(|| "a network of that name is being removed".into())
    }

    /// What addresses the node and its networks have.
    async fn taken(&self, route: &Route) -> Result<Vec<Taken>> {
        let (segments, going) = (self.segments(), lock(&self.going).values().cloned().collect::<Vec<_>>());
        let all = segments.iter().chain(going.iter().map(|named| &named.segment));
        let of_networks = all.flat_map(|segment| {
            let taken = |subnet: &Subnet| Taken {
                to: subnet.first(),
                prefix: subnet.prefix(),
                whose: Whose::Network(segment.name.clone()),
            };
            segment.subnets.iter().map(taken).collect::<Vec<_>>()
        });
        let mut taken: Vec<Taken> = of_networks.collect();
        let of_node = |(to, prefix, link)| Taken { to, prefix, whose: Whose::Node(link) };
        taken.extend(route.reached().await?.into_iter().map(of_node));
        Ok(taken)
    }

    fn view(&self, known: &Known) -> NetworkView {
        let Known { segment, state, made } = known.clone();
        let trouble = match state {
            State::Ready(_) => self.names.trouble(&segment.name),
            State::Broken(why) => Some(why),
        };
        NetworkView {
            name: segment.name,
            link: segment.link,
            subnets: segment.subnets,
            mtu: segment.mtu,
            reach: segment.reach,
            made,
            trouble,
        }
    }
}
