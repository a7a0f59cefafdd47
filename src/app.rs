//! The composition root: builds everything, starts it in order, waits, stops it in order.

mod first_order;
mod identity;
mod pgbackrest_side;
mod places;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cli::{EXIT_CONFIG, complain};
use crate::config::{Auth as AuthMode, Config, Contract, Environment, Flags, Switch};
use crate::domain::JobSpec;
use crate::http::state::Shared;
use crate::http::{self, AppState, Auth};
use crate::jobs::archive::Archives;
use crate::jobs::context::{ServerSide, Wake};
use crate::jobs::journal::Journals;
use crate::jobs::retention::Retention;
use crate::jobs::{self, Catalog, Context, JobsHandle, Keeper, Planner, Submission, Wal};
use crate::metrics::Metrics;
use crate::monitor::{self, MonitorHandle};
use crate::notify::{self, Notifier};
use crate::pgbackrest::command::archive_command;
use crate::pgbackrest::runner::GRACE;
use crate::postgres::bootstrap::{self, FirstStart};
use crate::postgres::client::Password;
use crate::postgres::install::Binaries;
use crate::postgres::pgdata;
use crate::postgres::supervisor::{
    Actor, Archiving, Making, Order, PostgresHandle, Settings, Status, fence_dir,
};
use crate::process::become_program;
use crate::process::signals::{Heard, Signals};
use crate::pulse::Pulses;
use crate::scheduler::{self, SchedulerHandle};
use crate::store::Store;
use crate::telemetry;

/// How long requests under way may take once everything else has ended.
const HTTP_GRACE: Duration = Duration::from_secs(3);
/// How long what is to be told may take to be delivered at the end.
const NOTIFY_GRACE: Duration = Duration::from_secs(2);
/// What a stop of PostgreSQL may take beyond its configured time, for the later rungs.
const STOP_RUNGS: Duration = Duration::from_secs(70);

/// Something that is wrong with how Headrest was started, found after the configuration was read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misconfigured(String);

/// Runs the service until it is told to stop.
pub fn run(config: Config, environment: &Environment) -> ExitCode {
    telemetry::start(config.log_format, environment.get("RUST_LOG"));
    match start(config, environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = complain(&format!("{error:#}"));
            if error.is::<Misconfigured>() { EXIT_CONFIG.into() } else { code }
        }
    }
}

fn start(config: Config, environment: &Environment) -> anyhow::Result<()> {
    // Before there are threads, and before anything is written as root that should not be.
    let user = identity::settle(&config)?;
    let _lock = places::claim_state_dir(&config.state_dir)?;
    let data_dir = config.postgres.as_ref().map(|postgres| &postgres.data_dir);
    let _claimed = data_dir.map(|data_dir| places::claim_data_dir(data_dir)).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(config, environment, user));
    // Blocking reads of the store may still be under way; they end by themselves.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(
    config: Config,
    environment: &Environment,
    user: identity::User,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let address = config.server.listen;
    // First of all: a second service on this port must not touch anything.
    let listener = listen(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("cannot tell the address")?;

    let stanza = config.stanzas.first().map(|stanza| stanza.name.clone());
    let stanza = stanza.ok_or_else(|| anyhow!("no stanza is configured"))?;
    let side = pgbackrest_side::find(&config, environment, &user, &stanza)?;
    places::make_pgbackrest_hint(&config.state_dir, &side.postgres_env)?;
    if let Some(postgres) =
        config.postgres.as_ref().filter(|_| config.backups.backups == Switch::On)
    {
        let in_container = config.contract.is_some();
        places::warn_about_repository(&side.options, &postgres.data_dir, in_container);
    }
    let version = pgbackrest_side::version(&side.tool).await;

    bootstrap::remove_leftovers(&config.state_dir);
    let store = Store::open(&config.state_dir.join("headrest.db"))?;
    let journals = Journals::in_state_dir(&config.state_dir)?;
    let last_event = store.last_event_id().await?;
    let had_jobs = last_event > 0;
    let wake = Wake::new(last_event);
    let settings = notify::Settings::new(config.notify.clone(), user.environment(environment));
    let (notifier, notifying) = Notifier::spawn(settings, store.clone(), wake.subscribe()).await?;
    let tool = Arc::new(side.tool);
    let names: Vec<_> = config.stanzas.iter().map(|stanza| stanza.name.clone()).collect();
    let catalog = Catalog::new(Arc::clone(&tool), names.clone());
    let (shutdown, hurry) = (CancellationToken::new(), CancellationToken::new());
    let (streams_end, output_end) = (CancellationToken::new(), CancellationToken::new());

    let mut server_env = user.environment(environment);
    if let Some(contract) = &config.contract {
        server_env.extend(contract.server_variables().filter(|(name, _)| name != "HOME"));
    }
    let archive_get = side.options.get("cmd").map_or_else(|| tool.binary.clone(), PathBuf::from);
    let server = match (&config.postgres, side.defaults) {
        (Some(postgres), Some(defaults)) => Some(ServerSide {
            stanza: stanza.clone(),
            data_dir: postgres.data_dir.clone(),
            state_dir: config.state_dir.clone(),
            archiving: first_order::archiving(
                &config.backups,
                &config.state_dir,
                &postgres.data_dir,
                had_jobs,
            )?,
            binaries: Binaries::find(
                postgres.bin_dir.as_deref(),
                environment.get("PATH").unwrap_or_default(),
                pgdata::major_version(&postgres.data_dir),
            )?,
            superuser: postgres.superuser.clone(),
            password: config.contract.as_ref().and_then(password),
            env: server_env,
            defaults,
            user_options: side.options,
            stop_patience: postgres.stop_timeout + STOP_RUNGS,
            heartbeat: postgres.heartbeat,
            headrest: places::own_program(&config.state_dir)?,
            archive_get,
            fence_dir: fence_dir(&config.state_dir),
        }),
        _ => None,
    };
    let found = jobs::boot::look_back(&store, &journals, &wake, server.as_ref()).await?;

    let mut pulses = Pulses::new();
    let mut supervising = None;
    let postgres = match (&config.postgres, &server) {
        (Some(postgres), Some(server)) => {
            let mut env = server.env.clone();
            env.extend(side.postgres_env);
            let settings = Settings {
                config: postgres.clone(),
                binaries: server.binaries.clone(),
                env,
                archiving: server.archiving,
                password: server.password.clone(),
                archive_command: archive_command(&tool.binary.display().to_string(), &stanza),
                state_dir: config.state_dir.clone(),
                first_start: FirstStart {
                    data_dir: postgres.data_dir.clone(),
                    superuser: postgres.superuser.clone(),
                    os_user: user.name.clone(),
                    os_user_has_entry: user.has_entry,
                    state_dir: config.state_dir.clone(),
                    server_args: postgres.args.clone(),
                    contract: config.contract.clone(),
                },
                fenced_by: found.fenced_by,
            };
            let pulse = pulses.add("supervisor");
            let (handle, task) = PostgresHandle::spawn(settings, pulse, output_end.clone());
            supervising = Some(task);
            handle
        }
        _ => PostgresHandle::beside(),
    };
    let context = Context {
        archives: Archives::new(Arc::clone(&tool)),
        tool,
        version: version.clone(),
        catalog: catalog.clone(),
        postgres: postgres.clone(),
        server,
        store: store.clone(),
        journals,
        retention: Retention::new(config.retention.clone(), side.options_by_stanza),
        wake,
        shutdown: shutdown.clone(),
        hurry: hurry.clone(),
    };
    let (jobs, mut queue) = JobsHandle::spawn(context.clone(), names.clone(), pulses.add("jobs"));

    let planner = Planner::new(context.clone());
    let backed_up = context.server.as_ref().filter(|side| side.archiving == Archiving::Ours);
    let fixed = scheduler::fixed(&config.schedules, backed_up.map(|side| &side.stanza));
    let pulse = pulses.add("scheduler");
    let (scheduler, scheduling) =
        SchedulerHandle::spawn(context.clone(), jobs.clone(), fixed, pulse).await;
    let metrics = Metrics::new(config.metrics.clone(), jiff::tz::TimeZone::system());
    let counted = jobs::tally::history(&store, &metrics).await?;
    tokio::spawn(jobs::tally::follow(store.clone(), jobs.events(), metrics.clone(), counted));

    let parts = monitor::Parts {
        context: context.clone(),
        jobs: jobs.clone(),
        planner: planner.clone(),
        scheduler: scheduler.clone(),
        gauges: metrics.gauges().clone(),
        notifier: notifier.clone(),
        stanzas: names.clone(),
    };
    let monitor = MonitorHandle::spawn(parts, &config.health, pulses.add("monitor")).await;

    let token = match config.server.auth {
        AuthMode::Token => Some(places::admin_token(&config)?),
        AuthMode::Off => None,
    };
    let state = AppState::new(Shared {
        jobs: jobs.clone(),
        postgres: postgres.clone(),
        planner,
        wal: Wal::new(context.clone()),
        keeper: Keeper::new(context.clone()),
        scheduler,
        monitor,
        fence_dir: context.server.as_ref().map(|side| side.fence_dir.clone()),
        catalog,
        store,
        notifier,
        auth: Auth::new(config.server.auth, token.as_ref()),
        stanzas: names,
        allowed_hosts: config.server.allowed_hosts.clone(),
        short_routes: config.server.short_routes,
        pgbackrest: version,
        metrics,
        pulses,
        shutdown: streams_end.clone(),
    });
    let router = http::router::router(&state).into_make_service_with_connect_info::<SocketAddr>();
    // Small answers go out at once.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let ending = streams_end.clone();
    let mut http: JoinHandle<_> = tokio::spawn(
        axum::serve(listener, router)
            .with_graceful_shutdown(async move { ending.cancelled().await })
            .into_future(),
    );
    tracing::info!("the dashboard and the API answer at http://{address}/");

    // Only now PostgreSQL: whatever goes wrong from here on can be read.
    if let Some(spec) = found.follow_up {
        tokio::spawn(ask_when_ready(postgres.clone(), jobs.clone(), spec));
    }
    if let Some((job, journal, action)) = found.resume {
        jobs.resume(job, journal, action).await;
    } else if let Some(server) = &context.server
        && found.fenced_by.is_none()
    {
        match &config.backups.bootstrap_from {
            Some(target) if first_order::is_empty(&server.data_dir) => {
                let work = jobs::bootstrap::run(context.clone(), jobs.clone(), target.clone());
                tokio::spawn(work);
            }
            _ => {
                let order = first_order::first_order(server, &context.catalog, had_jobs).await;
                postgres.order(order, Actor::Operator).await?;
            }
        }
    }
    if context.server.as_ref().is_some_and(|server| server.archiving == Archiving::Ours) {
        tokio::spawn(jobs::heartbeat::run(context.clone()));
        tokio::spawn(jobs::first_start::run(context, jobs, stanza));
    }

    let in_container = config.contract.is_some();
    loop {
        tokio::select! {
            heard = signals.next() => match heard {
                Heard::Stop(signal) => {
                    tracing::info!("{signal}: stopping; a second one hurries");
                    break;
                }
                Heard::Reload => {
                    tracing::info!("SIGHUP: PostgreSQL reads its configuration again");
                    if let Err(refusal) = postgres.order(Order::Reload, Actor::Operator).await {
                        tracing::warn!("{refusal}");
                    }
                }
            },
            // Nobody would see it there: whoever runs the container waits for its end.
            reason = first_start_failed(&postgres), if in_container => bail!("{reason}"),
            ended = &mut http => bail!("the HTTP server ended: {ended:?}"),
            ended = &mut queue => bail!("the job queue ended: {ended:?}"),
        }
    }
    shutdown.cancel();
    let stop = stop_in_order(&mut queue, &postgres, &hurry);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            heard = signals.next() => if let Heard::Stop(signal) = heard {
                tracing::warn!("{signal} again: no more patience");
                hurry.cancel();
            }
        }
    }
    notifying.close(NOTIFY_GRACE).await;
    streams_end.cancel();
    output_end.cancel();
    if timeout(HTTP_GRACE, &mut http).await.is_err() {
        http.abort();
    }
    drop((supervising, scheduling));
    tracing::info!("stopped");
    Ok(())
}

/// Asks for a job as soon as the server takes writes.
async fn ask_when_ready(postgres: PostgresHandle, jobs: JobsHandle, spec: JobSpec) {
    let mut status = postgres.watch();
    if status.wait_for(Status::takes_writes).await.is_err() {
        return;
    }
    if let Err(denied) = jobs.submit(Submission::of_event(spec, "restore")).await {
        tracing::warn!("cannot ask for the backup after a restore: {denied}");
    }
}

/// The password that a container was told, for a server that asks for one on its socket.
fn password(contract: &Contract) -> Option<Password> {
    contract.password.clone().map(Password)
}

/// Waits until it is certain that no cluster can be made, and answers why.
async fn first_start_failed(postgres: &PostgresHandle) -> String {
    let mut status = postgres.watch();
    let failed = status.wait_for(|status| matches!(status.making, Making::Failed(_))).await;
    match failed.map(|status| status.making.clone()) {
        Ok(Making::Failed(reason)) => reason,
        Ok(_) | Err(_) => std::future::pending().await,
    }
}

/// In a container: becomes `postgres` with these arguments, as the user that it runs as.
pub fn become_postgres(args: &[OsString], environment: &Environment) -> anyhow::Error {
    let become_it = || -> anyhow::Result<std::convert::Infallible> {
        let config = Config::load(&Flags::default(), environment)?;
        let home = identity::give_up_root(&config.os_user)?;
        let postgres = config.postgres.as_ref();
        let binaries = Binaries::find(
            postgres.and_then(|postgres| postgres.bin_dir.as_deref()),
            environment.get("PATH").unwrap_or_default(),
            postgres.and_then(|postgres| pgdata::major_version(&postgres.data_dir)),
        )?;
        let home = home.map(|home| ("HOME".to_owned(), home.display().to_string()));
        Err(become_program(binaries.program("postgres"), args, home).into())
    };
    match become_it() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Takes the port, which a Headrest that was killed may hold for a moment longer.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + places::PREDECESSOR_PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(places::LOOK_EVERY).await;
            }
            bound => return bound,
        }
    }
}

/// Jobs first, then PostgreSQL, whose archiver still needs the repository.
async fn stop_in_order(
    queue: &mut JoinHandle<()>,
    postgres: &PostgresHandle,
    hurry: &CancellationToken,
) {
    if timeout(GRACE + Duration::from_secs(20), queue).await.is_err() {
        tracing::error!("jobs did not end in time");
    }
    if !postgres.is_supervised() {
        return;
    }
    let by = match postgres.status().fenced_by {
        Some(job) => Actor::Restore(job),
        None => Actor::Operator,
    };
    if let Err(refusal) = postgres.order(Order::Stop, by).await {
        tracing::warn!("PostgreSQL was not stopped: {refusal}");
        return;
    }
    let mut pressed = false;
    loop {
        let patience = Duration::from_mins(10);
        let gone = postgres.wait_until(patience, Status::is_down);
        tokio::select! {
            // It may take longer than we have looked: a shutdown checkpoint, a script.
            gone = gone => if gone.is_ok() { return },
            () = hurry.cancelled(), if !pressed => {
                pressed = true;
                let _ = postgres.order(Order::StopNow, by).await;
            }
        }
    }
}

/// A path that exists, or the nearest one above it that does.
fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}
