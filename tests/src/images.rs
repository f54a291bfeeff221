//! Archives of the fixtures' images, made once per process, and how a daemon gets them.

use std::sync::OnceLock;

use berth_cri::berth::{LoadRequest, PulledImage, load_request::Message};
use berth_fixtures::{
    Compression, Image, Layer, Layout, busybox_image, fixture_image, layered_image, scratch_image,
};
use tokio_stream::iter;

use crate::{clients::Answer, daemon::Daemon, programs::program};

/// The name of the fixture's image: the program, a link for each applet, users and groups.
pub const FIXTURE: &str = "localhost/fixture:1";
/// One program and nothing else.
pub const SCRATCH: &str = "localhost/scratch:1";
pub const LAYERED: &str = "localhost/layered:1";
pub const BUSYBOX: &str = "localhost/busybox:1";

/// In one message of `Load`.
const PIECE_BYTES: usize = 1 << 20;

/// The fixture's image, to build others on.
pub fn base() -> Image {
    fixture_image(&program("fixture")).expect("the program can be read")
}

pub fn layered() -> Image {
    layered_image(&program("fixture")).expect("the program can be read")
}

/// The image of Debian's static busybox; None, saying why, where it is not installed.
pub fn busybox() -> Result<Image, String> {
    busybox_image().map_err(|error| error.to_string())
}

/// An OCI layout tar of one image.
pub fn archive(name: &str, image: &Image) -> Vec<u8> {
    let layout = Layout::of(name, &image.clone().compression(Compression::None));
    layout.and_then(|layout| layout.tar(Compression::None)).expect("the image can be built")
}

/// The fixture's image with one more layer on top.
pub fn with_layer(layer: Layer) -> Image {
    base().layer(layer)
}

fn cached(cell: &'static OnceLock<Vec<u8>>, name: &str, image: impl FnOnce() -> Image) -> &'static [u8] {
    cell.get_or_init(|| archive(name, &image()))
}

impl Daemon {
    /// Starts a daemon that has the fixture's image.
    pub fn with_fixture() -> Self {
        Self::with_fixture_and(crate::daemon::Options::default())
    }

    /// The same, configured otherwise.
    pub fn with_fixture_and(options: crate::daemon::Options) -> Self {
        let daemon = Self::start_with(options);
        daemon.load_fixture();
        daemon
    }

    /// Loads the image that most tests run.
    pub fn load_fixture(&self) {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        self.load_ok(cached(&ARCHIVE, FIXTURE, base));
    }

    /// Loads the image that holds everything a layer can.
    pub fn load_layered(&self) {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        self.load_ok(cached(&ARCHIVE, LAYERED, layered));
    }

    /// Loads the image of one program and nothing else.
    pub fn load_scratch(&self) {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        let image = || scratch_image(&program("fixture")).expect("the program can be read");
        self.load_ok(cached(&ARCHIVE, SCRATCH, image));
    }

    /// Builds an image and loads it under a name.
    pub fn load_image(&self, name: &str, image: &Image) {
        self.load_ok(&archive(name, image));
    }

    fn load_ok(&self, archive: &[u8]) {
        self.load(archive, None).expect("load an image");
    }

    /// Takes images from an archive.
    pub fn load(&self, archive: &[u8], name: Option<&str>) -> Answer<Vec<PulledImage>> {
        let name = name.map(|name| Message::Name(name.to_owned()));
        let pieces: Vec<Message> =
            archive.chunks(PIECE_BYTES).map(|piece| Message::Chunk(piece.to_vec().into())).collect();
        let requests = name.into_iter().chain(pieces).map(|message| LoadRequest { message: Some(message) });
        let requests: Vec<LoadRequest> = requests.collect();
        Ok(self.call(self.berth_images().load(iter(requests)))?.images)
    }
}
