//! `millrace import`: a catalogue from a file, over HTTP or NATS.
//!
//! An import keeps no state of its own: it is run again to go on. Rows that say what is known already
//! are left out, and the others have command ids that are derived from what they say, so nothing is
//! defined twice.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use futures_util::future::try_join_all;
use millrace_shared::access::Principal;
use millrace_shared::command::{DefineProduct, Malformed};
use millrace_shared::config::NatsConfig;
use millrace_shared::import::{
    Before, COLUMNS, Format, Report, Row, RowError, Rows, command_id, entry,
};
use millrace_shared::log::Log;
use millrace_shared::message::Subject;
use millrace_shared::product::Product;
use millrace_shared::topology::Topology;
use tokio::time::Instant;

use crate::progress;
use crate::replay::Via;
use crate::replay::http::Http;
use crate::token::SignIn;

/// Rows that are sent at a time.
const BATCH: usize = 500;

/// What `millrace import` is to do.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// CSV file with the columns productId, name, brand, category, price (in minor units: 1999 for
    /// 19.99), currency and, for new products, stock; or NDJSON file, an object on each line
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How the file is written; without it the end of its name tells
    #[arg(long, value_enum)]
    pub format: Option<FileFormat>,
    /// Another name of a column: `productId=sku`. Can be repeated
    #[arg(long = "column", value_name = "NAME=HEADER", value_parser = parse_column)]
    pub columns: Vec<(String, String)>,

    /// The way in
    #[arg(long, value_enum, default_value_t = Via::Http)]
    pub via: Via,
    /// Address of the HTTP API, `http://HOST:PORT`
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub sign_in: SignIn,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub nats: NatsConfig,
    /// Seconds that a batch of rows may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,

    /// Where errors are written, a JSON object for each [default: FILE.errors.ndjson]
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// Comma-separated values with a header
    Csv,
    /// A JSON object on each line
    Ndjson,
}

fn parse_column(text: &str) -> Result<(String, String), String> {
    let (name, header) = text.split_once('=').ok_or("must be NAME=HEADER")?;
    if !COLUMNS.contains(&name) {
        return Err(format!("{name:?} is not one of the columns {}", COLUMNS.join(", ")));
    }
    Ok((name.to_owned(), header.trim().to_owned()))
}

/// Imports, and prints what became of the rows. Fails if any of them is wrong.
pub async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let mut errors = ErrorFile::new(&args)?;
    let imported = import(&args, &mut errors).await;
    let report = imported.as_ref().map(|(report, _)| report).ok();
    errors.end()?;
    if let Some(Report { rows, published, unchanged, failed, .. }) = report {
        println!("{rows} rows: {published} sent, {unchanged} unchanged, {failed} wrong");
    }
    let (report, stopped) = imported?;
    if let Some(error) = stopped {
        return Err(error.context(
            "the import stopped before its end; run it again: what is there already is left out",
        ));
    }
    let path = errors.path.display();
    ensure!(report.failed == 0, "{} rows are wrong and were left out; see {path}", report.failed);
    Ok(())
}

/// Imports. Beside the report stands the error that ended it early, if one did.
async fn import(
    args: &ImportArgs,
    errors: &mut ErrorFile,
) -> anyhow::Result<(Report, Option<anyhow::Error>)> {
    let path = args.file.display();
    let unreadable = || format!("the file {path} cannot be read");
    let file = File::open(&args.file).with_context(unreadable)?;
    let length = file.metadata().with_context(unreadable)?.len();
    let target = Target::connect(args).await?;
    let header = |name: &str| {
        let mut given = args.columns.iter();
        given.find(|(column, _)| column == name).map(|(_, header)| header.as_str())
    };
    let bar = progress::bytes(length, "products")?;
    let mut rows = Rows::new(bar.wrap_read(file), format(args)?, header)
        .with_context(|| args.file.display().to_string())?;
    let mut report = Report::default();
    let stopped = loop {
        let batch = match next_batch(&mut rows) {
            Ok(batch) => batch,
            Err(error) => break Some(error.context(path.to_string())),
        };
        if batch.is_empty() {
            break None;
        }
        let mut products = Vec::with_capacity(batch.len());
        for Row { line, product } in batch {
            report.rows += 1;
            match product {
                Ok(product) => products.push((line, product)),
                Err(malformed) => errors.add(&mut report, line, malformed)?,
            }
        }
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        match target.send(&products, deadline).await {
            Ok(sent) => {
                report.published += sent.published;
                report.unchanged += sent.unchanged;
                for RowError { line, error } in sent.errors {
                    // The system has counted the lines of the batch.
                    let at = usize::try_from(line.saturating_sub(1))?;
                    let line = products.get(at).map_or(0, |(line, _)| *line);
                    errors.add(&mut report, line, error.into())?;
                }
            }
            Err(error) => break Some(error),
        }
    };
    bar.finish_and_clear();
    Ok((report, stopped))
}

fn next_batch<R: std::io::Read>(rows: &mut Rows<R>) -> anyhow::Result<Vec<Row>> {
    let mut batch = Vec::with_capacity(BATCH);
    while batch.len() < BATCH
        && let Some(row) = rows.read_row()?
    {
        batch.push(row);
    }
    Ok(batch)
}

fn format(args: &ImportArgs) -> anyhow::Result<Format> {
    let end = args.file.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
    match (args.format, end.as_deref()) {
        (Some(FileFormat::Csv), _) | (None, Some("csv")) => Ok(Format::Csv),
        (Some(FileFormat::Ndjson), _) | (None, Some("ndjson" | "jsonl")) => {
            ensure!(args.columns.is_empty(), "--column is for CSV");
            Ok(Format::Ndjson)
        }
        (None, _) => bail!("say how {} is written: --format csv or ndjson", args.file.display()),
    }
}

/// The system, by one of its two ways in.
enum Target {
    Http(Http),
    Nats(Box<Nats>),
}

struct Nats {
    commands: Log,
    events: Log,
    topology: Topology,
}

impl Target {
    async fn connect(args: &ImportArgs) -> anyhow::Result<Self> {
        match (args.via, &args.target) {
            (Via::Http, Some(url)) => Ok(Self::Http(Http::new(url, &args.sign_in).await?)),
            (Via::Http, None) => bail!("--via http needs --target"),
            (Via::Nats, url) => {
                ensure!(url.is_none(), "--target is for --via http; NATS is reached by --nats-url");
                let client =
                    args.nats.of(Principal::Operator).connect_now("millrace import").await?;
                let topology = args.nats.topology()?;
                Ok(Self::Nats(Box::new(Nats {
                    commands: Log::new(client.clone(), topology.commands_stream()),
                    events: Log::new(client, topology.events_stream()),
                    topology,
                })))
            }
        }
    }

    async fn send(
        &self,
        products: &[(u64, DefineProduct)],
        deadline: Instant,
    ) -> anyhow::Result<Report> {
        match self {
            Self::Http(http) => {
                let mut body = Vec::new();
                for (_, product) in products {
                    serde_json::to_writer(&mut body, product)?;
                    body.push(b'\n');
                }
                http.import(body, deadline).await
            }
            Self::Nats(nats) => nats.send(products, deadline).await,
        }
    }
}

impl Nats {
    async fn send(
        &self,
        products: &[(u64, DefineProduct)],
        deadline: Instant,
    ) -> anyhow::Result<Report> {
        let Self { commands, events, topology } = self;
        // What the log no longer has may be defined once more, for each time that it was
        // trimmed: nobody but the views knows it, and this way in does without them.
        let state = events.stream().await?.get_info().await?.state;
        let known =
            try_join_all(products.iter().map(|(_, product)| last(events, topology, product)))
                .await?;
        let mut report = Report::default();
        let mut entries = Vec::new();
        for ((_, product), known) in products.iter().zip(&known) {
            let before =
                known.as_ref().map_or(Before::Unknown(state.first_sequence.max(1)), Before::Known);
            match command_id(product, before) {
                Some(id) => entries.push(entry(topology, product, id)?),
                None => report.unchanged += 1,
            }
        }
        report.published = u64::try_from(entries.len())?;
        if !entries.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            commands.append(entries, left).await?;
        }
        Ok(report)
    }
}

/// A product as the log knows it.
async fn last(
    events: &Log,
    topology: &Topology,
    product: &DefineProduct,
) -> anyhow::Result<Option<Product>> {
    let history = topology.history(Subject::Product, product.product_id.as_str());
    let last = events.last(&history).await?;
    Ok(last.map(|stored| stored.event.state()).transpose()?)
}

/// The file with all errors, which is there only if there are any.
struct ErrorFile {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl ErrorFile {
    /// That of an earlier run is removed.
    fn new(args: &ImportArgs) -> anyhow::Result<Self> {
        let path = args.report.clone().unwrap_or_else(|| beside(&args.file));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} cannot be written", path.display()))
            }
            _ => Ok(Self { path, file: None }),
        }
    }

    fn add(&mut self, report: &mut Report, line: u64, malformed: Malformed) -> anyhow::Result<()> {
        let cannot = || format!("{} cannot be written", self.path.display());
        let mut file = match self.file.take() {
            Some(file) => file,
            None => BufWriter::new(File::create(&self.path).with_context(cannot)?),
        };
        for error in &malformed.0 {
            let error = RowError { line, error: error.clone() };
            serde_json::to_writer(&mut file, &error).with_context(cannot)?;
            file.write_all(b"\n").with_context(cannot)?;
        }
        self.file = Some(file);
        report.fails(line, malformed);
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.flush().with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".errors.ndjson");
    name.into()
}
