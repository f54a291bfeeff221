//! Whom a registry gives its images: credentials of the call, of the tool and of the node, and the hosts of hosts.toml.

use std::{fs, os::unix::fs::PermissionsExt};

use berth_cri::v1 as cri;
use berth_tests::{Answer, Daemon, Options, Registry, Transport, images};
use tonic::Code;

use crate::{pull, remove};

fn pull_as(daemon: &Daemon, name: &str, auth: cri::AuthConfig) -> Answer<String> {
    let request = cri::PullImageRequest { image: crate::named(name), auth: Some(auth), ..Default::default() };
    daemon.call(daemon.images().pull_image(request)).map(|answer| answer.image_ref)
}

fn hosts(daemon: &Daemon, registry: &str, text: &str) {
    let directory = daemon.certs_dir().join(registry);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

#[test]
fn a_private_registry_gives_to_whom_it_knows() {
    let test = "a_private_registry_gives_to_whom_it_knows";
    let Some(registry) = Registry::start(test, Transport::Private) else { return };
    registry.push("private:1", &images::base());
    let daemon = Daemon::start();
    let reference = registry.reference("private:1");
    let refused = pull(&daemon, &reference).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("log in"), "{refused}");
    // From the kubelet.
    let auth = |password: &str| cri::AuthConfig {
        username: "joe".into(),
        password: password.into(),
        ..Default::default()
    };
    let refused = pull_as(&daemon, &reference, auth("wrong")).unwrap_err();
    assert!(refused.message().contains("credentials are wrong"), "{refused}");
    pull_as(&daemon, &reference, auth("secret")).unwrap();
    remove(&daemon, &reference).unwrap();
    // From a person.
    let said = daemon.berth(&["pull", "--creds", "joe:wrong", &reference]);
    assert!(said.code == 125 && said.stderr.contains("credentials are wrong"), "{said:?}");
    daemon.berth_ok(&["pull", "--creds", "joe:secret", &reference]);
    remove(&daemon, &reference).unwrap();
    // Of the node; the file is read at each pull.
    let text =
        format!(r#"{{"auths": {{"http://{}/v1/": {{"auth": "am9lOnNlY3JldA=="}}}}}}"#, registry.host());
    fs::write(daemon.auth_file(), text).unwrap();
    pull(&daemon, &reference).unwrap();
    assert!(!daemon.log().contains("secret"), "a password is in the log");
}

#[test]
fn a_helper_of_the_node_knows_the_password() {
    let test = "a_helper_of_the_node_knows_the_password";
    let Some(registry) = Registry::start(test, Transport::Private) else { return };
    registry.push("helped:1", &images::base());
    let daemon = Daemon::start();
    let helper = |script: &str| {
        fs::create_dir_all(daemon.helper_dir()).unwrap();
        let program = daemon.helper_dir().join("docker-credential-test");
        // A name of its own until it is whole: a file that is open for writing can't be run.
        let new = program.with_extension("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &program).unwrap();
    };
    let text = format!(r#"{{"credHelpers": {{"{}": "test"}}}}"#, registry.host());
    fs::write(daemon.auth_file(), text).unwrap();
    let reference = registry.reference("helped:1");
    helper("#!/bin/sh\ncat > /dev/null\necho no key today\nexit 1\n");
    let refused = pull(&daemon, &reference).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(
        refused.message().contains("docker-credential-test") && refused.message().contains("no key today"),
        "{refused}"
    );
    let script = format!(
        "#!/bin/sh\n[ \"$1 $(cat)\" = \"get {}\" ] && echo '{{\"Username\": \"joe\", \"Secret\": \"secret\"}}'\n",
        registry.host()
    );
    helper(&script);
    pull(&daemon, &reference).unwrap();
}

#[test]
fn a_mirror_stands_in_for_a_registry_that_is_away() {
    let test = "a_mirror_stands_in_for_a_registry_that_is_away";
    let Some(mirror) = Registry::start(test, Transport::Https) else { return };
    let Some(empty) = Registry::start(test, Transport::Http) else { return };
    mirror.push("team/app:1", &images::base());
    let daemon = Daemon::start();
    let text = |trust: &str| {
        format!(
            "server = \"https://registry.invalid\"\n[host.\"http://{}\"]\n[host.\"https://{}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n{trust}\n",
            empty.host(),
            mirror.host()
        )
    };
    hosts(&daemon, "registry.invalid", &text(""));
    let refused = pull(&daemon, "registry.invalid/team/app:1").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().starts_with("RegistryUnavailable"), "{refused}");
    for part in
        [&format!("[{}]", empty.host()), "404", &format!("[{}]", mirror.host()), "`ca`", "[registry.invalid]"]
    {
        assert!(refused.message().contains(part), "{part}: {refused}");
    }
    let certificate = daemon.certs_dir().join("registry.invalid/mirror.pem");
    fs::copy(mirror.ca_file(), certificate).unwrap();
    for trust in ["ca = \"mirror.pem\"", "skip_verify = true"] {
        hosts(&daemon, "registry.invalid", &text(trust));
        pull(&daemon, "registry.invalid/team/app:1").unwrap();
        remove(&daemon, "registry.invalid/team/app:1").unwrap();
    }
    hosts(&daemon, "_default", "server = [");
    let refused = pull(&daemon, "other.invalid/x:1").unwrap_err();
    assert!(refused.message().contains("_default/hosts.toml: line 1"), "{refused}");
}

#[test]
fn a_layer_goes_on_where_a_killed_daemon_left_it() {
    let mut daemon = Daemon::start_with(Options { stall_seconds: 1, ..Options::default() });
    let image = images::base();
    let registry = berth_tests::Hostile::start(berth_tests::Trick::Stall, &image);
    pull(&daemon, &registry.reference()).unwrap_err();
    let partial = || fs::read_dir(daemon.root().join("images/partial")).unwrap().count();
    assert!(partial() > 0);
    daemon.kill9();
    daemon.up();
    let good = berth_tests::Hostile::start(berth_tests::Trick::None, &image);
    pull(&daemon, &good.reference()).unwrap();
    assert!(daemon.log().contains("layer resumed"), "{}", daemon.log_tail());
    assert_eq!(fs::read_dir(daemon.root().join("images/partial")).unwrap().count(), 0);
}
