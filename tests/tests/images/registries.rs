//! Pulls from Debian's docker-registry, over HTTP on loopback and HTTPS with a certificate of our own.

use berth_tests::{Daemon, Options, Registry, Transport, asked, images};

use crate::{list, pull, remove, status};

#[test]
fn an_image_is_pulled_by_tag_and_by_digest() {
    let test = "an_image_is_pulled_by_tag_and_by_digest";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    let image = images::base();
    let digest = registry.push("team/fixture:1", &image);
    let id = image.build().unwrap().config.digest;
    let daemon = Daemon::start();
    let tag = registry.reference("team/fixture:1");
    assert!(status(&daemon, &tag).is_none());
    assert_eq!(pull(&daemon, &tag).unwrap(), id);
    let found = status(&daemon, &tag).unwrap();
    assert_eq!((found.id.as_str(), found.repo_tags.as_slice()), (id.as_str(), &[tag.clone()][..]));
    assert_eq!(found.repo_digests, [registry.reference(&format!("team/fixture@{digest}"))]);
    assert!(found.size > 0);
    let pod = daemon.plain_pod("pulled");
    assert_eq!(daemon.run_to_end(&pod, &asked("c", &["echo", "hi"]).image(&tag)).unwrap().1[0].content, "hi");
    daemon.remove_pod(&pod.id).unwrap();
    remove(&daemon, &tag).unwrap();
    assert!(list(&daemon).is_empty());

    // By digest there is no tag, and the digest is exactly what was asked for.
    let exact = registry.reference(&format!("team/fixture@{digest}"));
    assert_eq!(pull(&daemon, &exact).unwrap(), id);
    let found = status(&daemon, &exact).unwrap();
    assert_eq!((found.repo_tags.len(), found.repo_digests.as_slice()), (0, &[exact][..]));
    assert_eq!(status(&daemon, &id).unwrap().id, id);
    // Again: nothing to do.
    assert_eq!(pull(&daemon, &tag).unwrap(), id);
    assert_eq!(list(&daemon).len(), 1);
}

#[test]
fn a_certificate_is_checked_with_the_files_given() {
    let test = "a_certificate_is_checked_with_the_files_given";
    let Some(registry) = Registry::start(test, Transport::Https) else { return };
    let image = images::base();
    registry.push("secure/fixture:1", &image);
    let reference = registry.reference("secure/fixture:1");
    let trusting = Daemon::start_with(Options { ca_files: vec![registry.ca_file()], ..Options::default() });
    assert_eq!(pull(&trusting, &reference).unwrap(), image.build().unwrap().config.digest);
    // Without the file the certificate is nobody's; loopback may be spoken to in plain, but this is not plain.
    let wary = Daemon::start();
    let refused = pull(&wary, &reference).unwrap_err();
    assert!(refused.message().starts_with("RegistryUnavailable"), "{refused}");
    assert!(refused.message().contains("ca_files"), "what to do: {refused}");
    assert!(list(&wary).is_empty());
}

#[test]
fn what_is_not_there_is_told_apart() {
    let test = "what_is_not_there_is_told_apart";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    registry.push("there:1", &images::base());
    let daemon = Daemon::start();
    let refused = pull(&daemon, &registry.reference("there:2")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    assert!(refused.message().contains("there:2"), "{refused}");
    let refused = pull(&daemon, &registry.reference("nowhere:1")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    // A port where nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = pull(&daemon, &format!("127.0.0.1:{port}/x:1")).unwrap_err();
    assert!(refused.message().starts_with("RegistryUnavailable"), "{refused}");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    for wrong in ["library/UPPER", "a b", "x@sha256:short", "", ":1", "../../etc"] {
        let refused = pull(&daemon, wrong).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{wrong:?}: {refused}");
    }
}

#[test]
fn a_layer_that_is_damaged_on_the_way_is_refused_and_fetched_again() {
    let test = "a_layer_that_is_damaged_on_the_way_is_refused_and_fetched_again";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    let image = images::base();
    registry.push("damaged:1", &image);
    let layer = image.build().unwrap().layers.remove(0).digest;
    registry.damage(&layer);
    let daemon = Daemon::start();
    let reference = registry.reference("damaged:1");
    let refused = pull(&daemon, &reference).unwrap_err();
    assert!(refused.message().contains(&layer), "{refused}");
    assert!(list(&daemon).is_empty());
    // Repaired there, it is good here.
    registry.damage(&layer);
    pull(&daemon, &reference).unwrap();
    assert_eq!(list(&daemon).len(), 1);
}

#[test]
fn pulls_of_one_image_at_once_join() {
    let test = "pulls_of_one_image_at_once_join";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    registry.push("joined:1", &images::base());
    registry.push("joined:2", &images::base().env("ANOTHER", "1"));
    let daemon = Daemon::start();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..6)
            .map(|n| {
                let reference = registry.reference(if n % 2 == 0 { "joined:1" } else { "joined:2" });
                let daemon = &daemon;
                scope.spawn(move || pull(daemon, &reference).unwrap())
            })
            .collect();
        let mut ids: Vec<String> = pulls.into_iter().map(|pull| pull.join().unwrap()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 2);
    });
    assert_eq!(list(&daemon).len(), 2);
}

#[test]
fn the_same_image_from_two_registries_is_one() {
    let test = "the_same_image_from_two_registries_is_one";
    let Some(one) = Registry::start(test, Transport::Http) else { return };
    let Some(two) = Registry::start(test, Transport::Http) else { return };
    one.push("same:1", &images::base());
    two.push("same:1", &images::base());
    let daemon = Daemon::start();
    let first = pull(&daemon, &one.reference("same:1")).unwrap();
    assert_eq!(pull(&daemon, &two.reference("same:1")).unwrap(), first);
    let all = list(&daemon);
    assert_eq!((all.len(), all[0].repo_tags.len(), all[0].repo_digests.len()), (1, 2, 2), "{all:?}");
    // Removing it removes all its names.
    remove(&daemon, &one.reference("same:1")).unwrap();
    assert!(list(&daemon).is_empty());
}

#[test]
fn the_tool_pulls_and_tells() {
    let test = "the_tool_pulls_and_tells";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    registry.push("tool:1", &images::base());
    let daemon = Daemon::start();
    let reference = registry.reference("tool:1");
    let said = daemon.berth(&["pull", &reference]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains(&reference) || said.stdout.contains("sha256:"), "{said:?}");
    remove(&daemon, &reference).unwrap();
    // `run` pulls what is missing.
    let said = daemon.berth(&["run", "--rm", &reference, "echo", "pulled"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, "pulled\n"), "{said:?}");
    let said = daemon.berth(&["pull", &registry.reference("tool:2")]);
    let last = said.stderr.lines().last().unwrap_or_default();
    assert!(said.code == 125 && last.contains("tool:2") && last.contains("check the name"), "{said:?}");
}
