//! One task per pod: it owns the pod, takes commands one after the other, and hears what its containers' shims say.
//! What takes long (a grace period) is waited for outside, by whoever asked, on the published view.

use std::{collections::BTreeMap, net::IpAddr, ops::ControlFlow, sync::Arc};

use berth_cri::v1 as cri;
use berth_launch::{
    fault,
    v1::{self as launch, event},
};
use tokio::sync::{broadcast::error::RecvError, mpsc, oneshot};
use tracing::{Instrument, info, warn};

use super::{
    Client, CreateContainer, Rooms, attempts, blocking,
    board::Board,
    container::{self, Container},
    doing::Doing,
    listen::{hear, listen},
    place::{self, Places},
    record::{self, Phase, PodRecord},
    sandbox,
    state::{State, reason},
    takeover::{self, Wanted},
    tell::ending,
    told, undone,
};
use crate::{
    Error, Kind, Result,
    error::Cause,
    id::{ContainerId, PodId},
    launcher::{Fault, Shim},
};

type Answer<T> = oneshot::Sender<Result<T>>;

#[derive(Debug)]
pub enum Command {
    /// Answers once the pod is made, or with why not.
    Await(Box<cri::PodSandboxConfig>, Answer<PodId>),
    Create(Box<CreateContainer>, Answer<ContainerId>),
    Start(ContainerId, Answer<()>),
    Update(ContainerId, Box<cri::LinuxContainerResources>, Answer<()>),
    /// Notes the pod's overhead and resources; what is absent stays.
    Resize(Box<Resize>, Answer<()>),
    /// After a start of berthd: these have no shim. What still runs of them is killed; told when it has been seen to.
    Empty(Vec<ContainerId>, oneshot::Sender<()>),
    /// Its cgroup was killed and its shim says nothing: the shim is killed too, and a successor tells the end.
    GiveUp(ContainerId, Answer<()>),
    /// An ended container is to have no further attempt of berthd's making.
    Settle(ContainerId),
    /// The time has come for the attempt after one that has ended; so many of them in a row.
    Again(ContainerId, u32),
    /// Takes an ended container away.
    Forget(ContainerId, Answer<()>),
    /// From now on no container is made in it.
    Close(Answer<()>),
    /// Its containers have ended: lets namespaces and addresses go.
    TakeDown(Answer<()>),
    /// Takes the rest away; the task ends.
    Erase(Answer<()>),
    /// From the shim of the container's run of that number.
    Happened(ContainerId, u64, Happening),
}

/// What a client says that its pod costs and may use.
#[derive(Debug, Default)]
pub struct Resize {
    pub overhead: Option<cri::LinuxContainerResources>,
    pub resources: Option<cri::LinuxContainerResources>,
}

#[derive(Debug)]
pub enum Happening {
    Event(Arc<launch::Event>),
    /// The shim has gone, with or without a last word.
    Gone,
}

#[derive(Debug)]
pub struct Pod {
    pub id: PodId,
    pub rooms: Rooms,
    pub places: Places,
    pub board: Arc<Board>,
    pub record: PodRecord,
    pub config: Arc<cri::PodSandboxConfig>,
    pub ips: Vec<IpAddr>,
    /// Each apart: the map has room for eleven as soon as there is one.
    pub containers: BTreeMap<ContainerId, Box<Container>>,
    pub me: mpsc::Sender<Command>,
    pub doing: Doing,
}

impl Pod {
    /// Runs the task of a pod that is made already.
    pub fn run(self, commands: mpsc::Receiver<Command>) {
        let span = tracing::info_span!(parent: None, "pod", pod = %self.id);
        tokio::spawn(self.doing.clone().around(self.serve(commands)).instrument(span));
    }

    /// Runs the task of a pod that is yet to be made; `failed` is called before anybody hears of a failure.
    pub fn make_and_run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        failed: impl FnOnce() + Send + 'static,
    ) {
        let span = tracing::info_span!(parent: None, "pod", pod = %self.id);
        let doing = self.doing.clone();
        let task = async move {
            match Box::pin(self.make()).await {
                Ok(()) => self.serve(commands).await,
                Err(error) => {
                    failed();
                    commands.close();
                    let text = error.chain();
                    let mut first = Some(error);
                    while let Some(command) = commands.recv().await {
                        if let Command::Await(_, answer) = command {
                            // A retry that joined gets the same story; the kind is the first one's.
                            let again = || {
                                Error::new(Kind::Unavailable, "run pod", "begun before")
                                    .because(Cause(text.clone()))
                            };
                            answer.send(Err(first.take().unwrap_or_else(again))).ok();
                        }
                    }
                }
            }
        };
        tokio::spawn(doing.around(task).instrument(span));
    }

    async fn make(&mut self) -> Result<()> {
        self.begin_story();
        let directory = self.places.pod_record(&self.id);
        let made = directory.clone();
        blocking("make pod", move || place::make(&made)).await?;
        let outcome = async {
            sandbox::note(&self.places, &self.id, &mut self.record, Phase::Making).await?;
            fault::point("pod.intended");
            self.ips = sandbox::make(&self.rooms, &self.places, &self.id, &mut self.record).await?;
            fault::point("pod.made");
            sandbox::note(&self.places, &self.id, &mut self.record, Phase::Made).await
        };
        if let Err(error) = outcome.await {
            let (rooms, places, id) = (self.rooms.clone(), self.places.clone(), self.id.clone());
            let record = self.record.clone();
            let undo = move || {
                let (rooms, places, id, record) = (rooms.clone(), places.clone(), id.clone(), record.clone());
                async move { sandbox::remove(&rooms, &places, &id, &record).await }
            };
            if let Err(error) = undo().await {
                warn!(error = error.chain(), "a failed pod is not wholly taken back yet");
                undone::take_back(self.id.to_string(), undo);
            }
            self.rooms.timelines.close(self.id.as_str());
            return Err(error);
        }
        fault::point("pod.recorded");
        info!(name = self.config.metadata.as_ref().map(|m| m.name.as_str()), ips = ?self.ips, "pod ready");
        self.publish();
        Ok(())
    }

    async fn serve(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            // Apart, so that a pod holds the room that its longest command needs only as long as one is under way.
            if Box::pin(self.obey(command)).await.is_break() {
                return;
            }
        }
    }

    /// Breaks when the pod is gone.
    async fn obey(&mut self, command: Command) -> ControlFlow<()> {
        // An answer that nobody waits for any more is kept in the pod's state: a retry finds it there.
        match command {
            Command::Await(config, answer) => {
                answer.send(self.same(&config)).ok();
            }
            Command::Create(request, answer) => {
                answer.send(self.create(*request).await).ok();
            }
            Command::Start(id, answer) => {
                answer.send(self.start(&id).await).ok();
            }
            Command::Update(id, resources, answer) => {
                answer.send(self.update(&id, *resources).await).ok();
            }
            Command::Resize(resize, answer) => {
                answer.send(self.resize(*resize).await).ok();
            }
            Command::Empty(ids, done) => {
                for id in &ids {
                    self.empty(id).await;
                }
                done.send(()).ok();
            }
            Command::GiveUp(id, answer) => {
                answer.send(self.give_up(&id).await).ok();
            }
            Command::Settle(id) => self.settle(&id),
            Command::Again(id, in_a_row) => self.attempt_again(&id, in_a_row).await,
            Command::Forget(id, answer) => {
                answer.send(self.forget(&id).await).ok();
            }
            Command::Close(answer) => {
                answer.send(self.close().await).ok();
            }
            Command::TakeDown(answer) => {
                answer.send(self.take_down().await).ok();
            }
            Command::Erase(answer) => {
                let erased = self.erase().await;
                let done = erased.is_ok();
                answer.send(erased).ok();
                if done {
                    return ControlFlow::Break(());
                }
            }
            Command::Happened(id, run, happening) => self.happened(&id, run, happening).await,
        }
        ControlFlow::Continue(())
    }

    fn same(&self, config: &cri::PodSandboxConfig) -> Result<PodId> {
        match *self.config == *config {
            true => Ok(self.id.clone()),
            false => Err(Error::new(Kind::AlreadyExists, "run pod", self.id.short())
                .because(Cause("a pod of this name, uid and attempt runs with another configuration".into()))
                .hint("remove it first, or ask with the next attempt")),
        }
    }

    /// Listens to the container's shim from now on.
    pub fn adopt(&mut self, container: Container) {
        self.board.set_shim(&container.id, container.shim.clone());
        if let Some(shim) = &container.shim {
            listen(shim, container.id.clone(), container.run, self.me.clone());
            if matches!(container.state, State::Unknown { .. }) {
                hear(shim.clone(), container.id.clone(), container.run, self.me.clone());
            }
        }
        self.containers.insert(container.id.clone(), Box::new(container));
    }

    pub async fn start(&mut self, id: &ContainerId) -> Result<()> {
        let there = self.containers.get(id).ok_or_else(|| Error::not_found("start container", id.short()))?;
        let shim = match (&there.state, &there.shim) {
            (State::Created { .. }, Some(shim)) => shim.clone(),
            (State::Running { .. } | State::Backoff { .. }, _) if self.is_standalone() => return Ok(()),
            // The kubelet has just been given it.
            (State::Running { .. }, _) if attempts::is_ours(&there.record) => return Ok(()),
            (State::Exited { .. } | State::Created { .. }, _) if self.is_standalone() => {
                self.launch_again(id).await?
            }
            (state, _) => {
                return Err(Error::new(Kind::Precondition, "start container", id.short()).because(Cause(
                    format!("it is {:?}, only a created one can be started", state.published()),
                )));
            }
        };
        self.announce(id);
        fault::point("container.starting");
        let started = self.rooms.timelines.timed(id.as_str(), "start", shim.start()).await;
        let status = match started {
            Ok(status) => status,
            Err(fault) => {
                // The shim's last word follows at once; its callers expect the state to be there already.
                self.wait_for_end(id).await;
                if matches!(fault, Fault::Gone) {
                    // Its last word may be in its record only.
                    self.lost(id).await;
                }
                return Err(match (fault, self.containers.get(id).map(|there| &there.state)) {
                    (Fault::Gone, Some(State::Exited { .. })) => {
                        Error::new(Kind::Precondition, "start container", id.short())
                            .because(Cause("it was ended before it could start".into()))
                    }
                    (fault, _) => told(fault),
                });
            }
        };
        if let Some(there) = self.containers.get_mut(id) {
            there.state = there.state.step(&status);
        }
        fault::point("container.started");
        self.note_started(id).await;
        info!(container = %id, pid = status.pid, "container started");
        self.publish();
        Ok(())
    }

    /// A container of a person's is started again with its layer; after a reboot in namespaces made anew.
    async fn launch_again(&mut self, id: &ContainerId) -> Result<Shim> {
        if self.record.phase() != Phase::Made || self.record.boot_id != super::clock::boot_id() {
            self.ips = sandbox::make(&self.rooms, &self.places, &self.id, &mut self.record).await?;
            sandbox::note(&self.places, &self.id, &mut self.record, Phase::Made).await?;
        } else {
            sandbox::take_ports(&self.rooms, &self.id, &self.config).await?;
        }
        let pod = container::Pod { id: &self.id, record: &self.record, target_pid: None };
        let there =
            self.containers.get_mut(id).ok_or_else(|| Error::not_found("start container", id.short()))?;
        let launched = container::launch(&self.rooms, &self.places, &pod, id, &mut there.record).await;
        let (shim, document, ready) = match launched {
            Ok(launched) => launched,
            Err(error) => {
                self.close_ports(id).await;
                return Err(error);
            }
        };
        let there =
            self.containers.get_mut(id).ok_or_else(|| Error::not_found("start container", id.short()))?;
        there.document = document;
        there.state = State::Created { pid: ready.pid };
        there.shim = Some(shim.clone());
        there.run += 1;
        self.board.set_shim(id, Some(shim.clone()));
        listen(&shim, id.clone(), there.run, self.me.clone());
        Ok(shim)
    }

    /// After a failed start: until the exit record is there, or the shim has gone.
    pub async fn wait_for_end(&mut self, id: &ContainerId) {
        let Some(shim) = self.containers.get(id).and_then(|there| there.shim.clone()) else { return };
        let mut events = shim.events();
        let ended = async {
            // The event may have come before we listened.
            while shim.status().state() != launch::status::State::Exited {
                if events.recv().await.is_err_and(|error| error == RecvError::Closed) {
                    return;
                }
            }
        };
        // Bounded: the shim waits for the container's processes itself, and not for ever.
        tokio::time::timeout(std::time::Duration::from_secs(15), ended).await.ok();
        if let Some(exit) = shim.status().last_exit {
            self.ended(id, exit).await;
        }
    }

    async fn update(&mut self, id: &ContainerId, resources: cri::LinuxContainerResources) -> Result<()> {
        const OP: &str = "update container";
        let there = self.containers.get_mut(id).ok_or_else(|| Error::not_found(OP, id.short()))?;
        if !matches!(there.state, State::Created { .. } | State::Running { .. }) {
            return Err(Error::new(Kind::Precondition, OP, id.short())
                .because(Cause(format!("it is {:?}", there.state.published()))));
        }
        let (rooms, places) = (self.rooms.clone(), self.places.clone());
        let (id, record) = (id.clone(), there.record.clone());
        let timelines = rooms.timelines.clone();
        let changed = blocking(OP, {
            let id = id.clone();
            move || container::update(&rooms, &places, &id, &record, &resources)
        });
        let updated = timelines.timed(id.as_str(), "update limits", changed).await?;
        there.config = Arc::new(updated.config.clone().unwrap_or_default());
        there.record = updated;
        self.publish();
        Ok(())
    }

    async fn resize(&mut self, resize: Resize) -> Result<()> {
        let mut record = self.record.clone();
        record.overhead = resize.overhead.or(record.overhead);
        record.resources = resize.resources.or(record.resources);
        let (directory, written) = (self.places.pod_record(&self.id), record.clone());
        blocking("record pod", move || record::write(&directory, &written)).await?;
        self.record = record;
        self.publish();
        Ok(())
    }

    pub async fn forget(&mut self, id: &ContainerId) -> Result<()> {
        let there =
            self.containers.get(id).ok_or_else(|| Error::not_found("remove container", id.short()))?;
        let removed = container::remove(&self.rooms, &self.places, id, &there.record);
        self.rooms.timelines.timed(id.as_str(), "remove", removed).await?;
        self.rooms.timelines.close(id.as_str());
        self.containers.remove(id);
        self.board.set_shim(id, None);
        info!(container = %id, "container removed");
        self.publish();
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        match self.record.phase() {
            Phase::Stopping | Phase::Stopped => Ok(()),
            Phase::Made | Phase::Making => {
                sandbox::note(&self.places, &self.id, &mut self.record, Phase::Stopping).await?;
                fault::point("pod.stopping");
                self.publish();
                Ok(())
            }
        }
    }

    async fn take_down(&mut self) -> Result<()> {
        if self.record.phase() == Phase::Stopped {
            return Ok(());
        }
        sandbox::take_down(&self.rooms, &self.places, &self.id, &self.record).await?;
        fault::point("pod.down");
        self.ips.clear();
        self.record.ips.clear();
        sandbox::note(&self.places, &self.id, &mut self.record, Phase::Stopped).await?;
        fault::point("pod.stopped");
        info!("pod stopped");
        self.publish();
        Ok(())
    }

    async fn erase(&mut self) -> Result<()> {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            self.forget(&id).await?;
        }
        let (dir, directory) = (self.places.pod_dir(&self.id), self.places.pod_record(&self.id));
        blocking("remove pod", move || {
            place::remove(&dir)?;
            fault::point("pod.erasing");
            place::remove(&directory)
        })
        .await?;
        self.rooms.timelines.note(self.id.as_str(), "removed", "");
        self.rooms.timelines.close(self.id.as_str());
        info!("pod removed");
        self.board.withdraw(&self.id);
        Ok(())
    }

    async fn happened(&mut self, id: &ContainerId, run: u64, happening: Happening) {
        // A late word of an earlier run's shim is about what is over.
        let Some(there) = self.containers.get_mut(id).filter(|there| there.run == run) else { return };
        match happening {
            Happening::Event(event) => match Arc::unwrap_or_clone(event).event {
                Some(event::Event::Changed(status)) => {
                    let now = there.state.step(&status);
                    let before = std::mem::replace(&mut there.state, now);
                    self.tell(id, &before, &status);
                    self.publish();
                }
                Some(event::Event::Exited(exit)) => self.ended(id, exit).await,
                Some(event::Event::ExecExited(_)) | None => {}
            },
            Happening::Gone => self.lost(id).await,
        }
    }

    pub async fn ended(&mut self, id: &ContainerId, exit: launch::Exit) {
        let Some(there) = self.containers.get_mut(id) else { return };
        if matches!(there.state, State::Exited { .. }) {
            return;
        }
        info!(container = %id, exit_code = exit.exit_code, reason = reason(&exit), "container ended");
        self.rooms.timelines.note(id.as_str(), "ended", ending(&exit));
        fault::point("container.ended");
        there.state = State::Exited { exit };
        there.shim = None;
        self.board.set_shim(id, None);
        let (rooms, path) = (self.rooms.clone(), there.record.cgroup_path.clone());
        self.rooms.network.withdraw(&self.id);
        // Before anybody hears of the end: the next one may want them. A kubelet's pods keep theirs until they stop.
        if self.is_standalone() {
            self.close_ports(id).await;
        }
        self.publish();
        clear_cgroup(rooms, id, path).await;
        self.consider_next(id);
    }

    /// Kills what is left of a container that was found without a shim.
    async fn empty(&mut self, id: &ContainerId) {
        let Some(there) = self.containers.get(id) else { return };
        let record = there.record.clone();
        match &there.state {
            State::Exited { .. } => clear_cgroup(self.rooms.clone(), id, record.cgroup_path).await,
            State::Created { .. } | State::Running { .. } | State::Backoff { .. } | State::Unknown { .. } => {
                self.end_orphan(id, record, takeover::NO_OTHER, Wanted::AsItsShimWrote).await
            }
        }
    }

    fn is_standalone(&self) -> bool {
        self.record.by() == Client::Standalone
    }
}

async fn clear_cgroup(rooms: Rooms, id: &ContainerId, path: String) {
    let cleared = blocking("clear cgroup", move || container::clear_cgroup(&rooms, &path)).await;
    if let Err(error) = cleared {
        warn!(container = %id, error = error.chain(), "cgroup left; it goes with the container");
    }
}
