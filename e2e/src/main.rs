//! `kaas-local`: brings a real Kubernetes up on this machine, with the operator and a demo tenant, and takes
//! it down again without a trace.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kaas_e2e::bench::{self, Part, Plan};
use kaas_e2e::flow::Extent;
use kaas_e2e::journey::Operator;
use kaas_e2e::layout::{Cache, Repository, State};
use kaas_e2e::release::Release;
use kaas_e2e::terminal::complain;
use kaas_e2e::{Error, journey, registry, suite};

/// A local cluster of real Kubernetes components.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Directory that holds the cluster; several may live side by side.
    #[arg(long, global = true, default_value = ".local")]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build what is missing, start the cluster, install the operator, make the demo tenant Ready.
    Up {
        /// The cluster alone: no operator, no demo.
        #[arg(long)]
        bare: bool,
        /// Run this build of the operator instead of building one.
        #[arg(long, value_name = "BINARY", conflicts_with = "bare")]
        operator: Option<PathBuf>,
        /// The demo tenant's version of Kubernetes [default: the newest].
        #[arg(long, value_name = "VERSION", conflicts_with = "bare")]
        kubernetes: Option<String>,
    },
    /// End and remove everything.
    Down,
    /// Build what is missing, start nothing.
    Build {
        /// This older version of Kubernetes too.
        #[arg(long, value_name = "VERSION")]
        kubernetes: Option<String>,
    },
    /// Say what runs.
    Status,
    /// Put the images of an archive (docker save, podman save, OCI) where every worker can pull them.
    Load {
        /// The archive, not compressed.
        archive: PathBuf,
    },
    /// Run every check of the project, on a cluster of its own.
    Test,
    /// Measure, on a cluster of its own.
    Bench {
        #[command(flatten)]
        extent: BenchArguments,
        /// Run this build of the operator instead of building one.
        #[arg(long, value_name = "BINARY")]
        operator: Option<PathBuf>,
    },
    /// Run all flows, the long ones too: about half an hour.
    Soak {
        /// Run this build of the operator instead of building one.
        #[arg(long, value_name = "BINARY")]
        operator: Option<PathBuf>,
    },
    /// Run the flows alone, on a cluster of their own or on KAAS_KUBECONFIG.
    E2e {
        /// Run this build of the operator instead of building one.
        #[arg(long, value_name = "BINARY")]
        operator: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct BenchArguments {
    /// Fewer samples: a few minutes.
    #[arg(long)]
    quick: bool,
    /// Tenants, and pools of one worker, created one after the other [default: 20, quick: 3].
    #[arg(short = 'n', long, value_name = "COUNT")]
    samples: Option<usize>,
    /// Most tenants with real pods at a time, 0.6 GiB each [default: 25, quick: 5].
    #[arg(long, value_name = "COUNT")]
    tenants: Option<usize>,
    /// Tenants with played pods; 0 leaves them out [default: 1000, quick: 50].
    #[arg(long, value_name = "COUNT")]
    played: Option<usize>,
    /// Workers that are played, ten a tenant; 0 leaves them out [default: 1000, quick: 50].
    #[arg(long, value_name = "COUNT")]
    crowd: Option<usize>,
    /// How often several tenants at once are created or deleted [default: 3, quick: 1].
    #[arg(long, value_name = "COUNT")]
    rounds: Option<usize>,
    /// Measure these parts only.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// Write the figures to this file too, as a table in Markdown.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

impl BenchArguments {
    fn plan(self) -> Plan {
        let given = if self.quick { Plan::quick() } else { Plan::full() };
        Plan {
            only: self.only,
            singles: self.samples.unwrap_or(given.singles),
            tenants: self.tenants.unwrap_or(given.tenants),
            played: self.played.unwrap_or(given.played),
            crowd: self.crowd.unwrap_or(given.crowd),
            rounds: self.rounds.unwrap_or(given.rounds),
            summary: self.summary,
            ..given
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format!("kaas-local: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Error> {
    let repository = Repository::find()?;
    let cache = Cache::find()?;
    let state = match arguments.state.is_absolute() {
        true => State::at(arguments.state)?,
        false => State::at(repository.root().join(arguments.state))?,
    };
    match arguments.command {
        Command::Up { bare, operator, kubernetes } => {
            let operator = match operator {
                _ if bare => Operator::None,
                Some(binary) => Operator::Binary(binary),
                None => Operator::Build,
            };
            journey::up(&repository, &cache, &state, operator, release(kubernetes)?)
        }
        Command::Down => journey::down(&state),
        Command::Build { kubernetes } => journey::build(&repository, &cache, release(kubernetes)?),
        Command::Status => journey::status(&state),
        Command::Load { archive } => registry::load(&repository, &cache, &state, &archive),
        Command::Test => suite::run(&repository, &cache),
        Command::Bench { extent, operator } => bench::run(&repository, &cache, operator, &extent.plan()),
        Command::E2e { operator } => journey::e2e(&repository, &cache, operator, Extent::Short),
        Command::Soak { operator } => journey::e2e(&repository, &cache, operator, Extent::All),
    }
}

fn release(version: Option<String>) -> Result<Option<&'static Release>, Error> {
    version.map(|version| Release::of(&version)).transpose()
}
