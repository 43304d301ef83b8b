//! The report for people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use super::figures::{Quantiles, float};
use super::report::Report;

/// A report as text.
pub struct Table<'a>(pub &'a Report);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let report = self.0;
        head(f, report)?;
        capacity(f, report)?;
        if !report.latency.is_empty() {
            latency(f, report)?;
        }
        if !report.cpu_per_order.is_empty() {
            cost(f, report)?;
        }
        if let Some(bytes) = &report.bytes_per_order {
            writeln!(f, "\nbytes per order")?;
            let disk = bytes.nats_disk.map_or(String::new(), |it| format!(" ({it:.0} on disk)"));
            writeln!(f, "  NATS {:.0}{disk}", bytes.nats)?;
            writeln!(
                f,
                "  PostgreSQL {:.0}, and {:.0} of WAL",
                bytes.postgres, bytes.postgres_wal
            )?;
            writeln!(f, "  Redis {:.0}", bytes.redis)?;
        }
        if !report.reads.is_empty() {
            reads(f, report)?;
        }
        if let Some(growth) = &report.growth {
            writeln!(f, "\nwith {} orders stored, against before", growth.stored)?;
            writeln!(f, "  time per order × {:.2}", growth.time_ratio)?;
            if let Some(ratio) = growth.cpu_ratio {
                writeln!(f, "  CPU per order × {ratio:.2}")?;
            }
        }
        let check = &report.check;
        write!(
            f,
            "\n{} orders accepted, {} refused; seen as paid {}, paid in the journal {}; read at once {}, \
             of these not yet readable {}",
            check.accepted,
            check.refused,
            check.seen_paid,
            check.journal_paid,
            check.read_at_once,
            check.not_yet_readable
        )
    }
}

fn head(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let commit = report.commit.as_deref().unwrap_or("unknown commit");
    let machine = &report.machine;
    let gigabytes = float(machine.memory) / f64::from(1 << 30);
    writeln!(f, "millrace {} ({commit}), {}", report.version, report.begun_at)?;
    writeln!(f, "{} × {}, {gigabytes:.0} GB, {}", machine.cpus, machine.model, machine.system)?;
    let told = |name: &str| report.parameters[name].to_string().replace('"', "");
    writeln!(
        f,
        "entry {}, roles in {}, replicas {}, seed {}",
        told("entry"),
        told("roles"),
        told("replicas"),
        told("seed")
    )?;
    if report.parameters["debugBuild"] == true {
        writeln!(f, "A DEBUG BUILD: these figures say nothing about speed")?;
    }
    Ok(())
}

fn capacity(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(f)?;
    if let Some(seconds) = report.cold_start_seconds {
        writeln!(f, "cold start            {seconds:>9.2} s")?;
    }
    for (name, value) in [
        ("processed", report.processed_per_second),
        ("accepted", report.accepted_per_second),
        ("bare loop", report.bare_loop_per_second),
    ] {
        if let Some(value) = value {
            writeln!(f, "{name:<22}{value:>8.0} orders/s")?;
        }
    }
    if let Some(ratio) = report.ratio_to_bare_loop {
        writeln!(f, "ratio to bare loop    {ratio:>8.2}")?;
    }
    let list = |values: Vec<f64>| {
        values.iter().map(|value| format!("{value:.0}")).collect::<Vec<_>>().join(", ")
    };
    if report.rounds.len() > 1 {
        let rounds = report.rounds.iter().map(|round| round.processed_per_second).collect();
        let bare = list(report.bare_loop_rounds.clone());
        writeln!(f, "  rounds {}; bare loop {bare}", list(rounds))?;
    }
    if !report.batches.is_empty() {
        let sizes = report.batches.iter().map(|(place, size)| format!("{place} {size:.0}"));
        let bare = report.bare_loop_per_second.map_or(String::new(), |_| {
            format!("; bare loop {} orders", report.parameters["bareBatch"])
        });
        let sizes = sizes.collect::<Vec<_>>().join(", ");
        writeln!(f, "  messages in a batch: {sizes}{bare}")?;
    }
    Ok(())
}

fn latency(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(
        f,
        "\n{:<28}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "latency, ms", "orders", "p50", "p95", "p99", "p99.9", "max"
    )?;
    for latency in &report.latency {
        let share = latency.share_of_capacity.map(|share| format!(" ({:.0} %)", share * 100.0));
        let rate = format!("{:.0}/s{}", latency.rate, share.unwrap_or_default());
        row(f, &format!("{rate} accepted"), &latency.accepted)?;
        row(f, &format!("{rate} paid"), &latency.paid)?;
        if let Some(bare) = &latency.bare_loop {
            row(f, &format!("{rate} bare loop"), bare)?;
        }
    }
    Ok(())
}

fn row(f: &mut Formatter<'_>, name: &str, times: &Quantiles) -> fmt::Result {
    let Quantiles { count, p50_ms, p95_ms, p99_ms, p999_ms, max_ms } = times;
    writeln!(
        f,
        "{name:<28}{count:>9}{p50_ms:>9.1}{p95_ms:>9.1}{p99_ms:>9.1}{p999_ms:>9.1}{max_ms:>9.1}"
    )
}

fn cost(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(
        f,
        "\n{:<16}{:>14}{:>12}{:>12}{:>12}",
        "", "CPU ms/order", "bare loop", "idle MB", "load MB"
    )?;
    let bare = |name: &str| {
        let cpu = report.bare_loop_cpu_per_order.get(name).filter(|cpu| **cpu > 0.0005);
        cpu.map_or(String::new(), |cpu| format!("{cpu:.3}"))
    };
    let megabytes = |of: &BTreeMap<String, u64>, name: &String| {
        of.get(name).map_or(String::new(), |bytes| format!("{:.0}", float(*bytes) / 1e6))
    };
    let rss = &report.rss;
    for (name, cpu) in report.cpu_per_order.iter().filter(|(name, _)| *name != "total") {
        let (idle, load) = (megabytes(&rss.idle, name), megabytes(&rss.load, name));
        writeln!(f, "{name:<16}{cpu:>14.3}{:>12}{idle:>12}{load:>12}", bare(name))?;
    }
    if let Some(total) = report.cpu_per_order.get("total") {
        writeln!(f, "{:<16}{total:>14.3}{:>12}", "total", bare("total"))?;
    }
    if let Some(cpu) = report.load_cpu_per_order {
        let memory = float(rss.generator) / 1e6;
        writeln!(f, "{:<16}{cpu:>14.3}{:>24}{memory:>12.0}", "(the load)", "")?;
    }
    Ok(())
}

fn reads(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(
        f,
        "\n{:<10}{:>13}{:>12}{:>10}{:>10}{:>10}",
        "reads", "connections", "per second", "p50 ms", "p99 ms", "bytes"
    )?;
    for reading in &report.reads {
        let what = format!("{:?}", reading.what).to_lowercase();
        writeln!(
            f,
            "{what:<10}{:>13}{:>12.0}{:>10.2}{:>10.2}{:>10.0}",
            reading.connections,
            reading.per_second,
            reading.times.p50_ms,
            reading.times.p99_ms,
            reading.bytes
        )?;
    }
    Ok(())
}
