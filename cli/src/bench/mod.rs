//! `millrace bench`: how many orders are processed, how fast each is, what an order costs, and the
//! limit that the servers themselves set, measured in the same run.

mod args;
mod bare;
mod batches;
mod capacity;
mod check;
mod client;
mod figures;
mod load;
mod print;
mod proc;
mod reads;
mod report;
mod shop;
mod stored;
mod system;
mod underway;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use indicatif::ProgressBar;
use millrace_api::listener::allow_files;
use millrace_shared::ids::OrderId;
use millrace_shared::message::now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use args::{BenchArgs, Entry, Phase};

use bare::Bare;
use capacity::{Memory, Round};
use check::Check;
use figures::{Times, median};
use load::{Arrivals, Load};
use report::{Growth, Latency, Machine, Report};
use shop::Shop;
use stored::Stored;
use system::{Plan, System};
use underway::Underway;

/// How long the shop's set-up may take to be seen everywhere.
const SET_UP: Duration = Duration::from_mins(2);
/// How long a system is left alone before its memory counts as that of an idle one.
const IDLE: Duration = Duration::from_secs(2);
/// Files that the load has open beside its connections.
const OTHER_FILES: usize = 200;
/// Orders under way while many are stored.
const FILLING: usize = 4_000;

/// Measures, prints what was found, and fails if the counts do not agree.
pub async fn run(args: BenchArgs, shutdown: CancellationToken) -> Result<()> {
    let args = args.settled();
    let temporary = tempfile::Builder::new().prefix("millrace-bench-").tempdir()?;
    let system = if let Some(url) = &args.target {
        let authorization = args.sign_in.authorization()?;
        System::connect(url.trim_end_matches('/').to_owned(), authorization, args.running()).await?
    } else {
        let data = args.data.clone().unwrap_or_else(|| temporary.path().to_owned());
        tokio::fs::create_dir_all(&data).await?;
        crate::servers::fetch(&args.servers_dir).await?;
        let plan = Plan {
            data: data.canonicalize()?,
            servers: args.servers_dir.canonicalize()?,
            apart: args.apart,
            replicas: args.replicas.get(),
        };
        System::start(&plan).await?
    };
    let measured = tokio::select! {
        measured = measure(&args, &system) => measured,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    let stopped = system.stop().await;
    let report = measured?;
    println!("{}", print::Table(&report));
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report)?;
        tokio::fs::write(file, json + "\n").await.with_context(|| file.display().to_string())?;
    }
    report.check.agree().context("the figures do not hold")?;
    stopped
}

/// A run on a system.
struct Run<'a> {
    args: &'a BenchArgs,
    system: &'a System,
    shop: Arc<Shop>,
    underway: Arc<Underway>,
    load: Load,
    memory: Memory,
    report: Report,
    bar: ProgressBar,
}

async fn measure(args: &BenchArgs, system: &System) -> Result<Report> {
    let begun_at = now();
    let name = base36(begun_at.timestamp().unsigned_abs());
    let shop = Shop::new(args.seed, &name, args.products.get(), args.customers.get())?;
    let shop = Arc::new(shop);
    let (underway, watch) = Underway::watch(system)?;
    let files = args.connections().get() + OTHER_FILES;
    let allowed = allow_files(files);
    ensure!(
        allowed >= files,
        "so many connections need {files} open files, and this process may have {allowed}: raise \
         its limit (ulimit -n), or give fewer --connections"
    );
    let load = Load::new(
        system,
        Arc::clone(&shop),
        Arc::clone(&underway),
        args.entry,
        args.connections().get(),
        args.seed,
    )?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("MILLRACE_COMMIT").map(str::to_owned),
        begun_at: begun_at.to_rfc3339(),
        machine: Machine::read(),
        parameters: args.parameters(),
        cold_start_seconds: system.cold_start.map(|time| time.as_secs_f64()),
        ..Report::default()
    };
    let (memory, bar) = (Memory::default(), ProgressBar::new_spinner());
    bar.enable_steady_tick(Duration::from_millis(500));
    let mut run = Run { args, system, shop, underway, load, memory, report, bar };
    let phases = Box::pin(run.phases()).await;
    run.bar.finish_and_clear();
    watch.stop().await;
    phases?;
    Ok(run.report)
}

impl Run<'_> {
    async fn phases(&mut self) -> Result<()> {
        self.set_up().await?;
        self.bar.set_message("warming up");
        self.place(Arrivals::Window(self.args.window.get()), self.args.warm_up()).await?;
        if self.args.does(Phase::Capacity) || self.args.does(Phase::Bare) {
            Box::pin(self.capacity()).await?;
        }
        if self.args.does(Phase::Latency) {
            self.latency().await?;
        }
        if self.args.does(Phase::Reads) {
            self.reads().await?;
        }
        if let Some(stored) = self.args.stored {
            self.growth(stored).await?;
        }
        self.check().await
    }

    async fn set_up(&mut self) -> Result<()> {
        self.bar.set_message("setting up the shop");
        let system = self.system;
        let jetstream = jetstream::new(system.nats.clone());
        self.shop.set_up(&jetstream, &system.topology).await?;
        let (products, customers) = self.shop.size();
        let wanted = (i64::try_from(products)?, i64::try_from(customers)?);
        let there = async {
            loop {
                let (found, registered): (i64, i64) = sqlx::query_as(
                    "select (select count(*) from journal.products where product_id like 'bench-%'),
                            (select count(*) from journal.customers where starts_with(customer_id, $1))",
                )
                .bind(self.shop.customers_prefix())
                .fetch_one(&system.pool)
                .await?;
                if found >= wanted.0 && registered >= wanted.1 {
                    return system.worked_off(&[]).await;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SET_UP, there).await.context("the shop does not come into being")??;
        sleep(IDLE).await;
        let used = proc::used(&system.processes)?;
        self.report.rss.idle = used.into_iter().map(|(name, usage)| (name, usage.rss)).collect();
        Ok(())
    }

    /// Places orders that are not measured.
    async fn place(&mut self, arrivals: Arrivals, time: Duration) -> Result<load::Placed> {
        let placed = self.load.run(arrivals, Duration::ZERO, time).await?;
        self.count(placed.accepted, placed.refused);
        self.system.worked_off(&[]).await?;
        Ok(placed)
    }

    fn count(&mut self, accepted: u64, refused: u64) {
        self.report.check.accepted += accepted;
        self.report.check.refused += refused;
        let generator = &mut self.report.rss.generator;
        *generator = proc::own().rss.max(*generator);
    }

    async fn round(&mut self) -> Result<Round> {
        let (window, time) = (self.args.window.get(), self.args.time());
        let (load, memory) = (&mut self.load, self.memory.clone());
        let round = capacity::round(self.system, load, window, time, &memory).await?;
        self.count(round.orders, round.refused);
        Ok(round)
    }

    /// Rounds of Millrace and of the bare loop in turn: machines are not equally fast at all times.
    async fn capacity(&mut self) -> Result<()> {
        let shop = Arc::clone(&self.shop);
        let (mut ratios, mut bare_costs) = (Vec::new(), Vec::new());
        for number in 1..=self.args.rounds.get() {
            self.bar.set_message(format!("capacity, round {number}"));
            let round = self.round().await?;
            if self.args.does(Phase::Bare) {
                self.bar.set_message(format!("bare loop, round {number}"));
                let model = self.model()?;
                let bare = Box::pin(Bare::new(self.system, Arc::clone(&shop), model)).await?;
                let used = proc::used(&self.system.processes)?;
                let ran = bare.run(round.orders).await;
                let after = proc::used(&self.system.processes)?;
                bare.remove().await?;
                let (orders, time) = ran?;
                bare_costs.push(capacity::spent(&used, &after, orders));
                let rate = figures::rate(orders, time);
                ratios.push(round.processed_per_second / rate);
                self.report.bare_loop_rounds.push(rate);
            }
            self.report.rounds.push(round);
        }
        let rounds = &self.report.rounds;
        let of = |get: fn(&Round) -> f64| Some(median(rounds.iter().map(get).collect()));
        self.report.processed_per_second = of(|round| round.processed_per_second);
        self.report.accepted_per_second = of(|round| round.accepted_per_second);
        self.report.load_cpu_per_order = of(|round| round.load_cpu_per_order);
        let costs: Vec<_> = rounds.iter().map(|round| &round.cpu_per_order).collect();
        self.report.cpu_per_order = capacity::medians(&costs);
        let batches: Vec<_> = rounds.iter().map(|round| &round.batches).collect();
        self.report.batches = capacity::medians(&batches);
        let costs: Vec<_> = bare_costs.iter().collect();
        self.report.bare_loop_cpu_per_order = capacity::medians(&costs);
        let stored = rounds.iter().map(|round| round.stored).fold(Stored::default(), Stored::and);
        let orders = rounds.iter().map(|round| round.orders).sum();
        self.report.bytes_per_order = Some(stored.per(orders));
        self.report.rss.load = self.memory.most();
        if !ratios.is_empty() {
            self.report.bare_loop_per_second = Some(median(self.report.bare_loop_rounds.clone()));
            self.report.ratio_to_bare_loop = Some(median(ratios));
        }
        Ok(())
    }

    /// The first order that was placed; its number in the shop is 0.
    fn model(&self) -> Result<OrderId> {
        Ok(self.shop.order(0)?.id)
    }

    async fn latency(&mut self) -> Result<()> {
        let mut rates: Vec<(f64, Option<f64>)> =
            self.args.rates.iter().map(|rate| (*rate, None)).collect();
        if rates.is_empty() {
            let Some(capacity) = self.report.processed_per_second else {
                bail!("without the capacity being measured, --rate must say at which rates");
            };
            rates.push((10.0, None));
            rates.extend(self.args.shares().iter().map(|share| (capacity * share, Some(*share))));
        }
        for (rate, share_of_capacity) in rates {
            self.bar.set_message(format!("latency at {rate:.0} orders/s"));
            let (warm_up, time) = self.args.latency_times(rate);
            let placed = self.load.run(Arrivals::Rate(rate), warm_up, time).await?;
            self.count(placed.accepted, placed.refused);
            self.system.worked_off(&[]).await?;
            let bare_loop = if self.args.does(Phase::Bare) {
                Some(Box::pin(self.bare_latency(rate)).await?.quantiles())
            } else {
                None
            };
            self.report.latency.push(Latency {
                rate,
                share_of_capacity,
                refused: placed.refused,
                accepted: placed.accept_times.quantiles(),
                paid: placed.paid_times.quantiles(),
                bare_loop,
            });
        }
        Ok(())
    }

    /// How long orders take that the bare loop makes at a rate.
    async fn bare_latency(&self, rate: f64) -> Result<Times> {
        self.bar.set_message(format!("bare loop at {rate:.0} orders/s"));
        let bare = Bare::new(self.system, Arc::clone(&self.shop), self.model()?).await?;
        let times = bare.paced(rate, self.args.time()).await;
        bare.remove().await?;
        times
    }

    async fn reads(&mut self) -> Result<()> {
        let orders = self.report.check.accepted;
        for what in reads::Read::ALL {
            for connections in self.args.read_connections() {
                self.bar.set_message(format!("reads: {what:?} over {connections} connections"));
                let (shop, time) = (&self.shop, self.args.read_time());
                let reading = reads::read(self.system, shop, orders, what, *connections, time);
                self.report.reads.push(reading.await?);
            }
        }
        Ok(())
    }

    /// The cost of an order in a system as it is, and with many more orders stored.
    async fn growth(&mut self, wanted: u64) -> Result<()> {
        let mut before = self.report.rounds.clone();
        while before.len() < self.args.rounds.get() {
            before.push(self.round().await?);
        }
        loop {
            let stored = self.report.check.accepted;
            if stored >= wanted {
                break;
            }
            self.bar.set_message(format!("storing orders: {stored} of {wanted}"));
            self.place(Arrivals::Window(FILLING), self.args.time()).await?;
        }
        // The tables' statistics would come by themselves, at a time of their own.
        sqlx::raw_sql("analyze").execute(&self.system.pool).await?;
        let stored = self.report.check.accepted;
        let mut after = Vec::new();
        for number in 1..=self.args.rounds.get() {
            self.bar.set_message(format!("capacity with {stored} orders, round {number}"));
            after.push(self.round().await?);
        }
        let of = |rounds: &[Round], get: &dyn Fn(&Round) -> f64| {
            median(rounds.iter().map(get).collect())
        };
        let cpu = |round: &Round| round.cpu_per_order.get("total").copied().unwrap_or_default();
        let time = |round: &Round| 1.0 / round.processed_per_second;
        let cpu_before = of(&before, &cpu);
        self.report.growth = Some(Growth {
            stored,
            cpu_ratio: (cpu_before > 0.0).then(|| of(&after, &cpu) / cpu_before),
            time_ratio: of(&after, &time) / of(&before, &time),
            before,
            after,
        });
        Ok(())
    }

    async fn check(&mut self) -> Result<()> {
        self.bar.set_message("checking the counts");
        self.system.worked_off(&[]).await?;
        let (read_at_once, not_yet_readable) = self.underway.checks();
        let seen_paid = self.underway.paid();
        let check = &mut self.report.check;
        *check = Check { seen_paid, read_at_once, not_yet_readable, ..check.clone() };
        check.read(self.system, &self.shop.customers_prefix()).await
    }
}

/// A short name for a number.
fn base36(mut number: u64) -> String {
    let mut name = Vec::new();
    while number > 0 {
        name.push(
            b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::try_from(number % 36).unwrap_or(0)],
        );
        number /= 36;
    }
    name.reverse();
    String::from_utf8_lossy(&name).into_owned()
}
