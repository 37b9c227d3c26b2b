//! The operator's process: its runtime, its client, its signals. What it does is in the library.
//!
//! Its memory is jemalloc's: a turn for a tenant takes a megabyte for a moment, amid which what stays of tenants lies.
//! glibc returns little of that; with a hundred tenants at rest the process was half as large again.

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kaas_operator::args::{Args, Settings};
use kaas_operator::{callers, client, run, telemetry};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// More threads make nothing faster, as almost all time is spent waiting for API servers; each costs a stack and
/// what the allocator keeps for it.
const THREAD_LIMIT: usize = 4;

/// Blocking work is resolving names and reading token files.
const BLOCKING_THREAD_LIMIT: usize = 4;

/// What is left when the process ends (answers to probes, cut-off requests) is not waited for longer.
const END: Duration = Duration::from_millis(200);

type Failure = Box<dyn std::error::Error>;

/// Turns TenantClusters into hosted control planes.
#[derive(Parser)]
#[command(
    name = "kaas-operator",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Invocation {
    #[command(subcommand)]
    mode: Option<Mode>,
    #[command(flatten)]
    operator: Option<Args>,
}

/// What it can be besides the operator.
#[derive(Subcommand)]
enum Mode {
    /// Counts who calls APIs that the next version does not have, beside one API server.
    AuditCallers(callers::Args),
}

fn main() -> ExitCode {
    let invocation = Invocation::parse();
    let (format, filter) = match &invocation.operator {
        Some(args) => (args.log_format, args.log.as_str()),
        None => (telemetry::Format::Json, "info"),
    };
    if let Err(failure) = telemetry::init(format, filter) {
        // There is no log to write to, and nowhere to report that standard error is closed.
        let _ = writeln!(std::io::stderr(), "error: {failure}");
        return ExitCode::FAILURE;
    }
    match start(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn start(invocation: Invocation) -> Result<(), Failure> {
    // kube takes the process's provider; without one it would panic at its first connection.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| "rustls already has another cryptography provider")?;
    let (runtime, outcome) = match (invocation.mode, invocation.operator) {
        (Some(Mode::AuditCallers(args)), _) => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let outcome =
                runtime.block_on(async { callers::run(args, terminated()?).await.map_err(Failure::from) });
            (runtime, outcome)
        }
        (None, Some(args)) => {
            let settings = Settings::try_from(args)?;
            let runtime = runtime()?;
            let outcome = runtime.block_on(operate(settings));
            (runtime, outcome)
        }
        (None, None) => return Err("say what to do: --help".into()),
    };
    runtime.shutdown_timeout(END);
    outcome
}

async fn operate(settings: Settings) -> Result<(), Failure> {
    let shutdown = terminated()?;
    let client = client::connect().await?;
    run::run(settings, client, shutdown).await?;
    Ok(())
}

fn runtime() -> std::io::Result<Runtime> {
    let threads = available_parallelism().map_or(1, usize::from).min(THREAD_LIMIT);
    Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING_THREAD_LIMIT)
        .thread_name("kaas-operator")
        .enable_all()
        .build()
}

/// Done at the first SIGTERM or SIGINT.
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
