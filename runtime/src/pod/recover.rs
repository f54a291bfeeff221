//! After a start: records on disk and shims that answer become the same pods as before. What was begun and not ended is
//! taken back; what nobody owns is swept, with a line that says what and why; what can't be read is kept.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_launch::{fault, v1 as launch};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tracing::{info, warn};

use super::{
    COMMANDS, Client, Desk, Name, Pods, Rooms, Tasks,
    actor::{Command, Pod},
    blocking,
    board::Board,
    clock,
    container::{self, Container},
    doing::Doing,
    image_volumes,
    orphans::{self, Orphan},
    place::{self, Places},
    reboot,
    record::{self, ContainerRecord, Phase, PodRecord},
    sandbox, starved,
    state::State,
    takeover::{self, Takeovers},
};
use crate::{
    Error, Kind, Result,
    id::{ContainerId, PodId},
    launcher::{self, Reserve},
    oci,
};

/// Pods that are looked at beside each other, and containers of one: whose shim is silent holds up no other. When the disk
/// of all logs hangs, all are.
const AT_ONCE: usize = 1024;
/// Containers without a shim that answers that are looked into beside each other: each takes a thread, or a new shim.
const LOST_AT_ONCE: usize = 64;
/// So long a start waits for its sweep: the test that leaves 10,000 took 17 s in all while starts waited for the end.
const SWEEPING: Duration = Duration::from_secs(1);
/// And so long for what was begun and not ended, since a retry may want its ports, addresses and names; and for what ended
/// and may have left something running.
const TAKING_BACK: Duration = Duration::from_secs(2);

pub async fn recover(rooms: Rooms) -> Result<Pods> {
    let begun = Instant::now();
    let places = Places::new(&rooms.config);
    starved::follow(rooms.timelines.clone());
    let boot_id = clock::boot_id();
    let (records, kept) = (places.clone(), rooms.timelines.keep(places.stories(), &boot_id));
    let (mut found, ()) = tokio::try_join!(blocking("read records", move || read(&records)), kept)?;
    fault::point("start.read");
    image_volumes::hold_again(&rooms, &found.containers).await?;
    let mut sweeping = sweep(&rooms, &places, &mut found).await?;
    let board = Arc::new(Board::new());
    let mut tasks = Tasks::default();
    let (pods, mut containers, unreadable) = (found.pods, by_pod(found.containers), found.unreadable);
    let found: Vec<_> = pods
        .into_iter()
        .map(|(id, record)| {
            let containers = containers.remove(&record.id).unwrap_or_default();
            Remains { id, record, containers }
        })
        .collect();
    let start = Start {
        rooms: rooms.clone(),
        places: places.clone(),
        board: Arc::clone(&board),
        boot_id: boot_id.into(),
        lost: Arc::new(Semaphore::new(LOST_AT_ONCE)),
    };
    let revived = stream::iter(found).map(|remains| tokio::spawn(revive(start.clone(), remains)));
    let mut revived = revived.buffer_unordered(AT_ONCE);
    let mut taking_back = JoinSet::new();
    while let Some(outcome) = revived.next().await {
        let Revived { pod, begun, ending } =
            outcome.map_err(|error| Error::new(Kind::Internal, "find pod", "again").because(error))??;
        begun
            .into_iter()
            .for_each(|begun| drop(taking_back.spawn(begun.take_back(rooms.clone(), places.clone()))));
        // It is let go when the pod's task has seen to them.
        ending.into_iter().for_each(|ending| drop(taking_back.spawn(async { drop(ending.await) })));
        let Some(There { id, name, desk }) = pod else { continue };
        tasks.by_id.insert(id.clone(), desk);
        if let Some(name) = name {
            tasks.by_name.insert(name, id);
        }
    }
    drop(revived);
    fault::point("start.revived");
    for containers in containers.into_values() {
        for (id, _) in &containers {
            info!(container = %id, "a container whose pod is gone is taken back");
        }
        taking_back.spawn(Begun { containers, pod: None }.take_back(rooms.clone(), places.clone()));
    }
    rooms.timelines.close_others(|id| {
        let is_pod = PodId::parse(id).is_ok_and(|id| tasks.by_id.contains_key(&id));
        let is_container = ContainerId::parse(id).is_ok_and(|id| board.home(&id).is_some());
        is_pod || is_container || unreadable.contains(id)
    });
    let (there, kept) = (places.clone(), Arc::clone(&board));
    let logs = blocking("look for logs", move || {
        let known = |id: &str| {
            unreadable.contains(id) || ContainerId::parse(id).is_ok_and(|id| kept.home(&id).is_some())
        };
        let logs = orphans::logs(&there).into_iter();
        Ok(logs.filter(|orphan| !orphan.id().is_some_and(known)).collect())
    });
    let logs = logs.await?;
    let (here, there) = (rooms.clone(), places.clone());
    sweeping.spawn(async move { orphans::mend_all(&here, &there, logs).await });
    let living = board.list();
    let living = living.iter().filter(|pod| pod.state == super::PodState::Ready).map(|pod| pod.id.clone());
    rooms.network.look_after(living.collect());
    let (pods, containers) = (tasks.by_id.len(), board.containers());
    info!(pods, containers, elapsed_ms = begun.elapsed().as_millis() as u64, "what runs is found again");
    wait_for(taking_back, begun + TAKING_BACK).await;
    wait_for(sweeping, begun + SWEEPING).await;
    fault::point("start.done");
    Ok(Pods::new(rooms, places, board, tasks))
}

/// A pod as its records say.
struct Remains {
    id: PodId,
    record: PodRecord,
    containers: Vec<(ContainerId, ContainerRecord)>,
}

fn by_pod(
    containers: Vec<(ContainerId, ContainerRecord)>,
) -> HashMap<String, Vec<(ContainerId, ContainerRecord)>> {
    let mut sorted: HashMap<_, Vec<_>> = HashMap::new();
    for (id, record) in containers {
        sorted.entry(record.pod.clone()).or_default().push((id, record));
    }
    sorted
}

/// What every pod is found again with.
#[derive(Clone)]
struct Start {
    rooms: Rooms,
    places: Places,
    board: Arc<Board>,
    boot_id: Arc<str>,
    lost: Arc<Semaphore>,
}

/// What the records of a pod have come to.
struct Revived {
    pod: Option<There>,
    begun: Option<Begun>,
    ending: Option<oneshot::Receiver<()>>,
}

/// A pod whose task runs.
struct There {
    id: PodId,
    name: Option<Name>,
    desk: Desk,
}

/// What was begun and not ended when berthd ended.
struct Begun {
    containers: Vec<(ContainerId, ContainerRecord)>,
    pod: Option<(PodId, PodRecord)>,
}

impl Begun {
    async fn take_back(self, rooms: Rooms, places: Places) {
        for (container, record) in &self.containers {
            fault::point("start.taking_back");
            take_back(&rooms, &places, container, record).await;
        }
        if let Some((id, record)) = &self.pod {
            erase(&rooms, &places, id, record).await;
        }
    }
}

/// Until all of it is done, or that time has come; then it goes on by itself.
async fn wait_for(mut work: JoinSet<()>, until: Instant) {
    let done = async { while work.join_next().await.is_some() {} };
    if tokio::time::timeout_at(until.into(), done).await.is_err() {
        info!("much is left of what is gone: it is removed while calls are answered");
        work.detach_all();
    }
}

/// Finds a pod's containers again and starts its task; none where it is taken back.
async fn revive(start: Start, remains: Remains) -> Result<Revived> {
    let Remains { id, mut record, containers } = remains;
    let Start { rooms, places, board, boot_id, .. } = &start;
    // A person's container is the one thing its hidden pod is for: half made, or half removed, it is nobody's.
    let whole = |(_, container): &(ContainerId, ContainerRecord)| container.phase() != Phase::Making;
    let deserted = record.by() == Client::Standalone && !containers.iter().any(whole);
    if record.phase() == Phase::Making || deserted {
        info!(pod = %id, "a pod that was being made or removed when berthd ended is taken back");
        let begun = Some(Begun { containers, pod: Some((id, record)) });
        return Ok(Revived { pod: None, begun, ending: None });
    }
    // It was stopped, and its addresses were to be free once its link had gone.
    if record.phase() == Phase::Stopped
        && let Err(error) = rooms.network.release(&id).await
    {
        warn!(pod = %id, error = error.chain(), "addresses of a pod that was stopped are not free");
    }
    // A reboot has ended what ran, and its namespaces with it.
    if record.boot_id != **boot_id && record.by() == Client::Cri && record.phase() == Phase::Made {
        sandbox::note(places, &id, &mut record, Phase::Stopping).await?;
    }
    let (me, commands) = mpsc::channel(COMMANDS);
    let doing = Doing::default();
    let config = record.config.clone().unwrap_or_default();
    let name = (record.by() == Client::Cri).then(|| Name::of(&config));
    let mut pod = Pod {
        id: id.clone(),
        rooms: rooms.clone(),
        places: places.clone(),
        board: Arc::clone(board),
        ips: record.ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        record,
        config: Arc::new(config),
        containers: Default::default(),
        me: me.clone(),
        doing: doing.clone(),
    };
    let (made, begun): (Vec<_>, Vec<_>) = containers.into_iter().partition(whole);
    for (id, _) in &begun {
        info!(container = %id, "a container that was being made when berthd ended is taken back");
    }
    let found = made.into_iter().map(|(id, record)| find_again(&start, id, record));
    let found: Vec<_> = stream::iter(found).buffered(AT_ONCE).try_collect().await?;
    let (mut coming_back, mut ending) = (Vec::new(), Vec::new());
    for found in found {
        let id = found.id.clone();
        let ended = matches!(found.state, State::Exited { .. });
        if found.shim.is_none() {
            ending.push(id.clone());
        }
        let begun = !ended && !matches!(found.state, State::Created { .. });
        if ended && comes_back(places, &found, boot_id) {
            coming_back.push(id.clone());
        }
        pod.adopt(found);
        if begun {
            pod.announce(&id);
        }
        if ended && pod.record.by() == Client::Standalone {
            pod.close_ports(&id).await;
        }
    }
    pod.begin_story();
    pod.containers.values().for_each(|found| pod.tell_found(found));
    pod.publish();
    pod.consider_all();
    let stopping = pod.record.phase() == Phase::Stopping;
    let ending = (!ending.is_empty()).then(|| {
        let (done, ending_done) = oneshot::channel();
        // The first in its queue: whoever starts one of them again finds its cgroup empty.
        me.try_send(Command::Empty(ending, done)).ok();
        ending_done
    });
    pod.run(commands);
    for id in coming_back {
        reboot::bring_back(me.clone(), id);
    }
    if stopping {
        go_on_stopping(me.clone());
    }
    let begun = (!begun.is_empty()).then_some(Begun { containers: begun, pod: None });
    fault::point("start.pod");
    let desk = Desk { commands: me, doing };
    Ok(Revived { pod: Some(There { id, name, desk }), begun, ending })
}

/// One that is always to run, and nothing says that it was stopped before the machine was.
fn comes_back(places: &Places, found: &Container, boot_id: &str) -> bool {
    let rebooted = found.record.boot_id != boot_id;
    rebooted && found.record.comes_back() && record::read_exit(&places.container_record(&found.id)).is_none()
}

/// What is on disk, readable.
struct Found {
    pods: Vec<(PodId, PodRecord)>,
    containers: Vec<(ContainerId, ContainerRecord)>,
    /// Ids of records that can't be read: nothing of theirs is touched.
    unreadable: HashSet<String>,
    /// Directories that were made and not yet written in: nothing hangs on them.
    blank: Vec<Orphan>,
}

fn read(places: &Places) -> Result<Found> {
    let (mut unreadable, mut blank) = (HashSet::new(), Vec::new());
    // Records hold environments, layers setuid files, /dev/shm is open to all: none of it is for the node's other users.
    for private in
        [places.pods(), places.containers(), places.state.join("pods"), places.state.join("containers")]
    {
        place::make(&private)?;
        // A disk that can only be read is no reason not to look after what runs.
        if fs::metadata(&private).is_ok_and(|found| found.permissions().mode() & 0o7777 == 0o700) {
            continue;
        }
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700))
            .map_err(|error| crate::Error::io("set mode of", private.display().to_string(), error))?;
    }
    let pods = all(&places.pods(), PodId::parse, &mut unreadable, &mut blank);
    let containers = all(&places.containers(), ContainerId::parse, &mut unreadable, &mut blank);
    Ok(Found { pods, containers, unreadable, blank })
}

fn all<I, R: prost::Message + Default>(
    directory: &Path,
    parse: impl Fn(&str) -> Result<I>,
    unreadable: &mut HashSet<String>,
    blank: &mut Vec<Orphan>,
) -> Vec<(I, R)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(id) = parse(&name) else { continue };
        match record::read(&entry.path()) {
            Ok(Some(record)) => found.push((id, record)),
            Ok(None) => blank.push(Orphan::Blank(entry.path())),
            Err(error) => {
                warn!(
                    id = name,
                    error = error.chain(),
                    "a record can't be read; it is kept, and so is what it names"
                );
                unreadable.insert(name);
            }
        }
    }
    found
}

async fn find_again(start: &Start, id: ContainerId, record: ContainerRecord) -> Result<Container> {
    let Start { rooms, places, boot_id, lost, .. } = start;
    let id = &id;
    let config = Arc::new(record.config.clone().unwrap_or_default());
    let document = serde_json::from_slice(&record.spec).map(oci::Document::found).unwrap_or_default();
    let of = |state, shim| Container {
        id: id.clone(),
        config: Arc::clone(&config),
        document: document.clone(),
        env: Arc::new(record.env.clone()),
        record: record.clone(),
        state,
        shim,
        run: 0,
        takeovers: Takeovers::default(),
        settled: false,
    };
    match rooms.launcher.find(&places.container_dir(id)).await {
        Ok(launcher::Found::Answers(shim)) => {
            let status = shim.status();
            if status.state() != launch::status::State::Exited {
                info!(container = %id, pid = status.pid, "container found again");
                return Ok(of(State::of(&status), Some(shim)));
            }
        }
        Ok(launcher::Found::Silent(shim)) => {
            warn!(container = %id, "its shim does not answer: it is stopped, or its log's disk hangs; waited for");
            let why = "its shim does not answer: it is stopped (SIGSTOP), or the disk of its log hangs";
            return Ok(of(State::Unknown { why: why.into() }, Some(shim)));
        }
        Err(error) if error.kind == Kind::NotFound => {}
        Err(error) => warn!(container = %id, error = error.chain(), "the container's shim can't be reached"),
    }
    let _turn = lost.acquire().await;
    if record.boot_id == **boot_id && record::read_exit(&places.container_record(id)).is_none() {
        fault::point("start.lost");
        match takeover::take_over(rooms, places, id, &record, Reserve::new()).await {
            Ok(shim) => {
                fault::point("start.adopted");
                return Ok(of(State::of(&shim.status()), Some(shim)));
            }
            Err(_) if record::read_exit(&places.container_record(id)).is_some() => {
                warn!(container = %id, "{}", takeover::TOLD);
            }
            Err(error) => warn!(container = %id, error = error.chain(), "no shim could take over"),
        }
    }
    let (directory, written, boot_id) = (places.container_record(id), record.clone(), Arc::clone(boot_id));
    let exit = blocking("look for exit record", move || {
        if let Some(exit) = record::read_exit(&directory) {
            return Ok(Some(exit));
        }
        if written.boot_id == *boot_id {
            return Ok(None);
        }
        let exit = container::unseen(&written, "the machine was started anew");
        if written.comes_back() {
            // Not written down: until it runs again every start of berthd tries.
            return Ok(Some(exit));
        }
        if let Err(error) = record::write_exit(&directory, &exit) {
            warn!(container = written.id, %error, "exit record not written");
        }
        Ok(Some(exit))
    })
    .await?;
    match exit {
        Some(exit) => {
            info!(container = %id, exit_code = exit.exit_code, "container ended while berthd was down");
            Ok(of(State::Exited { exit }, None))
        }
        // Its pod's task ends it, beside all others: that may take as long as a process takes to die.
        None => Ok(of(State::Unknown { why: "it is being ended: its shim was killed".into() }, None)),
    }
}

/// A pod that was told to stop before the daemon ended.
fn go_on_stopping(pod: mpsc::Sender<Command>) {
    tokio::spawn(async move {
        let (answer, answered) = oneshot::channel();
        // Its containers are ended by the client's next StopPodSandbox where some still run: then this does nothing.
        if pod.send(Command::TakeDown(answer)).await.is_ok()
            && let Ok(Err(error)) = answered.await
        {
            warn!(error = error.chain(), "a pod that was being stopped is not wholly taken down yet");
        }
    });
}

async fn take_back(rooms: &Rooms, places: &Places, id: &ContainerId, record: &ContainerRecord) {
    match rooms.launcher.find(&places.container_dir(id)).await {
        Ok(launcher::Found::Answers(shim)) => {
            // One that does not listen is killed with its cgroup.
            shim.shutdown(launch::sent::By::Removed).await.ok();
        }
        Ok(launcher::Found::Silent(shim)) => {
            if let Err(error) = shim.put_down() {
                warn!(container = %id, %error, "its shim does not answer and can't be killed");
            }
        }
        // Nobody is there to be asked.
        Err(_) => {}
    }
    if let Err(error) = container::remove(rooms, places, id, record).await {
        warn!(container = %id, error = error.chain(), "it is not wholly taken back");
    }
}

async fn erase(rooms: &Rooms, places: &Places, id: &PodId, record: &PodRecord) {
    if let Err(error) = sandbox::remove(rooms, places, id, record).await {
        warn!(pod = %id, error = error.chain(), "it is not wholly taken back");
    }
}

/// What has an id of ours and no record: left by a crash between two steps. Begins to remove it.
async fn sweep(rooms: &Rooms, places: &Places, found: &mut Found) -> Result<JoinSet<()>> {
    let mut known: HashSet<String> = found.unreadable.clone();
    known.extend(found.pods.iter().map(|(id, _)| id.to_string()));
    known.extend(found.containers.iter().map(|(id, _)| id.to_string()));
    let left = orphans::unowned(orphans::candidates(rooms, places).await?, &known);
    let mut left = orphans::looked_into(rooms, left).await?;
    for orphan in left.extract_if(.., |orphan| matches!(orphan, Orphan::Populated { .. })) {
        info!(id = orphan.id(), "something runs in a cgroup that no record names; it is left alone");
    }
    let mut sweeping = JoinSet::new();
    let mut networks = Vec::new();
    for network in left.extract_if(.., |orphan| matches!(orphan, Orphan::Network(_))) {
        match &network {
            // A plugin that hangs holds up nobody.
            Orphan::Network(pod) if rooms.network.has_plugins(pod) => {
                let (rooms, places) = (rooms.clone(), places.clone());
                drop(tokio::spawn(async move { orphans::mend_all(&rooms, &places, vec![network]).await }));
            }
            _ => networks.push(network),
        }
    }
    left.append(&mut found.blank);
    let (rooms, places) = (rooms.clone(), places.clone());
    sweeping.spawn(async move {
        // What is begun anew may want their ports.
        orphans::mend_all(&rooms, &places, networks).await;
        orphans::mend_all(&rooms, &places, left).await;
    });
    Ok(sweeping)
}
