//! What hangs on the bridges and stands in the tables and is nobody's: host ends of pairs whose pod has no lease, rules
//! that the leases don't say.

use std::{collections::BTreeMap, path::Path, process::Stdio};

use tokio::process::Command;
use tracing::info;

use super::{
    Network,
    bridge::{Bridge, State, host_name},
    lock,
    route::Route,
    table,
};
use crate::{Error, Result};

/// One such thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stray {
    /// By its name.
    Link(String),
    Rules {
        table: String,
        /// In words, what it has and should not, or lacks.
        difference: String,
    },
}

impl Network {
    /// Looks for what no lease explains.
    ///
    /// # Errors
    /// What kept it from looking at the tables.
    pub async fn strays(&self) -> Result<Vec<Stray>> {
        let mut found: Vec<Stray> = self.bridge.stray_links().into_iter().map(Stray::Link).collect();
        found.extend(self.bridge.stray_rules().await?);
        Ok(found)
    }

    /// Links alone: they are looked for at each start.
    pub fn stray_links(&self) -> Vec<String> {
        self.bridge.stray_links()
    }

    /// Removes it. Gone already: success.
    pub async fn mend(&self, stray: &Stray) -> Result<()> {
        match stray {
            Stray::Link(name) => {
                info!(link = name, "a link of a pod that is gone is removed");
                let route = Route::open()?;
                match route.link(name).await? {
                    Some(link) => route.delete(link, name).await,
                    None => Ok(()),
                }
            }
            Stray::Rules { .. } => self.bridge.open_ports().await,
        }
    }
}

impl Bridge {
    fn stray_links(&self) -> Vec<String> {
        let ports =
            || self.segments().into_iter().flat_map(|segment| ports_of(&segment.link)).collect::<Vec<_>>();
        let before = ports();
        if before.is_empty() {
            return Vec::new();
        }
        let leased: Vec<String> = lock(&self.leases).pods().iter().map(host_name).collect();
        // A lease goes after its link: one that is there still was not on its way out.
        let still = ports();
        let is_pods = |name: &String| name.starts_with("bth") && name.len() == 14;
        before
            .into_iter()
            .filter(|name| is_pods(name) && !leased.contains(name) && still.contains(name))
            .collect()
    }

    async fn stray_rules(&self) -> Result<Vec<Stray>> {
        // Nobody changes the tables meanwhile.
        let _alone = self.writing.lock().await;
        let is_set_up = lock(&self.segments).values().any(|known| matches!(known.state, State::Ready(_)));
        if !is_set_up {
            return Ok(Vec::new());
        }
        let ports = lock(&self.leases).ports();
        let expected = table::rules(&self.table, &self.segments(), &ports, table::has_ipv6());
        let mut strays = Vec::new();
        for family in ["ip", "ip6"] {
            let wanted = asked(&expected, family, &self.table);
            let there = listed(family, &self.table).await?;
            if let Some(difference) = difference(&wanted, &there) {
                strays.push(Stray::Rules { table: format!("{family} {}", self.table), difference });
            }
        }
        Ok(strays)
    }
}

fn ports_of(bridge: &str) -> Vec<String> {
    let ports = std::fs::read_dir(Path::new("/sys/class/net").join(bridge).join("brif"));
    ports
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Rules by their chain.
type Chains = BTreeMap<String, Vec<String>>;

/// The rules of one table, as a script of ours adds them.
fn asked(script: &str, family: &str, table: &str) -> Chains {
    let start = format!("add rule {family} {table} ");
    let mut chains = Chains::new();
    for rule in script.lines().filter_map(|line| line.strip_prefix(&start)) {
        let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
        chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
    }
    chains
}

/// The rules of one table, as `nft list` shows them; none where there is no table.
fn shown(text: &str) -> Chains {
    let mut chains = Chains::new();
    let mut chain = String::new();
    for line in text.lines().map(str::trim) {
        match line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            Some(name) => name.clone_into(&mut chain),
            None if line.is_empty()
                || line == "}"
                || line.starts_with("table ")
                || line.starts_with("type ") => {}
            None => chains.entry(chain.clone()).or_default().push(line.to_owned()),
        }
    }
    chains
}

/// nft writes rules in its own way, so they are compared by their number in each chain and by where they lead.
fn difference(wanted: &Chains, there: &Chains) -> Option<String> {
    let none = Vec::new();
    let names = wanted.keys().chain(there.keys());
    let mut told: Vec<String> = names
        .filter_map(|chain| {
            let (wanted, there) = (wanted.get(chain).unwrap_or(&none), there.get(chain).unwrap_or(&none));
            let said = |count: usize, what: &str| format!("chain {chain} has {count} rules {what}");
            match (there.len().checked_sub(wanted.len()), targets(wanted) == targets(there)) {
                (Some(0), true) => None,
                (Some(0), false) => Some(format!("chain {chain} leads elsewhere than the leases say")),
                (Some(more), _) => Some(said(more, "too many")),
                (None, _) => Some(said(wanted.len() - there.len(), "too few")),
            }
        })
        .collect();
    told.dedup();
    (!told.is_empty()).then(|| told.join(", "))
}

/// What ports lead to, in order.
fn targets(rules: &[String]) -> Vec<&str> {
    let mut found: Vec<&str> = rules.iter().filter_map(|rule| Some(rule.split_once("dnat to ")?.1)).collect();
    found.sort_unstable();
    found
}

async fn listed(family: &str, table: &str) -> Result<Chains> {
    let mut command = Command::new("nft");
    command.args(["-n", "list", "table", family, table]).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        command.output().await.map_err(|error| Error::io("run", "nft", error).hint("install nftables"))?;
    // One that is not there has no rules; of any other failure the next change of the tables tells more.
    Ok(shown(&String::from_utf8_lossy(&output.stdout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "add table ip t\nflush table ip t\nadd rule ip t postrouting ip saddr 10.0.0.0/8 masquerade\n\
                          add rule ip t ports tcp dport 80 dnat to 10.0.0.2:8080\nadd rule ip6 t ports x\n";
    const SHOWN: &str = "table ip t {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\
                         \t\tip saddr 10.0.0.0/8 masquerade\n\t}\n\n\tchain ports {\n\t\ttcp dport 80 dnat to 10.0.0.2:8080\n\t}\n}\n";

    #[test]
    fn tables_are_compared_by_what_is_in_their_chains() {
        let wanted = asked(SCRIPT, "ip", "t");
        assert_eq!(difference(&wanted, &shown(SHOWN)), None);
        let elsewhere = SHOWN.replace("10.0.0.2:8080", "10.0.0.3:8080");
        let told = difference(&wanted, &shown(&elsewhere)).unwrap();
        assert_eq!(told, "chain ports leads elsewhere than the leases say");
        let more = SHOWN.replace("masquerade\n", "masquerade\n\t\taccept\n");
        assert_eq!(difference(&wanted, &shown(&more)).unwrap(), "chain postrouting has 1 rules too many");
        let told = difference(&wanted, &shown("")).unwrap();
        assert_eq!(told, "chain ports has 1 rules too few, chain postrouting has 1 rules too few");
    }
}
