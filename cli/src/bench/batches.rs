//! How large the batches are, as the process of the edge tells it: with all roles in one process
//! those of all. The bare loop is to have batches like these.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::client::Connection;

/// Sums and counts of sizes until now, by place: `append COMMANDS`, `validation`.
#[derive(Debug, Clone, Default)]
pub struct Batches(BTreeMap<String, (f64, f64)>);

impl Batches {
    /// Reads the metrics of the edge.
    pub async fn read(edge: &mut Connection) -> Result<Self> {
        let answer = edge.get("/metrics").await?;
        ensure!(answer.status == 200, "/metrics: the answer is {}", answer.status);
        Ok(Self::parse(&String::from_utf8_lossy(&answer.body)))
    }

    fn parse(text: &str) -> Self {
        let mut batches = Self::default();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Some((name, labels)) = series.split_once('{') else { continue };
            let Some(of) = labels.split('"').nth(1) else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let appended = || format!("append {}", of.rsplit('_').next().unwrap_or(of));
            match name {
                "millrace_append_messages_sum" => batches.of(appended()).0 += value,
                "millrace_append_messages_count" => batches.of(appended()).1 += value,
                "millrace_batch_messages_sum" => batches.of(of.to_owned()).0 += value,
                "millrace_batch_messages_count" => batches.of(of.to_owned()).1 += value,
                _ => {}
            }
        }
        batches
    }

    fn of(&mut self, place: String) -> &mut (f64, f64) {
        self.0.entry(place).or_default()
    }

    /// Messages in a batch since `before`, on average.
    pub fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let mean = |(place, (sum, count)): (&String, &(f64, f64))| {
            let (sum_before, count_before) = before.0.get(place).copied().unwrap_or_default();
            let count = count - count_before;
            (count > 0.0).then(|| (place.clone(), (sum - sum_before) / count))
        };
        self.0.iter().filter_map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_the_time_between_two_looks() {
        let text = |appends: (u32, u32), batches: (u32, u32)| {
            format!(
                "# TYPE millrace_append_messages histogram\n\
                 millrace_append_messages_bucket{{stream=\"millrace_EVENTS\",le=\"1\"}} 1\n\
                 millrace_append_messages_sum{{stream=\"millrace_EVENTS\"}} {}\n\
                 millrace_append_messages_count{{stream=\"millrace_EVENTS\"}} {}\n\
                 millrace_batch_messages_sum{{worker=\"validation\"}} {}\n\
                 millrace_batch_messages_count{{worker=\"validation\"}} {}\n\
                 millrace_live_streams 0\n",
                appends.0, appends.1, batches.0, batches.1
            )
        };
        let before = Batches::parse(&text((10, 5), (7, 7)));
        let after = Batches::parse(&text((70, 8), (7, 7)));
        let means = after.since(&before);
        assert_eq!(means.into_iter().collect::<Vec<_>>(), [("append EVENTS".to_owned(), 20.0)]);
        assert_eq!(after.since(&Batches::default()).get("validation"), Some(&1.0));
    }
}
