//! Bounds: many containers at once, and one with next to no memory.

use std::process::Command;

use berth_tests::oci::{Oci, text};
use serde_json::json;

#[test]
fn a_hundred_containers_at_once_all_run() {
    const COUNT: usize = 100;
    let oci = Oci::new();
    let mut running: Vec<(String, std::process::Child)> = (0..COUNT)
        .map(|number| {
            let id = format!("c{number}");
            let bundle = oci.dir().join(format!("bundle-{number}"));
            std::fs::create_dir(&bundle).unwrap();
            let mut config = oci.config(&id, &["exit", "7"]);
            config["root"]["path"] = json!(oci.bundle().join("rootfs"));
            std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
            let mut command: Command = oci.command(&["run", "--bundle", text(&bundle), &id]);
            let err = std::fs::File::create(bundle.join("err")).unwrap();
            (text(&bundle.join("err")).to_owned(), command.stderr(err).spawn().unwrap())
        })
        .collect();
    for (err, child) in &mut running {
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(7), "{}", std::fs::read_to_string(err).unwrap());
    }
    assert_eq!(oci.ok(&["list", "--quiet"]), "");
}

#[test]
fn a_container_starts_under_a_limit_of_512_kib() {
    let oci = Oci::new();
    for _ in 0..5 {
        let mut config = oci.config("c1", &["echo", "small"]);
        config["linux"]["resources"] = json!({"memory": {"limit": 512 << 10}});
        oci.write(&config);
        assert_eq!(oci.ok(&["run", "c1"]), "small\n");
    }
}
