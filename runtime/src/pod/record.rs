//! What is written of pods and containers: one file each, versioned, written new and renamed. Intent before the act,
//! outcome after. Not synced: a power cut ends the containers anyway, and what is torn is set aside by `recover`.

use std::{fs, io, path::Path};

use berth_cri::{berth, v1 as cri};
use berth_launch::v1 as launch;
use prost::{Message, bytes::Bytes};

use super::{Client, CreateContainer};
use crate::{Error, Kind, Result, error::Cause, oci};

pub const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub struct PodRecord {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(enumeration = "By", tag = "3")]
    pub client: i32,
    #[prost(string, tag = "4")]
    pub handler: String,
    #[prost(message, optional, tag = "5")]
    pub config: Option<cri::PodSandboxConfig>,
    #[prost(int64, tag = "6")]
    pub created_at: i64,
    #[prost(enumeration = "Phase", tag = "7")]
    pub phase: i32,
    #[prost(string, repeated, tag = "8")]
    pub ips: Vec<String>,
    #[prost(int32, tag = "9")]
    pub reaper_pid: i32,
    #[prost(uint64, tag = "10")]
    pub reaper_start_time: u64,
    #[prost(string, tag = "11")]
    pub boot_id: String,
    /// What the pod's client last said that it costs and may use; absent: what its configuration says.
    #[prost(message, optional, tag = "20")]
    pub overhead: Option<cri::LinuxContainerResources>,
    #[prost(message, optional, tag = "21")]
    pub resources: Option<cri::LinuxContainerResources>,
    /// Of its reaper; empty in records of before: what its configuration comes to.
    #[prost(string, tag = "22")]
    pub cgroup_path: String,
}

/// How far a pod or a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Begun: whoever finds this takes it back.
    Making = 0,
    Made = 1,
    /// A pod that has been told to stop, and is not yet taken down.
    Stopping = 2,
    /// Its namespaces and addresses are gone.
    Stopped = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum By {
    Cri = 0,
    Standalone = 1,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRecord {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(string, tag = "3")]
    pub pod: String,
    #[prost(message, optional, tag = "4")]
    pub config: Option<cri::ContainerConfig>,
    #[prost(message, optional, tag = "5")]
    pub options: Option<OptionsRecord>,
    #[prost(bool, tag = "6")]
    pub keep_layer: bool,
    #[prost(message, optional, tag = "7")]
    pub standalone: Option<berth::ContainerSpec>,
    #[prost(string, tag = "8")]
    pub image_id: String,
    #[prost(string, tag = "9")]
    pub cgroup_path: String,
    #[prost(string, tag = "10")]
    pub log: String,
    #[prost(int64, tag = "11")]
    pub created_at: i64,
    #[prost(enumeration = "Phase", tag = "12")]
    pub phase: i32,
    #[prost(uint32, tag = "13")]
    pub uid: u32,
    #[prost(uint32, tag = "14")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "15")]
    pub groups: Vec<u32>,
    #[prost(string, tag = "16")]
    pub boot_id: String,
    /// The OCI document, as JSON.
    #[prost(bytes = "bytes", tag = "17")]
    pub spec: Bytes,
    /// The process's environment: the document is UTF-8, this need not be.
    #[prost(bytes = "vec", repeated, tag = "18")]
    pub env: Vec<Vec<u8>>,
    /// The ids of the images that are mounted, by position among the configuration's mounts; empty for the others.
    #[prost(string, repeated, tag = "30")]
    pub volume_images: Vec<String>,
    /// It has been started: one that is always to run comes back after a reboot, unless an exit record says its end.
    #[prost(bool, tag = "31")]
    pub started: bool,
    /// The OCI runtime of the host that keeps it; empty: Berth itself.
    #[prost(string, tag = "32")]
    pub runtime: String,
    /// The health check that its shim carries out.
    #[prost(message, optional, tag = "33")]
    pub health: Option<berth::HealthCheck>,
    /// The id of the attempt that it follows, where berthd made it and not a kubelet.
    #[prost(string, tag = "34")]
    pub after: String,
    /// Such attempts without a healthy run between them, this one included.
    #[prost(uint32, tag = "35")]
    pub in_a_row: u32,
}

/// `oci::Options` as it is written.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OptionsRecord {
    #[prost(message, optional, tag = "1")]
    pub restart: Option<launch::Restart>,
    #[prost(uint64, tag = "2")]
    pub log_max_bytes: u64,
    #[prost(uint32, tag = "3")]
    pub log_max_files: u32,
    #[prost(string, optional, tag = "4")]
    pub entrypoint: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub user: Option<String>,
    #[prost(bool, tag = "6")]
    pub create_bind_sources: bool,
    #[prost(uint32, optional, tag = "7")]
    pub stop_signal: Option<u32>,
    #[prost(int64, optional, tag = "8")]
    pub pids: Option<i64>,
    #[prost(message, optional, tag = "9")]
    pub health: Option<berth::HealthCheck>,
    #[prost(uint64, tag = "10")]
    pub layer_max_bytes: u64,
}

impl From<Client> for By {
    fn from(client: Client) -> Self {
        match client {
            Client::Cri => Self::Cri,
            Client::Standalone => Self::Standalone,
        }
    }
}

impl PodRecord {
    pub fn by(&self) -> Client {
        match self.client() {
            By::Cri => Client::Cri,
            By::Standalone => Client::Standalone,
        }
    }
}

impl From<&oci::Options> for OptionsRecord {
    fn from(options: &oci::Options) -> Self {
        Self {
            restart: Some(options.restart),
            log_max_bytes: options.log_max_bytes,
            log_max_files: options.log_max_files,
            entrypoint: options.entrypoint.clone(),
            user: options.user.clone(),
            create_bind_sources: options.create_bind_sources,
            stop_signal: options.stop_signal,
            pids: options.pids,
            health: options.health.clone(),
            layer_max_bytes: options.layer_max_bytes,
        }
    }
}

impl OptionsRecord {
    pub fn options(&self) -> oci::Options {
        oci::Options {
            restart: self.restart.unwrap_or_default(),
            log_max_bytes: self.log_max_bytes,
            log_max_files: self.log_max_files,
            log_rate_bytes: 0,
            layer_max_bytes: self.layer_max_bytes,
            entrypoint: self.entrypoint.clone(),
            user: self.user.clone(),
            create_bind_sources: self.create_bind_sources,
            stop_signal: self.stop_signal,
            pids: self.pids,
            health: self.health.clone(),
        }
    }
}

impl ContainerRecord {
    /// Whether it is to run for ever, a reboot between.
    pub fn runs_always(&self) -> bool {
        let restart = self.options.as_ref().and_then(|options| options.restart).unwrap_or_default();
        self.standalone.is_some() && restart.policy() == launch::restart::Policy::Always
    }

    /// Whether it is started again where no exit record is found after a reboot.
    pub fn comes_back(&self) -> bool {
        self.started && self.runs_always()
    }

    /// Whether a request asks for what this record says, so that a retry after a lost answer gets the same container.
    pub fn answers(&self, request: &CreateContainer) -> bool {
        self.config.as_ref() == Some(&request.config)
            && self.options.as_ref() == Some(&OptionsRecord::from(&request.options))
    }
}

/// Writes `record` into `directory`, new and renamed.
pub fn write(directory: &Path, record: &impl Message) -> Result<()> {
    let (new, path) = (directory.join(".record.new"), directory.join("record"));
    fs::write(&new, record.encode_to_vec())
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|error| Error::io("write record", path.display().to_string(), error))
}

/// As `write`, and on the disk when it returns: after a power cut this is what there is to go by.
pub fn write_durably(directory: &Path, record: &impl Message) -> Result<()> {
    write(directory, record)?;
    let sync = |path: &Path| fs::File::open(path).and_then(|file| file.sync_all());
    sync(&directory.join("record"))
        .and_then(|()| sync(directory))
        .map_err(|error| Error::io("write record", directory.display().to_string(), error))
}

/// Reads the record of `directory`; none where there is none.
///
/// # Errors
/// `Invalid` for one that can't be understood; it is left where it is.
pub fn read<R: Message + Default>(directory: &Path) -> Result<Option<R>> {
    let path = directory.join("record");
    let shown = || path.display().to_string();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read record", shown(), error)),
    };
    let torn = |error| {
        Error::new(Kind::Invalid, "read record", shown()).because(error).hint(
            "restore the file, or move its directory away; what it names is left alone until berthd is started again",
        )
    };
    let Stamp { version } = Stamp::decode(bytes.as_slice()).map_err(torn)?;
    if version > VERSION {
        return Err(Error::new(Kind::Invalid, "read record", shown())
            .because(Cause(format!("it has version {version}, this berthd knows {VERSION}")))
            .hint("it was written by a newer berthd: start that one again"));
    }
    R::decode(bytes.as_slice()).map(Some).map_err(torn)
}

/// What every record begins with.
#[derive(Clone, PartialEq, prost::Message)]
struct Stamp {
    #[prost(uint32, tag = "1")]
    version: u32,
}

/// Reads the shim's exit record; none where there is none, or none that can be understood.
pub fn read_exit(directory: &Path) -> Option<launch::Exit> {
    launch::Exit::decode(fs::read(directory.join(berth_launch::EXIT)).ok()?.as_slice()).ok()
}

/// Writes an exit that no shim was there to write.
pub fn write_exit(directory: &Path, exit: &launch::Exit) -> io::Result<()> {
    let new = directory.join(".exit.new");
    fs::write(&new, exit.encode_to_vec())?;
    fs::rename(new, directory.join(berth_launch::EXIT))
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_written_and_a_torn_one_is_told_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read::<PodRecord>(dir.path()).unwrap(), None);
        let record =
            PodRecord { version: VERSION, id: "x".into(), ips: vec!["1.2.3.4".into()], ..Default::default() };
        write(dir.path(), &record).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(record));
        fs::write(dir.path().join("record"), [0xff, 0xff]).unwrap();
        assert_eq!(read::<PodRecord>(dir.path()).unwrap_err().kind, Kind::Invalid);
        assert!(dir.path().join("record").exists());
        let newer = PodRecord { version: VERSION + 1, ..Default::default() };
        write(dir.path(), &newer).unwrap();
        let told = read::<PodRecord>(dir.path()).unwrap_err().chain();
        assert!(told.contains("newer berthd"), "{told}");
    }
}
