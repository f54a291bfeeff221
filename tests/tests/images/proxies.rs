//! A registry behind a proxy, as HTTP_PROXY and NO_PROXY say.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{Sender, channel},
    },
    thread,
};

use berth_tests::{Daemon, Options, Registry, Transport, images};

use crate::pull;

/// A proxy that knows one registry: Go's servers take a whole URL as well as a path, so it hands on what comes.
struct Proxy {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    ends: Option<Sender<()>>,
}

impl Proxy {
    fn start(registry: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (ends, ended) = channel::<()>();
        let seen = Arc::clone(&heads);
        thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                if matches!(ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
                    break;
                }
                let (seen, registry) = (Arc::clone(&seen), registry.clone());
                thread::spawn(move || {
                    let mut first = vec![0; 16 << 10];
                    let length = client.read(&mut first).unwrap_or(0);
                    let head = String::from_utf8_lossy(&first[..length]).into_owned();
                    seen.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
                    let Ok(mut server) = TcpStream::connect(registry) else { return };
                    if server.write_all(&first[..length]).is_err() {
                        return;
                    }
                    let (mut to, mut from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                    let back = thread::spawn(move || {
                        std::io::copy(&mut from, &mut to).ok();
                        to.shutdown(Shutdown::Write).ok();
                    });
                    std::io::copy(&mut server, &mut client).ok();
                    client.shutdown(Shutdown::Both).ok();
                    back.join().ok();
                });
            }
        });
        Self { address, heads, ends: Some(ends) }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.take();
        TcpStream::connect(&self.address).ok();
    }
}

#[test]
fn a_registry_is_asked_through_the_proxy_that_the_environment_names() {
    let test = "a_registry_is_asked_through_the_proxy_that_the_environment_names";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    registry.push("team/fixture:1", &images::base());
    let proxy = Proxy::start(registry.host());
    let url = format!("http://{}", proxy.address);
    let daemon = Daemon::start_with(Options {
        over: "[registry]\nplain_http = [\"registry.test:80\", \"near.test:80\"]\n".into(),
        env: vec![("HTTP_PROXY".into(), url), ("NO_PROXY".into(), "near.test".into())],
        ..Options::default()
    });
    pull(&daemon, "registry.test:80/team/fixture:1").unwrap();
    let heads = proxy.heads();
    assert!(heads.iter().any(|head| head.starts_with("GET http://registry.test")), "{heads:?}");
    // Neither who is near nor loopback goes through it.
    let refused = pull(&daemon, "near.test:80/team/fixture:1").unwrap_err();
    assert!(refused.message().contains("near.test"), "{refused}");
    pull(&daemon, &registry.reference("team/fixture:1")).unwrap();
    assert_eq!(proxy.heads().len(), heads.len());
}
