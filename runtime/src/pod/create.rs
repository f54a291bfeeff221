//! A pod's task makes a container, or gives the one that is there already.

use berth_cri::v1 as cri;
use tracing::info;

use super::{
    CreateContainer,
    actor::Pod,
    attempts, clock,
    container::{self, Container},
    image_volumes,
    record::{ContainerRecord, Phase},
    state::State,
};
use crate::{Error, Kind, Result, error::Cause, id::ContainerId};

impl Pod {
    /// The same request gives what was made by it before; what berthd made itself, and the client wants otherwise, gives way.
    ///
    /// # Errors
    /// `Precondition` in a pod that has been stopped, `AlreadyExists` for an attempt that is there and other than asked for.
    pub async fn create(&mut self, request: CreateContainer) -> Result<ContainerId> {
        const OP: &str = "create container";
        if self.record.phase() != Phase::Made {
            return Err(Error::new(Kind::Precondition, OP, self.id.short())
                .because(Cause("its pod has been stopped".into())));
        }
        let metadata = request.config.metadata.clone().unwrap_or_default();
        if let Some(there) =
            self.containers.values().find(|there| there.config.metadata.as_ref() == Some(&metadata))
        {
            let runs = !matches!(there.state, State::Exited { .. });
            let ours = attempts::is_ours(&there.record) && runs;
            let same = ours && attempts::is_same(&there.config, &request.config);
            return match same || there.record.answers(&request) {
                true => Ok(there.id.clone()),
                false if ours => {
                    let id = there.id.clone();
                    self.replace(&id).await?;
                    self.make_container(request, |_| {}).await
                }
                false => Err(Error::new(Kind::AlreadyExists, OP, &metadata.name)
                    .because(Cause(format!("attempt {} exists with another configuration", metadata.attempt)))
                    .hint("remove it first, or ask with the next attempt")),
            };
        }
        self.make_container(request, |_| {}).await
    }

    /// Makes a container; `change` is to its record, before it is written for the first time.
    pub async fn make_container(
        &mut self,
        mut request: CreateContainer,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<ContainerId> {
        let metadata = request.config.metadata.clone().unwrap_or_default();
        let id = request.id.take().unwrap_or_else(ContainerId::random);
        let name = request.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = container::find_image(&self.rooms, &name)?;
        let pod = container::Pod { id: &self.id, record: &self.record, target_pid: self.target(&request)? };
        let volumes = image_volumes::resolve(&self.rooms, &request.config.mounts)?;
        let mut record = container::record(&self.rooms, &pod, &id, &request, &image, volumes)?;
        record.created_at = clock::after(self.newest(&metadata.name));
        change(&mut record);
        self.begin_story_of(&id, &metadata.name);
        let created = container::create(&self.rooms, &self.places, &pod, record).await;
        let container = created.inspect_err(|_| self.rooms.timelines.close(id.as_str()))?;
        info!(container = %id, name = metadata.name, image = name, "container created");
        self.adopt(container);
        self.publish();
        Ok(id)
    }

    /// When the last container of a name was made, unix nanoseconds.
    fn newest(&self, name: &str) -> i64 {
        let of_name = |there: &&Container| there.config.metadata.as_ref().is_some_and(|own| own.name == name);
        let all = self.containers.values().map(AsRef::as_ref);
        let times = all.filter(of_name).map(|there| there.record.created_at);
        times.max().unwrap_or_default()
    }

    /// The PID namespace of the container that a new one wants to look at.
    fn target(&self, request: &CreateContainer) -> Result<Option<std::path::PathBuf>> {
        let security = request.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
        if options.pid() != cri::NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.containers.values().find(|there| there.id.as_str() == options.target_id);
        match target.map(|there| &there.state) {
            Some(State::Created { pid } | State::Running { pid, .. }) => {
                Ok(Some(format!("/proc/{pid}/ns/pid").into()))
            }
            Some(_) => Err(Error::invalid("create container", &options.target_id, "the target has ended")),
            None => {
                Err(Error::invalid("create container", &options.target_id, "its pod has no such container"))
            }
        }
    }
}
