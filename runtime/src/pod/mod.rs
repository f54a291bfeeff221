//! THE BRAIN: decides and records. One task per pod owns it; lists and statuses come from published views and never
//! wait for a container.
//!
//! ```text
//! Pods (doors call it) ──Command──> actor::Pod, one task each ──> sandbox, container ──> image, net, cgroup, oci, launcher
//!   ^ views, shims <── Board <──publish──┘   ^──Happened── events of the containers' shims
//! recover: records on disk + shims that answer -> the same tasks as before
//! ```

mod actor;
mod apparmor;
mod asks;
mod attempts;
mod board;
mod cause;
mod cdi;
mod clock;
mod container;
mod create;
mod doctor;
mod doing;
mod ending;
mod events;
mod handlers;
mod image_volumes;
mod listen;
mod names;
mod orphans;
mod place;
mod ports;
mod publish;
mod reboot;
mod record;
mod recover;
mod relabel;
mod resources;
mod sandbox;
mod starved;
mod state;
mod streams;
mod takeover;
mod tell;
mod timeline;
mod undone;
mod view;
mod volumes;
mod wish;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_cri::v1 as cri;
use berth_launch::v1::sent::By;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

pub use self::view::{
    Client, ContainerState, ContainerView, CreateContainer, ExecHandle, Exit, PodState, PodView, RunPod,
    exit_of,
};
use self::{
    actor::{Command, Pod},
    board::Board,
    doing::{Doing, noted},
    place::Places,
};
use crate::{
    Error, Kind, Result, cgroup, config,
    error::Cause,
    id::{ContainerId, PodId},
    image,
    launcher::{Fault, Launcher, Shim},
    net, oci,
};
pub use doctor::{Finding, Mending, Outcome};
pub use events::{Event, What};
pub use handlers::{Handler, Handlers, RecursiveReadOnly};
pub use timeline::{Step, Story, Timelines};
pub use wish::NETWORK;
// What callers of this room give and get; they need not know the rooms behind it.
pub use crate::{
    cgroup::Stats,
    launcher::Ends,
    net::IPS,
    oci::{Exec, Options},
};

/// The rooms that pods are made with.
#[derive(Debug, Clone)]
pub struct Rooms {
    pub config: config::Daemon,
    pub handlers: Handlers,
    pub images: image::Store,
    pub network: Arc<net::Network>,
    pub cgroups: cgroup::Hierarchy,
    pub launcher: Launcher,
    pub timelines: Timelines,
}

/// All pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods(Arc<Node>);

#[derive(Debug)]
struct Node {
    rooms: Rooms,
    places: Places,
    board: Arc<Board>,
    tasks: Arc<Mutex<Tasks>>,
    measuring: Semaphore,
}

/// So many cgroups are read beside each other: each takes a thread, which stays for a while, and no more cores than these are
/// kept busy by a node's statistics.
const MEASURED_AT_ONCE: usize = 4;

/// The pods' tasks, by id and by what a client calls them.
#[derive(Debug, Default)]
struct Tasks {
    by_id: HashMap<PodId, Desk>,
    by_name: HashMap<Name, PodId>,
}

/// Where a pod's task is asked, and what keeps it from answering.
#[derive(Debug, Clone)]
struct Desk {
    commands: mpsc::Sender<Command>,
    doing: Doing,
}

/// What makes a pod of CRI's the same as another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    namespace: String,
    name: String,
    uid: String,
    attempt: u32,
}

/// Commands that may wait for a pod's task.
const COMMANDS: usize = 256;

impl Pods {
    /// Reads the records, finds the shims again, sweeps what nobody owns. Nothing that can't be read is dropped.
    pub async fn recover(rooms: Rooms) -> Result<Self> {
        recover::recover(rooms).await
    }

    fn new(rooms: Rooms, places: Places, board: Arc<Board>, tasks: Tasks) -> Self {
        let measuring = Semaphore::new(MEASURED_AT_ONCE);
        Self(Arc::new(Node { rooms, places, board, tasks: Arc::new(tasks.into()), measuring }))
    }

    /// Makes a pod, or joins the making of the same one.
    pub async fn run(&self, request: RunPod) -> Result<PodId> {
        sandbox::check(&self.0.rooms.handlers, &request)?;
        let (doing, answer) = self.begin(request);
        doing.or_hangs("run pod", "of that name", async { received(answer.await) }).await
    }

    /// Hands the request to the pod's task, a new one where there is none.
    fn begin(&self, request: RunPod) -> (Doing, oneshot::Receiver<Result<PodId>>) {
        let (answer, answered) = oneshot::channel();
        let name = match request.client {
            Client::Cri => Some(Name::of(&request.config)),
            Client::Standalone => None,
        };
        let config = Box::new(request.config.clone());
        let mut tasks = self.tasks();
        let there = name
            .as_ref()
            .and_then(|name| tasks.by_name.get(name))
            .and_then(|id| tasks.by_id.get(id))
            .cloned();
        match there {
            Some(Desk { commands, doing }) => {
                if let Some(id) = name.as_ref().and_then(|name| tasks.by_name.get(name)) {
                    self.0.rooms.timelines.note(
                        id.as_str(),
                        "asked for again",
                        "the call joins what is there",
                    );
                }
                tokio::spawn(async move {
                    // A task that has ended drops the answer, which its caller sees.
                    commands.send(Command::Await(config, answer)).await.ok();
                });
                (doing, answered)
            }
            None => {
                let id = PodId::random();
                let (commands, receiver) = mpsc::channel(COMMANDS);
                let doing = Doing::default();
                tasks.by_id.insert(id.clone(), Desk { commands: commands.clone(), doing: doing.clone() });
                if let Some(name) = &name {
                    tasks.by_name.insert(name.clone(), id.clone());
                }
                // Before the task runs, which may fail at once: its failure is this caller's answer. The queue is empty.
                commands.try_send(Command::Await(config, answer)).ok();
                let pod = self.new_pod(id.clone(), request, commands, doing.clone());
                let tasks = Arc::clone(&self.0.tasks);
                pod.make_and_run(receiver, move || {
                    tasks.lock().unwrap_or_else(PoisonError::into_inner).forget(&id);
                });
                (doing, answered)
            }
        }
    }

    fn new_pod(&self, id: PodId, request: RunPod, me: mpsc::Sender<Command>, doing: Doing) -> Pod {
        let name = Name::of(&request.config);
        let before = |view: &PodView| view.client == Client::Cri && Name::of(&view.config).is_beside(&name);
        let record = record::PodRecord {
            version: record::VERSION,
            id: id.to_string(),
            client: record::By::from(request.client).into(),
            handler: request.handler,
            config: Some(request.config.clone()),
            created_at: clock::after(self.0.board.newest(before)),
            ..record::PodRecord::default()
        };
        Pod {
            id,
            rooms: self.0.rooms.clone(),
            places: self.0.places.clone(),
            board: Arc::clone(&self.0.board),
            record,
            config: Arc::new(request.config),
            ips: Vec::new(),
            containers: Default::default(),
            me,
            doing,
        }
    }

    /// Kills all of it and lets the network go. Stopped already: success.
    ///
    /// # Errors
    /// `NotFound` for a pod that isn't there.
    pub async fn stop(&self, pod: &PodId) -> Result<()> {
        self.ask(pod, Command::Close).await?;
        let containers = self.pod(pod).map(|view| view.containers.clone()).unwrap_or_default();
        let ended = containers.iter().map(|container| self.end_container(&container.id, By::PodStops));
        for outcome in futures_util::future::join_all(ended).await {
            outcome?;
        }
        self.ask(pod, Command::TakeDown).await
    }

    /// Removes it with all its containers, stopping it first.
    ///
    /// # Errors
    /// `NotFound` for a pod that isn't there.
    pub async fn remove(&self, pod: &PodId) -> Result<()> {
        self.stop(pod).await?;
        self.ask(pod, Command::Erase).await?;
        self.tasks().forget(pod);
        Ok(())
    }

    /// Makes a container in a pod, up to CREATED.
    pub async fn create(&self, pod: &PodId, request: CreateContainer) -> Result<ContainerId> {
        self.ask(pod, |answer| Command::Create(Box::new(request), answer)).await
    }

    pub async fn start(&self, container: &ContainerId) -> Result<()> {
        let pod = self.home("start container", container)?;
        self.ask(&pod, |answer| Command::Start(container.clone(), answer)).await
    }

    /// Changes a created or running container's resources: what is zero or empty stays. All of it or none.
    ///
    /// # Errors
    /// `Precondition` for one that has ended; `Invalid` for what the kernel does not take.
    pub async fn update(
        &self,
        container: &ContainerId,
        resources: cri::LinuxContainerResources,
    ) -> Result<()> {
        let pod = self.home("update container", container)?;
        self.ask(&pod, |answer| Command::Update(container.clone(), Box::new(resources), answer)).await
    }

    /// Notes what a pod costs and may use; its cgroup is its client's, who has changed it already. What is absent stays.
    ///
    /// # Errors
    /// `NotFound` for a pod that isn't there.
    pub async fn resize_pod(
        &self,
        pod: &PodId,
        overhead: Option<cri::LinuxContainerResources>,
        resources: Option<cri::LinuxContainerResources>,
    ) -> Result<()> {
        let resize = Box::new(actor::Resize { overhead, resources });
        self.ask(pod, |answer| Command::Resize(resize, answer)).await
    }

    pub async fn kill_container(&self, container: &ContainerId, signal: u32) -> Result<()> {
        self.shim("kill container", container)?.kill(signal, false).await.map_err(told)
    }

    /// Ends it where it runs, then takes it away.
    ///
    /// # Errors
    /// `NotFound` for a container that isn't there.
    pub async fn remove_container(&self, container: &ContainerId) -> Result<()> {
        let pod = self.home("remove container", container)?;
        self.end_container(container, By::Removed).await?;
        self.ask(&pod, |answer| Command::Forget(container.clone(), answer)).await
    }

    /// Waits until it has ended for good.
    ///
    /// # Errors
    /// `NotFound` when it is removed, or isn't there.
    pub async fn wait(&self, container: &ContainerId) -> Result<ContainerView> {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let view = self.container(container);
            match view.ok_or_else(|| Error::not_found("wait for container", container.short()))? {
                view if view.state == ContainerState::Exited => return Ok(view),
                _ => {}
            }
            if changes.changed().await.is_err() {
                return Err(Error::new(Kind::Cancelled, "wait for container", container.short()));
            }
        }
    }

    pub async fn stats(&self, container: &ContainerId) -> Result<cgroup::Stats> {
        let view = self
            .container(container)
            .ok_or_else(|| Error::not_found("measure container", container.short()))?;
        if view.state != ContainerState::Running {
            return Err(Error::new(Kind::Precondition, "measure container", container.short())
                .because(Cause("it is not running".into())));
        }
        self.measure(&view.cgroup_path).await
    }

    /// What a cgroup's files say. Waits for its turn.
    pub async fn measure(&self, cgroup: &str) -> Result<cgroup::Stats> {
        let _turn = self.0.measuring.acquire().await;
        let group = self.0.rooms.cgroups.group(cgroup);
        blocking("measure cgroup", move || group.stats()).await
    }

    /// What has happened to what is there, or went within the last hour.
    pub fn timelines(&self) -> &Timelines {
        &self.0.rooms.timelines
    }

    /// From memory, at once.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        self.0.board.list()
    }

    pub fn pod(&self, pod: &PodId) -> Option<Arc<PodView>> {
        self.0.board.pod(pod)
    }

    pub fn container(&self, container: &ContainerId) -> Option<ContainerView> {
        self.0.board.container(container)
    }

    /// What is there as events, then every change. A receiver that lags has missed some and has to begin anew.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.0.board.follow()
    }

    /// Looks after each change of any view until there is something to be seen; none where that takes longer than allowed.
    async fn seen<T>(&self, allowed: Duration, look: impl Fn() -> Option<T>) -> Option<T> {
        let mut changes = self.changes();
        let seen = async {
            loop {
                changes.mark_unchanged();
                let found = look();
                // Changes end with the board, which we hold.
                if found.is_some() || changes.changed().await.is_err() {
                    return found;
                }
            }
        };
        tokio::time::timeout(allowed, seen).await.unwrap_or_default()
    }

    /// Changes whenever any view does; what waits and follows hangs on it.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.board.changes()
    }

    async fn ask<T>(
        &self,
        pod: &PodId,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let task = self.tasks().by_id.get(pod).cloned();
        let task = task.ok_or_else(|| Error::not_found("find pod", pod.short()))?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let sent = task.commands.send(command(answer)).await;
            sent.map_err(|_| Error::not_found("find pod", pod.short()))?;
            received(answered.await)
        };
        task.doing.or_hangs("ask pod", pod.short(), asked).await
    }

    fn home(&self, op: &'static str, container: &ContainerId) -> Result<PodId> {
        self.0.board.home(container).ok_or_else(|| Error::not_found(op, container.short()))
    }

    fn shim(&self, op: &'static str, container: &ContainerId) -> Result<Shim> {
        self.home(op, container)?;
        self.0.board.shim(container).ok_or_else(|| {
            Error::new(Kind::Precondition, op, container.short()).because(Cause("it is not running".into()))
        })
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        // Two maps that are changed together, each change whole before anything can panic.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    fn forget(&mut self, pod: &PodId) {
        self.by_id.remove(pod);
        self.by_name.retain(|_, id| id != pod);
    }
}

impl Name {
    /// Whether it is another attempt of the same pod.
    fn is_beside(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&other.namespace, &other.name, &other.uid)
    }

    fn of(config: &cri::PodSandboxConfig) -> Self {
        let metadata = config.metadata.clone().unwrap_or_default();
        Self {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            attempt: metadata.attempt,
        }
    }
}

/// What a shim's fault means to a caller.
fn told(fault: Fault) -> Error {
    match fault {
        Fault::Failed(failure) => oci::explain(&failure),
        Fault::Error(error) => error,
        Fault::Gone => Error::new(Kind::Unavailable, "ask shim", "of the container")
            .because(Cause("it has gone".into()))
            .hint("ask again"),
    }
}

/// Runs file work beside the async threads.
async fn blocking<T: Send + 'static>(
    op: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    noted(op, tokio::task::spawn_blocking(work))
        .await
        .map_err(|error| Error::new(Kind::Internal, op, "in a thread").because(error))?
}

fn received<T>(answer: Result<Result<T>, oneshot::error::RecvError>) -> Result<T> {
    answer.unwrap_or_else(|_| {
        Err(Error::not_found("ask pod", "its task").hint("the pod was removed meanwhile"))
    })
}
