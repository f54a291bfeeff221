//! hosts.toml as containerd documents it.

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Result<(Vec<Host>, Vec<String>), String> {
    parse(text, Path::new("/tree/r.io"), upstream("r.io", false).unwrap())
}

fn bases(text: &str) -> Vec<String> {
    parsed(text).unwrap().0.iter().map(|host| host.base.to_string()).collect()
}

#[test]
fn hosts_come_in_the_files_order_and_the_server_last() {
    let text = r#"
        server = "https://upstream.io"
        [host."https://z.io"]
        [host."http://a.io:5000/mirror"]
        [host."m.io/v2"]
    "#;
    let expected =
        ["https://z.io/v2/", "http://a.io:5000/mirror/v2/", "https://m.io/v2/", "https://upstream.io/v2/"];
    assert_eq!(bases(text), expected);
    let roles: Vec<Role> = parsed(text).unwrap().0.iter().map(|host| host.role).collect();
    assert_eq!(roles, [Role::Mirror, Role::Mirror, Role::Mirror, Role::Upstream]);
    assert_eq!(bases(""), ["https://r.io/v2/"]);
    assert_eq!(parsed("[host.\"https://r.io\"]").unwrap().0[0].role, Role::Upstream);
}

#[test]
fn a_path_that_is_overridden_is_left_alone() {
    let text = "[host.\"https://m.io/proxy/r\"]\noverride_path = true\n";
    assert_eq!(bases(text)[0], "https://m.io/proxy/r/");
    assert_eq!(bases("server = \"https://m.io/x\"\noverride_path = true\n"), ["https://m.io/x/"]);
}

#[test]
fn each_key_is_understood_at_a_host_and_at_the_top() {
    let keys = r#"
        capabilities = ["pull"]
        ca = ["one.pem", "/abs/two.pem"]
        client = [["c.cert", "c.key"], "both.pem"]
        skip_verify = true
        dial_timeout = "1.5s"
        [HEADERS]
        x-one = "1"
        x-more = ["2", "3"]
    "#;
    let top = keys.replace("HEADERS", "header");
    let at_host =
        format!("[host.\"https://m.io\"]\n{}", keys.replace("HEADERS", "host.\"https://m.io\".header"));
    for text in [top, at_host] {
        let host = parsed(&text).unwrap().0.remove(0);
        assert_eq!((host.resolves, host.pulls), (Ability::Barred, Ability::Able));
        assert_eq!(host.trust.ca, [PathBuf::from("/tree/r.io/one.pem"), "/abs/two.pem".into()]);
        let client = host.trust.client.unwrap();
        assert_eq!((client.certificate, client.key), ("/tree/r.io/c.cert".into(), "/tree/r.io/c.key".into()));
        assert!(host.trust.anybody);
        assert_eq!(host.connect, Some(Duration::from_millis(1500)));
        assert_eq!((host.headers["x-one"].to_str().unwrap(), host.headers.len()), ("1", 3));
        assert!(!format!("{:?}", host.headers).contains('2'), "a header may be a secret");
    }
    let one = parsed("ca = \"one.pem\"\nclient = \"both.pem\"\n").unwrap().0.remove(0).trust;
    assert_eq!((one.ca.len(), one.client.unwrap().key), (1, "/tree/r.io/both.pem".into()));
}

#[test]
fn what_is_wrong_is_told_and_what_is_unknown_is_named() {
    for (text, cause) in [
        ("capabilities = [\"fly\"]", "no capability \"fly\""),
        ("[host.\"ftp://x\"]", "host \"ftp://x\""),
        ("[host.\"https://joe:x@m.io\"]", "auth_file"),
        ("server = \"\"\ndial_timeout = \"soon\"", "no duration"),
        ("\n\nskip_verify = 3", "line"),
        ("[header]\n\"a b\" = \"c\"", "no header"),
        ("x = [", "line 1"),
    ] {
        let error = parsed(text).unwrap_err();
        assert!(error.contains(cause), "{text}: {error}");
    }
    let (_, unknown) = parsed("speed = 3\n[host.\"https://m.io\"]\nskip_verifying = true").unwrap();
    assert_eq!(unknown, ["speed", "host.\"https://m.io\".skip_verifying"]);
}

#[test]
fn a_tree_is_searched_by_host_and_port_and_then_for_the_default() {
    let tree = tempfile::tempdir().unwrap();
    let config = config::Registry { config_path: vec![tree.path().into()], ..Default::default() };
    let first = |registry: &str| of(registry, &config).unwrap()[0].base.to_string();
    assert_eq!(first("docker.io"), "https://registry-1.docker.io/v2/");
    for (directory, server) in [("_default", "d.io"), ("r.io_5000_", "u.io"), ("r.io", "e.io")] {
        fs::create_dir(tree.path().join(directory)).unwrap();
        fs::write(tree.path().join(directory).join("hosts.toml"), format!("server = {server:?}")).unwrap();
    }
    assert_eq!(first("r.io"), "https://e.io/v2/");
    assert_eq!(first("r.io:5000"), "https://u.io/v2/");
    assert_eq!(first("other.io"), "https://d.io/v2/");
    fs::create_dir(tree.path().join("c.io")).unwrap();
    for name in ["x.crt", "y.cert", "y.key", "z.cert"] {
        fs::write(tree.path().join("c.io").join(name), "").unwrap();
    }
    let trust = of("c.io", &config).unwrap().remove(0).trust;
    assert_eq!((trust.ca.len(), trust.client.unwrap().key), (1, tree.path().join("c.io/y.key")));
    fs::write(tree.path().join("r.io/hosts.toml"), "x = [").unwrap();
    let error = of("r.io", &config).unwrap_err();
    assert!(error.chain().contains("r.io/hosts.toml: line 1"), "{}", error.chain());
}

proptest! {
    #[test]
    fn no_file_brings_the_parser_down_and_a_base_ends_in_a_slash(text in ".{0,200}", name in "[a-z./:@]{1,30}") {
        parsed(&text).ok();
        if let Ok((hosts, _)) = parsed(&format!("[host.{name:?}]")) {
            for host in hosts {
                prop_assert!(host.base.path().ends_with('/'));
                prop_assert!(host.base.username().is_empty());
            }
        }
    }
}
