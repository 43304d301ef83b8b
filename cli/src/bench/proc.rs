//! What processes have used, as the system counts it (`/proc`). Where there is no such folder
//! nothing is told.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A process, and those that it has started where they do its work (as `PostgreSQL` does).
#[derive(Debug, Clone)]
pub struct Watched {
    /// What it is called in the report.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// Whether its children count.
    pub with_children: bool,
}

/// What the watched processes have used until now, by their names.
pub type Used = BTreeMap<String, Usage>;

/// What one has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on a processor.
    pub cpu: Duration,
    /// Memory that it holds now, in bytes. Of processes that share memory each has its part.
    pub rss: u64,
}

/// What stands in `/proc/ID/stat`.
struct Stat {
    name: String,
    parent: u32,
    own: u64,
    ended_children: u64,
}

/// Reads what the processes have used. Those of one name are added up.
pub fn used(processes: &[Watched]) -> Result<Used> {
    let mut used = Used::new();
    for process in processes {
        let usage = usage(process)
            .with_context(|| format!("{} (process {}) is gone", process.name, process.pid))?;
        let sum = used.entry(process.name.clone()).or_default();
        sum.cpu += usage.cpu;
        sum.rss += usage.rss;
    }
    Ok(used)
}

/// What this process has used.
pub fn own() -> Usage {
    let process = Watched { name: String::new(), pid: std::process::id(), with_children: false };
    usage(&process).unwrap_or_default()
}

/// The children of a process: id and name.
pub fn children(parent: u32) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| {
        let stat = stat(pid)?;
        (stat.parent == parent).then_some((pid, stat.name))
    })
    .collect()
}

fn usage(process: &Watched) -> Option<Usage> {
    let main = stat(process.pid)?;
    let mut ticks = main.own;
    let mut rss = memory(process.pid, process.with_children);
    if process.with_children {
        ticks += main.ended_children;
        for (child, _) in children(process.pid) {
            ticks += stat(child).map_or(0, |child| child.own);
            rss += memory(child, true);
        }
    }
    let nanos = ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second());
    Some(Usage { cpu: Duration::from_nanos(nanos), rss })
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may have any character in it.
    let (start, rest) = text.rsplit_once(')')?;
    let name = start.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        name,
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        ended_children: number(13)? + number(14)?,
    })
}

fn memory(pid: u32, shared: bool) -> u64 {
    let find = |file: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    let part = if shared { find("smaps_rollup", "Pss:") } else { None };
    part.or_else(|| find("status", "VmRSS:")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_counted() {
        let before = own();
        let mut sum = 0_u64;
        while own().cpu < before.cpu + Duration::from_millis(30) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own().rss > 1 << 20);
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let gone = Watched { name: "api".to_owned(), pid: u32::MAX, with_children: false };
        assert!(used(&[gone]).unwrap_err().to_string().contains("api"));
    }
}
