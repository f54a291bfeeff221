//! What systemd is asked for, over D-Bus: one connection a request, few at a time. org.freedesktop.systemd1(5). A user's own
//! is on that user's bus, which knows us by who we are outside: sd-bus(3), systemd(1) --user.

use std::{future::Future, time::Duration};

use futures_util::StreamExt;
use tokio::{
    runtime::{Builder, Handle},
    sync::Semaphore,
    time::timeout,
};
use zbus::{Connection, OwnedObjectPath, Variant};

use super::{
    names::{Manager, Place},
    user,
};
use crate::{Error, Kind, Result, error::Cause};

/// A job that takes longer: systemd hangs, or is overrun.
const PATIENCE: Duration = Duration::from_secs(30);
/// systemd does one job after the other, and hears of each connection's coming and going.
static AT_ONCE: Semaphore = Semaphore::const_new(4);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    #[zbus(property)]
    fn control_group(&self) -> zbus::Result<String>;

    fn attach_processes_to_unit(&self, unit: &str, below: &str, pids: &[u32]) -> zbus::Result<()>;

    fn subscribe(&self) -> zbus::Result<()>;

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        others: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// The unit is there already, of an earlier container of that name.
    Exists,
}

/// Begins a scope with a process in it. Blocks.
///
/// # Errors
/// `Unavailable` where systemd can't be asked, `Deadline` where it does not answer, else what it refuses.
pub fn start(place: &Place<'_>, pid: u32) -> Result<Answer> {
    const OP: &str = "start scope";
    let description = format!("container {}", place.unit);
    waited(OP, place.manager, place.unit, async {
        let properties = [
            ("Description", Variant::from(description.as_str())),
            ("Slice", Variant::from(place.slice)),
            ("PIDs", Variant::from(vec![pid])),
            // What is below is ours: a daemon-reload leaves limits and device programs there alone.
            ("Delegate", Variant::from(true)),
            // It is not stopped before the slices and mounts that containers need go, which is the runtime's affair.
            ("DefaultDependencies", Variant::from(false)),
            ("CollectMode", Variant::from("inactive-or-failed")),
            // systemd's own default would be a limit that nobody asked for.
            ("TasksMax", Variant::from(u64::MAX)),
        ];
        let manager = connect(place.manager).await?;
        job(&manager, manager.start_transient_unit(place.unit, "fail", &properties, &[])).await
    })
}

/// Stops a unit with all that is in it, and has it forgotten; one that is not there is stopped. Blocks.
///
/// # Errors
/// As `start`.
pub fn stop(manager: Manager, unit: &str) -> Result<()> {
    waited("stop scope", manager, unit, async {
        let manager = connect(manager).await?;
        let stopped = match job(&manager, manager.stop_unit(unit, "replace")).await {
            Err(Refused::Bus(error)) if is(&error, "NoSuchUnit") => Ok(()),
            stopped => stopped.map(drop),
        };
        // One that has not failed is not known any more, which is as good.
        manager.reset_failed_unit(unit).await.ok();
        stopped
    })
}

/// Moves a process into a group of a unit, where we have no right to. Blocks.
///
/// # Errors
/// As `start`.
pub fn attach(place: &Place<'_>, below: &str, pid: u32) -> Result<()> {
    waited("enter scope", place.manager, place.unit, async {
        let manager = connect(place.manager).await?;
        Ok(manager.attach_processes_to_unit(place.unit, below, &[pid]).await?)
    })
}

/// The group that a systemd's units are below; of process 1's that is none. Blocks.
///
/// # Errors
/// As `start`.
pub fn own_group(manager: Manager) -> Result<String> {
    waited("find cgroup", manager, "of systemd", async { Ok(connect(manager).await?.control_group().await?) })
}

enum Refused {
    Bus(zbus::Error),
    /// How the job ended instead: `failed`, `timeout`, `canceled`, `dependency`, `skipped`.
    Job(String),
}

impl From<zbus::Error> for Refused {
    fn from(error: zbus::Error) -> Self {
        Self::Bus(error)
    }
}

async fn connect(manager: Manager) -> zbus::Result<SystemdProxy<'static>> {
    let connection = match manager {
        Manager::System => Connection::system().await?,
        Manager::User => {
            let user = user::outside();
            zbus::connection::Builder::address(user::bus(user).as_str()).user_id(user).build().await?
        }
    };
    let manager = SystemdProxy::new(&connection).await?;
    // Whoever has not subscribed hears of no jobs.
    manager.subscribe().await?;
    Ok(manager)
}

/// Asks for a job and waits for its end.
async fn job(
    manager: &SystemdProxy<'_>,
    asked: impl Future<Output = zbus::Result<OwnedObjectPath>>,
) -> std::result::Result<Answer, Refused> {
    // Before it is asked for: it may end at once.
    let mut removed = manager.receive_job_removed().await?;
    let job = match asked.await {
        Err(error) if is(&error, "UnitExists") => return Ok(Answer::Exists),
        asked => asked?,
    };
    while let Some(signal) = removed.next().await {
        let told = signal.args()?;
        if told.job == job {
            return match told.result.as_str() {
                "done" => Ok(Answer::Done),
                other => Err(Refused::Job(other.to_owned())),
            };
        }
    }
    Err(Refused::Bus(zbus::Error::Failure("the bus hung up".into())))
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(told, ..)
        if told.as_str().strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

/// Runs it on the thread that we block, within the time that systemd has.
fn waited<T>(
    op: &'static str,
    manager: Manager,
    unit: &str,
    asked: impl Future<Output = std::result::Result<T, Refused>>,
) -> Result<T> {
    let bounded = async {
        let Ok(_turn) = timeout(PATIENCE, AT_ONCE.acquire()).await else { return None };
        timeout(PATIENCE, asked).await.ok()
    };
    let answer = match Handle::try_current() {
        Ok(runtime) => runtime.block_on(bounded),
        Err(_) => Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io(op, unit, error))?
            .block_on(bounded),
    };
    match answer {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(Refused::Job(result))) => Err(Error::new(Kind::Internal, op, unit)
            .because(Cause(format!("systemd's job ended as {result:?}")))
            .hint(match manager {
                Manager::System => format!("systemctl status {unit}; journalctl -b -u {unit}"),
                Manager::User => format!("systemctl --user status {unit}; journalctl --user -b -u {unit}"),
            })),
        Some(Err(Refused::Bus(error))) => Err(refused(op, manager, unit, error)),
        None => Err(Error::new(Kind::Deadline, op, unit)
            .because(Cause(format!("systemd did not answer for {PATIENCE:?}")))
            .hint("systemctl list-jobs tells what it waits for")),
    }
}

fn refused(op: &'static str, manager: Manager, unit: &str, error: zbus::Error) -> Error {
    match error {
        zbus::Error::MethodError(name, told, _) => {
            let told = told.unwrap_or_default();
            Error::new(Kind::Precondition, op, unit).because(Cause(format!("systemd refuses: {told} ({name})")))
        }
        error => Error::new(Kind::Unavailable, op, unit).because(error).hint(match manager {
            Manager::System => {
                "the systemd driver needs systemd as process 1 and its D-Bus: systemctl status dbus; or take the cgroupfs driver"
            }
            Manager::User => {
                "an ordinary user's needs that user's own systemd and its bus: log in, or loginctl enable-linger; \
                 systemctl --user status dbus; or leave --systemd-cgroup out (podman: --cgroup-manager cgroupfs)"
            }
        }),
    }
}
