//! The daemon: arguments -> configuration -> recover -> serve -> drain. Containers run on without it.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use berth::{
    Error, Kind, Result,
    api::{self, Door, exporter, notify, serve, start::Start},
    cgroup,
    config::{CgroupDriver, Config, load},
    image,
    launcher::{Launcher, Program},
    net,
    pod::{Handlers, Pods, Rooms, Timelines},
    streaming,
};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "berthd", version = api::VERSION, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file [default: /etc/berth/berthd.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// What survives a reboot: images, records, logs
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What doesn't: sockets, pinned namespaces
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The socket of CRI and of `berth`
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
    /// Where Prometheus finds the daemon's own metrics: 127.0.0.1:9977
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    /// error, warn, info, debug, trace, or directives for parts
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Prints or checks a configuration
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Prints every key with its default
    Default,
    /// Says whether a configuration is right, and what is not
    Check { file: Option<PathBuf> },
}

type LevelHandle = reload::Handle<EnvFilter, Registry>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.verb {
        Some(Verb::Config(verb)) => configuration(verb, &arguments),
        None => daemon(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berthd: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn configuration(verb: &ConfigVerb, arguments: &Arguments) -> Result<()> {
    let text = match verb {
        ConfigVerb::Default => load::DEFAULT,
        ConfigVerb::Check { file } => {
            let file = file.as_ref().or(arguments.config.as_ref());
            configured(&Arguments { config: file.cloned(), ..Arguments::parse_from(["berthd"]) })?;
            "the configuration is right\n"
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| Error::io("write", "standard output", error))
}

/// The file and its drop-ins, with the flags over them, checked as far as it can be without acting.
fn configured(arguments: &Arguments) -> Result<Config> {
    let mut config = load::load(arguments.config.as_deref())?;
    let daemon = &mut config.daemon;
    if let Some(root) = &arguments.root {
        daemon.root.clone_from(root);
    }
    if let Some(state) = &arguments.state {
        daemon.state.clone_from(state);
    }
    if let Some(listen) = &arguments.listen {
        daemon.listen.clone_from(listen);
    }
    if let Some(listen) = &arguments.metrics_listen {
        daemon.metrics_listen.clone_from(listen);
    }
    if let Some(level) = &arguments.log_level {
        daemon.log_level.clone_from(level);
    }
    if let Some(format) = &arguments.log_format {
        daemon.log_format.clone_from(format);
    }
    for (key, path) in [("daemon.root", &daemon.root), ("daemon.state", &daemon.state)] {
        if !path.is_absolute() {
            return Err(Error::invalid("read configuration", key, format!("{path:?} is no absolute path")));
        }
    }
    serve::path(&daemon.listen)?;
    streaming::check(&config.streaming)?;
    exporter::address(&daemon.metrics_listen)?;
    filter(&daemon.log_level)?;
    if !matches!(daemon.log_format.as_str(), "text" | "json") {
        let cause = format!("{:?} is neither text nor json", daemon.log_format);
        return Err(Error::invalid("read configuration", "daemon.log_format", cause));
    }
    Ok(config)
}

fn daemon(arguments: &Arguments) -> Result<()> {
    let config = configured(arguments)?;
    let level = log_to_stderr(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start", "event loop", error))?;
    let ended = runtime.block_on(live(arguments, config, &level));
    // Blocking work that is still under way is recorded as begun; the next daemon sees to it.
    runtime.shutdown_background();
    ended
}

async fn live(arguments: &Arguments, config: Config, level: &LevelHandle) -> Result<()> {
    let places = format!("{} and {}", config.daemon.root.display(), config.daemon.state.display());
    let start = Start::with("take the locks in", places.as_str());
    let _lock = serve::take(&config.daemon.root, &config.daemon.state)?;
    let socket = serve::path(&config.daemon.listen)?;
    let rooms = open(&config, &start).await?;
    start.at("find what runs, by the records in", places.as_str());
    // nft(8) takes as long as a hundred pods.
    let (pods, ()) = tokio::join!(Pods::recover(rooms.clone()), rooms.network.set_up());
    let pods = pods?;
    let streaming = streaming::Server::bind(&config.streaming).await?;
    let exporter = exporter::Exporter::new(pods.clone());
    let metrics = match exporter::address(&config.daemon.metrics_listen)? {
        Some(address) => Some(exporter::Listener::bind(address).await?),
        None => None,
    };
    start.at("bind the socket", socket.display());
    let listener = serve::bind(&socket)?;
    drop(start);
    info!(version = api::VERSION, listen = %config.daemon.listen, "ready");
    notify::notify("READY=1");
    keep_watchdog(pods.clone());
    let stop = until_stopped(arguments, config.clone(), level)?;
    let (door, timelines) =
        (Door::new(pods.clone(), rooms.clone(), config, streaming.tickets()), rooms.timelines.clone());
    let stopping = CancellationToken::new();
    let streams = tokio::spawn(streaming.serve(pods, rooms.launcher, stopping.clone().cancelled_owned()));
    let calls = exporter.calls();
    let metrics =
        metrics.map(|metrics| tokio::spawn(metrics.serve(exporter, stopping.clone().cancelled_owned())));
    let stop = async {
        stop.await;
        stopping.cancel();
    };
    serve::serve(door, calls, listener, stop).await?;
    streams.await.map_err(|error| Error::new(Kind::Internal, "stop", "streaming server").because(error))?;
    if let Some(metrics) = metrics {
        metrics
            .await
            .map_err(|error| Error::new(Kind::Internal, "stop", "metrics listener").because(error))?;
    }
    timelines.finish().await;
    std::fs::remove_file(&socket)
        .map_err(|error| Error::io("remove socket", socket.display().to_string(), error))
}

/// Opens the rooms that pods are made with.
async fn open(config: &Config, start: &Start) -> Result<Rooms> {
    let program = match config.daemon.shim.as_os_str().is_empty() {
        false => config.daemon.shim.clone(),
        true => std::env::current_exe()
            .map_err(|error| Error::io("find", "this program", error))?
            .with_file_name("berth-shim"),
    };
    if !program.is_file() {
        return Err(Error::not_found("find shim", program.display().to_string())
            .hint("install berth-shim beside berthd, or name it in daemon.shim"));
    }
    let cgroups = cgroup::Hierarchy::detect()?;
    if config.daemon.cgroup_driver == CgroupDriver::Systemd {
        cgroup::systemd::check(&cgroups)?;
    }
    start.at("open the images in", config.image_root().join("images").display());
    let images = image::Store::open(config.image_root(), &config.registry).await?;
    let dir = config.daemon.root.join("network");
    start.at("open the networks in", dir.display());
    Ok(Rooms {
        images,
        network: Arc::new(net::Network::open(&config.network, &config.handlers, dir).await?),
        cgroups,
        launcher: Launcher { program: Program::new(program), settle: cgroup::systemd::adopt },
        timelines: Timelines::default(),
        handlers: Handlers::find(&config.handlers).await?,
        config: config.daemon.clone(),
    })
}

/// Resolves at SIGTERM or SIGINT; SIGHUP reloads meanwhile.
fn until_stopped(
    arguments: &Arguments,
    mut running: Config,
    level: &LevelHandle,
) -> Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).map_err(|error| Error::io("listen for", "signals", error));
    let (mut terminate, mut interrupt, mut hangup) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?, listen(SignalKind::hangup())?);
    Ok(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => {
                    match reload(arguments, &mut running, level) {
                        Ok(()) => info!(log_level = running.daemon.log_level, "configuration reloaded"),
                        Err(error) => warn!(error = error.chain(), "configuration kept as it was"),
                    }
                    continue;
                }
            };
            info!(signal = name, "stopping; containers run on");
            notify::notify("STOPPING=1");
            return;
        }
    })
}

/// All or nothing: only the log level can change while the daemon runs.
fn reload(arguments: &Arguments, running: &mut Config, level: &LevelHandle) -> Result<()> {
    let read = configured(arguments)?;
    let mut changed = load::difference(running, &read);
    changed.retain(|key| key != "daemon.log_level");
    if !changed.is_empty() {
        return Err(Error::new(Kind::Precondition, "reload", changed.join(", "))
            .because(berth::error::Cause("only daemon.log_level can change while the daemon runs".into()))
            .hint("restart berthd: containers run on meanwhile"));
    }
    level
        .reload(filter(&read.daemon.log_level)?)
        .map_err(|error| Error::new(Kind::Internal, "set", "log level").because(error))?;
    *running = read;
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter> {
    // The libraries' own frames and polls are no facts about containers; a directive that names one brings them back.
    const QUIET: &str =
        "h2=info,hyper=info,hyper_util=info,tower=info,netlink_proto=info,rustls=info,reqwest=info";
    EnvFilter::try_new(format!("{QUIET},{level}")).map_err(|error| {
        Error::new(Kind::Invalid, "read configuration", "daemon.log_level")
            .because(error)
            .hint("one of error, warn, info, debug, trace")
    })
}

fn log_to_stderr(config: &Config) -> Result<LevelHandle> {
    let (filter, handle) = reload::Layer::new(filter(&config.daemon.log_level)?);
    let text = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match config.daemon.log_format.as_str() {
        "json" => registry.with(text.json()).init(),
        _ => registry.with(text.with_ansi(io::stderr().is_terminal())).init(),
    }
    Ok(handle)
}

/// Says to a service manager that wants to hear it (sd_watchdog_enabled(3)) that the event loop turns and lists are answered.
fn keep_watchdog(pods: Pods) {
    let of = |name: &str| std::env::var(name).ok();
    let Some(every) = watchdog(of("WATCHDOG_USEC").as_deref(), of("WATCHDOG_PID").as_deref()) else { return };
    tokio::spawn(async move {
        loop {
            // It would wait for ever where whoever holds them does.
            drop(pods.list());
            notify::notify("WATCHDOG=1");
            tokio::time::sleep(every).await;
        }
    });
}

/// How often: twice in the time after which nothing heard is taken for a hang. None where it is not asked for, or of another.
fn watchdog(microseconds: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let is_us = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let within = microseconds?.parse().ok().filter(|within| *within > 1)?;
    is_us.then(|| Duration::from_micros(within) / 2)
}
