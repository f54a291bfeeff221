//! Many layers, and layers that make something else of what is below them.

use berth_fixtures::{Compression, Layer, Layout};
use berth_tests::{Answer, Daemon, asked, images};

use crate::{list, status};

const NAME: &str = "localhost/layers:1";

fn loaded(daemon: &Daemon, layers: Vec<Layer>) -> Answer<()> {
    let image = layers.into_iter().fold(images::base(), |image, layer| image.layer(layer));
    let layout = Layout::of(NAME, &image.compression(Compression::None));
    let tar = layout.and_then(|layout| layout.tar(Compression::None)).expect("the image can be built");
    daemon.load(&tar, None).map(drop)
}

#[test]
fn five_hundred_layers_are_one_root_and_more_are_refused() {
    let daemon = Daemon::start();
    let layer = |n: usize| {
        Layer::new().file(&format!("n/{n}"), 0o644, n.to_string()).file("last", 0o644, n.to_string())
    };
    let base = images::base().build().unwrap().layers.len();
    loaded(&daemon, (base..500).map(layer).collect()).unwrap();
    let pod = daemon.plain_pod("many");
    let lines = |words: &[&str]| {
        let (ended, lines) = daemon.run_to_end(&pod, &asked(words[0], words).image(NAME)).unwrap();
        assert_eq!(ended.exit_code, 0, "{words:?}");
        lines.into_iter().map(|line| line.content).collect::<Vec<_>>()
    };
    assert_eq!(lines(&["cat", "/last"]), ["499"]);
    assert_eq!(lines(&["ls", "/n"]).len(), 500 - base);
    daemon.remove_pod(&pod.id).unwrap();
    let refused = loaded(&daemon, (base..501).map(layer).collect()).unwrap_err();
    assert!(refused.message().contains("501") && refused.message().contains("500"), "{refused}");
    assert_eq!(list(&daemon).len(), 1);
}

#[test]
fn a_layer_makes_another_kind_of_what_is_below_it() {
    let daemon = Daemon::start();
    let below = Layer::new()
        .directory("dir", 0o755)
        .file("dir/kept", 0o644, "below")
        .file("file", 0o644, "below")
        .symlink("link", "dir")
        .symlink("out", "/etc")
        .directory("gone", 0o755)
        .file("gone/file", 0o644, "below")
        .directory("opaque", 0o755)
        .file("opaque/below", 0o644, "below");
    let above = Layer::new()
        .file("dir", 0o644, "a file now")
        .directory("file", 0o755)
        .file("file/inside", 0o644, "above")
        // A real directory in the place of a link: nothing may go through it.
        .directory("link", 0o755)
        .file("link/own", 0o644, "above")
        .file("out/passwd", 0o644, "not the one of etc")
        .whiteout("gone")
        .opaque("opaque")
        .file("opaque/above", 0o644, "above");
    let back = Layer::new().directory("gone", 0o755).file("gone/again", 0o644, "back").symlink("dir", "file");
    loaded(&daemon, vec![below, above, back]).unwrap();
    let pod = daemon.plain_pod("kinds");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"]).image(NAME)).unwrap();
    let read = |words: &[&str]| daemon.exec_ok(&id, words);
    assert_eq!(read(&["ls", "/file"]), "inside\n");
    assert_eq!(read(&["cat", "/dir/inside"]), "above", "a link to the directory that was a file");
    assert_eq!(read(&["ls", "/link"]), "own\n");
    assert_eq!(read(&["ls", "/gone"]), "again\n");
    assert_eq!(read(&["ls", "/opaque"]), "above\n");
    assert!(read(&["cat", "/etc/passwd"]).contains("root:"), "a layer wrote through a link of another");
    assert_eq!(read(&["cat", "/out/passwd"]), "not the one of etc");
    daemon.remove_pod(&pod.id).unwrap();
    assert!(status(&daemon, NAME).is_some());
}
