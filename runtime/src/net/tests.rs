//! Against the kernel, as root: a bridge, a table and links of this test alone. Skipped loudly elsewhere.

use std::{process::Command, time::Duration};

use super::*;

/// A network with names and a subnet of its own; whatever happens it is taken down, links of pods with it.
struct Scratch {
    network: Bridge,
    config: config::Bridge,
    dir: tempfile::TempDir,
    links: Vec<String>,
}

fn whole(bridge: &config::Bridge) -> config::Network {
    config::Network { bridge: bridge.clone(), ..config::Network::default() }
}

/// What a pod asks for that has no wishes but ports.
fn plain(ports: &[HostPort]) -> Ask<'_> {
    Ask { network: DEFAULT, addresses: &[], ports, bandwidth: Bandwidth::default() }
}

async fn opened(config: &config::Bridge, dir: &Path) -> Bridge {
    let bridge = Bridge::open(&whole(config), dir.to_owned()).await.unwrap();
    bridge.prepare().await;
    bridge
}

fn settings(prefix: u8) -> config::Bridge {
    let unique = PodId::random();
    let number = u16::from_str_radix(&unique.as_str()[..4], 16).unwrap();
    // Of the range for benchmarks between networks: nobody's on a host that runs tests.
    let [high, low] = number.to_be_bytes();
    let subnet = format!("198.{}.{high}.{}/{prefix}", 18 + (low & 1), low & 0xf0);
    let name = format!("btst{}", &unique.as_str()[..8]);
    let subnet6 = format!("fd0b:e481:{high:x}:{low:x}::/{}", 96 + prefix);
    config::Bridge { table: format!("{name}_t"), name, subnet, subnet6, mtu: 1400 }
}

impl Scratch {
    async fn new(prefix: u8) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = settings(prefix);
        let network = opened(&config, dir.path()).await;
        let scratch = Self { network, config, dir, links: Vec::new() };
        match scratch.network.ready() {
            Ok(()) => Some(scratch),
            Err(why) => {
                eprintln!("SKIPPED: needs root, bridges and nft: {why}");
                None
            }
        }
    }

    /// A pair as a shim would make it, both ends here.
    fn veth(&mut self, link: &launch::Link) {
        let peer = format!("p{}", &link.host_name[1..]);
        let master = link.bridge_index.to_string();
        assert!(run("ip", &["link", "add", &link.host_name, "type", "veth", "peer", "name", &peer]));
        self.links.push(link.host_name.clone());
        let index = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", self.config.name)).unwrap();
        assert_eq!(index.trim(), master);
        assert!(run("ip", &["link", "set", &link.host_name, "up", "master", &self.config.name]));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let bridge = &self.config;
        for link in self.links.iter().chain([&bridge.name]) {
            // What the test removed itself is absent.
            run("ip", &["link", "del", link]);
        }
        run("nft", &["delete", "table", "ip", &bridge.table]);
        run("nft", &["delete", "table", "ip6", &bridge.table]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

fn output(program: &str, args: &[&str]) -> String {
    String::from_utf8(Command::new(program).args(args).output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn the_bridge_is_made_found_again_mended_and_taken_down() {
    let Some(scratch) = Scratch::new(28).await else { return };
    let network = &scratch.network;
    let bridge = &scratch.config;
    let subnets = network.segments().remove(0).subnets;
    let gateways: Vec<String> =
        subnets.iter().map(|subnet| format!("{}/{}", subnet.gateway(), subnet.prefix())).collect();
    let shown = output("ip", &["-d", "addr", "show", "dev", &bridge.name]);
    for part in gateways.iter().map(String::as_str).chain(["mtu 1400", "bridge ", "UP", "02:be:c6:"]) {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // Usable at once, without a pod on it.
    assert!(
        !shown.contains("tentative") || !shown.contains(&format!("{} scope global tentative", gateways[1])),
        "{shown}"
    );
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
    let table = |network: &Bridge| output("nft", &["list", "table", "ip", &network.table]);
    let rules = table(network);
    assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");

    // A second daemon, or the same one started again, changes nothing.
    let again = opened(bridge, scratch.dir.path()).await;
    assert_eq!(again.ready(), Ok(()));
    assert_eq!(table(&again), rules);

    // Somebody removed the bridge: the next pod brings it back.
    let pod = PodId::random();
    let before = network.attach(&pod, plain(&[])).await.unwrap();
    assert!(run("ip", &["link", "del", &bridge.name]));
    let after = network.attach(&pod, plain(&[])).await.unwrap();
    assert_eq!(before.ips, after.ips);
    assert_ne!(before.link.bridge_index, after.link.bridge_index);

    assert_eq!(network.describe(), format!("bridge {}", bridge.name));
    network.dismantle().await.unwrap();
    network.dismantle().await.unwrap();
    assert!(!Path::new("/sys/class/net").join(&bridge.name).exists());
    assert_eq!(table(network), "");
    assert!(network.ready().is_err());
}

#[tokio::test]
async fn pods_get_addresses_until_there_are_none_and_give_them_back() {
    let Some(mut scratch) = Scratch::new(29).await else { return };
    let pods: Vec<PodId> = (0..5).map(|_| PodId::random()).collect();
    let mut ips = Vec::new();
    for pod in &pods {
        let both = scratch.network.attach(pod, plain(&[])).await.unwrap().ips;
        assert!(both.len() == 2 && both[0].is_ipv4() && both[1].is_ipv6(), "{both:?}");
        ips.push(both[0]);
    }
    let mut distinct = ips.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 5);
    let error = scratch.network.attach(&PodId::random(), plain(&[])).await.unwrap_err();
    assert_eq!(error.kind, Kind::Exhausted);
    assert!(error.chain().contains("all 5 addresses"), "{}", error.chain());

    let pod = &pods[0];
    let link = scratch.network.attach(pod, plain(&[])).await.unwrap().link;
    assert_eq!(link.host_name.len(), 14);
    assert_eq!((link.name.as_str(), link.mtu, link.hairpin), ("eth0", 1400, true));
    assert_eq!(link.addresses[0].ip, link.mac[2..]);
    let gateways: Vec<IpAddr> = scratch.network.segments()[0].gateways().collect();
    let via = |octets: &[u8]| match octets.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(octets).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(octets).unwrap()),
    };
    assert_eq!(link.routes.iter().map(|route| via(&route.via)).collect::<Vec<_>>(), gateways);
    scratch.veth(&link);
    let stats = scratch.network.stats(pod).unwrap();
    assert_eq!((stats.name.as_str(), stats.rx_errors, stats.tx_errors), ("eth0", 0, 0));

    // Nobody lets the namespace go: the link is removed, and only then the address is free.
    scratch.network.release(pod).await.unwrap();
    scratch.network.release(pod).await.unwrap();
    assert_eq!(scratch.network.attached().len(), 5);
    scratch.network.leaving.left(pod).await;
    assert!(!Path::new("/sys/class/net").join(&link.host_name).exists());
    scratch.network.release(pod).await.unwrap();
    assert_eq!(scratch.network.stats(pod), None);
    assert_eq!(scratch.network.attached().len(), 4);
    assert!(!scratch.network.attached().contains(pod));
    assert_eq!(scratch.network.attach(&PodId::random(), plain(&[])).await.unwrap().ips[..1], ips[..1]);
}

#[tokio::test]
async fn an_address_is_free_only_once_its_link_is_gone_and_nobody_waits_but_who_wants_it() {
    let Some(mut scratch) = Scratch::new(30).await else { return };
    let pod = PodId::random();
    let attached = scratch.network.attach(&pod, plain(&[])).await.unwrap();
    scratch.veth(&attached.link);
    // The link is there still: released, and not free, for a later daemon neither.
    tokio::time::timeout(Duration::from_secs(1), scratch.network.release(&pod)).await.unwrap().unwrap();
    assert_eq!(scratch.network.attached(), std::slice::from_ref(&pod));
    let again = opened(&scratch.config, scratch.dir.path()).await;
    assert_eq!(again.attached(), std::slice::from_ref(&pod));
    // There is one address: the next pod gets it, when the link has gone; and so does the same pod, had it come back.
    let next = PodId::random();
    let mut waiting = std::pin::pin!(scratch.network.attach(&next, plain(&[])));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    assert!(run("ip", &["link", "del", &attached.link.host_name]));
    let given = tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
    assert_eq!(given.ips, attached.ips);
    assert_eq!(scratch.network.attached(), std::slice::from_ref(&next));
}

#[tokio::test]
async fn a_pod_that_comes_back_while_it_leaves_keeps_what_it_gets() {
    let Some(mut scratch) = Scratch::new(29).await else { return };
    let pod = PodId::random();
    let link = scratch.network.attach(&pod, plain(&[])).await.unwrap().link;
    scratch.veth(&link);
    scratch.network.release(&pod).await.unwrap();
    let mut back = std::pin::pin!(scratch.network.attach(&pod, plain(&[])));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut back).await.is_err());
    assert!(run("ip", &["link", "del", &link.host_name]));
    tokio::time::timeout(Duration::from_secs(2), back).await.unwrap().unwrap();
    assert_eq!(scratch.network.attached(), std::slice::from_ref(&pod));
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = settings(29);
    config.name = "lo".into();
    let network = opened(&config, dir.path()).await;
    let why = network.ready().unwrap_err();
    // Without the right to make links that is what it says.
    assert!(why.contains("is no bridge") || why.contains("CAP_NET_ADMIN"), "{why}");
    assert_eq!(network.attach(&PodId::random(), plain(&[])).await.unwrap_err().kind, Kind::Unavailable);
    assert!(network.attached().is_empty());

    // The node's own way to somewhere: told, and nothing made.
    let mut meets = settings(29);
    meets.subnet = "10.199.0.0/16".into();
    let wide = format!("bt{}", &PodId::random().as_str()[..8]);
    if run("ip", &["link", "add", &wide, "type", "bridge"]) {
        run("ip", &["addr", "add", "10.199.7.1/24", "dev", &wide]);
        run("ip", &["link", "set", &wide, "up"]);
        let network = opened(&meets, dir.path()).await;
        let why = network.ready().unwrap_err();
        assert!(run("ip", &["link", "del", &wide]));
        let expected =
            format!("10.199.0.0/16: the node reaches 10.199.7.0/24 by {wide}; set network.bridge.subnet");
        assert!(why.contains(&expected), "{why}");
        assert!(!Path::new("/sys/class/net").join(&meets.name).exists());
    }

    config.subnet = "10.0.0.0/33".into();
    let error = Bridge::open(&whole(&config), dir.path().to_owned()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}
