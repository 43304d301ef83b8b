//! Sending what is to be appended: concurrent appends share a batch, and what is refused is told
//! apart from what may be tried again.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use opentelemetry::KeyValue;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

use super::{AppendError, Entry, Expect, Job, stopping, too_much};
use crate::crash;
use crate::metrics::{Timed, label, metrics, number};

/// From this many messages on an atomic batch is faster than single appends. Measured on one node
/// with `sync_interval: always`: 2 to 4.4 thousand single appends a second with many in flight, and
/// 3.3 ms for an atomic batch of any size.
const ATOMIC_FROM: usize = 8;
/// Messages in one atomic batch; the server takes up to 1,000.
const ATOMIC_MOST: usize = 500;
/// Batches under way at a time. The server takes one after another, and larger ones cost less: so the
/// second waits for the first, unless that is slow.
const IN_FLIGHT: u32 = 2;
/// How long it waits.
const SLOW: Duration = Duration::from_millis(100);
/// How soon after an atomic batch the next append may begin, for each message in it: the server sets up
/// a store of its own for each batch, which costs as much as some 80 messages. Whoever comes alone never
/// waits.
const GATHER: Duration = Duration::from_millis(1);
/// And at the most.
const GATHER_MOST: Duration = Duration::from_millis(20);

/// Takes what waits, as much as fits into a batch, and sends it while further jobs gather.
pub(super) async fn run(client: Client, stream: String, mut jobs: mpsc::Receiver<Job>) {
    let to = Arc::new(To { client, stream: label("stream", stream) });
    let turns = Arc::new(Semaphore::new(IN_FLIGHT as usize));
    let mut waiting: VecDeque<Job> = VecDeque::new();
    let (mut last, mut begun) = (0, Instant::now());
    loop {
        if waiting.is_empty() {
            match jobs.recv().await {
                Some(job) => waiting.push_back(job),
                None => return,
            }
        }
        // While few are waiting.
        if last >= ATOMIC_FROM && waiting.len() < ATOMIC_MOST {
            let gather = GATHER * u32::try_from(last).unwrap_or(u32::MAX);
            sleep_until(begun + gather.min(GATHER_MOST)).await;
        }
        timeout(SLOW, turns.acquire_many(IN_FLIGHT)).await.ok();
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        while waiting.len() < ATOMIC_MOST
            && let Ok(job) = jobs.try_recv()
        {
            waiting.push_back(job);
        }
        let batch = in_time(take_batch(&mut waiting));
        (last, begun) = (batch.iter().map(|job| job.entries.len()).sum(), Instant::now());
        let to = Arc::clone(&to);
        tokio::spawn(async move {
            send(&to, batch).await;
            drop(turn);
        });
    }
}

/// What has waited too long is refused while that has no effect.
fn in_time(batch: Vec<Job>) -> Vec<Job> {
    let now = Instant::now();
    let (late, on_time) = batch.into_iter().partition(|job| job.deadline <= now);
    fail(late, &too_much());
    on_time
}

/// The next batch. Two groups that continue one history never share it: within an atomic batch
/// the server would take both.
fn take_batch(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let mut batch = Vec::new();
    let mut later = VecDeque::new();
    let mut histories = HashSet::new();
    let mut size = 0;
    while let Some(job) = waiting.pop_front() {
        let mut expected = job.entries.iter().filter_map(|entry| entry.expect.as_ref());
        let clash = expected.any(|expect| histories.contains(&expect.history));
        if clash || (size > 0 && size + job.entries.len() > ATOMIC_MOST) {
            later.push_back(job);
            continue;
        }
        size += job.entries.len();
        histories.extend(
            job.entries.iter().filter_map(|entry| entry.expect.as_ref()).map(|e| e.history.clone()),
        );
        batch.push(job);
    }
    *waiting = later;
    batch
}

/// Where it goes.
struct To {
    client: Client,
    /// Of the metrics.
    stream: KeyValue,
}

async fn send(to: &To, batch: Vec<Job>) {
    let size: usize = batch.iter().map(|job| job.entries.len()).sum();
    if size >= ATOMIC_FROM {
        send_together(to, batch).await;
    } else {
        join_all(batch.into_iter().map(|job| send_in_turn(to, job))).await;
    }
}

/// Sends the entries of a job one after another: of so few each is there sooner than a batch would be.
async fn send_in_turn(to: &To, job: Job) {
    let mut before: Option<Expect> = None;
    let mut result = Ok(0);
    let mut left = job.entries.len();
    for mut entry in job.entries {
        if let (Some(expect), Some(before)) = (&mut entry.expect, &before)
            && expect.history == before.history
        {
            expect.sequence = before.sequence;
        }
        let history = entry.expect.as_ref().map(|expect| expect.history.clone());
        let (reply, answer) = oneshot::channel();
        let single = Job { entries: vec![entry], deadline: job.deadline, reply };
        send_together(to, vec![single]).await;
        result = answer.await.unwrap_or_else(|_| Err(stopping()));
        let Ok(sequence) = result else { break };
        before = history.map(|history| Expect { history, sequence });
        left -= 1;
        if left > 0 {
            crash::point("log.appended-first");
        }
    }
    job.reply.send(result).ok();
}

/// Sends jobs as one. If they are refused as a whole they are tried in halves, so that only the
/// one that is at fault fails.
fn send_together(to: &To, mut jobs: Vec<Job>) -> BoxFuture<'_, ()> {
    async move {
        let mut pause = Duration::from_millis(20);
        loop {
            let entries: Vec<&Entry> = jobs.iter().flat_map(|job| &job.entries).collect();
            if entries.is_empty() {
                return;
            }
            let labels = vec![to.stream.clone(), label("outcome", "given_up")];
            let timed = Timed::new(&metrics().append_time, labels);
            let outcome = match entries.as_slice() {
                [entry] => request(&to.client, entry, headers(entry)).await,
                _ => append_batch(&to.client, &entries).await,
            };
            metrics().append_size.record(number(entries.len()), std::slice::from_ref(&to.stream));
            timed.outcome(outcome_of(&outcome));
            match outcome {
                Ok(last) => return succeed(jobs, last),
                Err(Failure::Final(error)) => {
                    if jobs.len() == 1 || matches!(error, AppendError::Full(_)) {
                        return fail(jobs, &error);
                    }
                    let right = jobs.split_off(jobs.len() / 2);
                    send_together(to, jobs).await;
                    send_together(to, right).await;
                    return;
                }
                Err(Failure::Transient(reason)) => {
                    tracing::debug!(%reason, "append is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                    let now = Instant::now();
                    let (late, on_time) = jobs.into_iter().partition(|job| job.deadline <= now);
                    fail(late, &AppendError::Unavailable(reason));
                    jobs = on_time;
                }
            }
        }
    }
    .boxed()
}

/// The messages of an atomic batch follow each other in the stream without a gap.
fn succeed(jobs: Vec<Job>, last: u64) {
    let mut behind = 0;
    for job in jobs.into_iter().rev() {
        // Who has stopped waiting does not want the answer.
        job.reply.send(Ok(last.saturating_sub(behind))).ok();
        behind += job.entries.len() as u64;
    }
}

fn fail(jobs: Vec<Job>, error: &AppendError) {
    for job in jobs {
        job.reply.send(Err(error.clone())).ok();
    }
}

fn outcome_of(outcome: &Result<u64, Failure>) -> &'static str {
    match outcome {
        Ok(_) => "stored",
        Err(Failure::Final(AppendError::Conflict)) => "conflict",
        Err(Failure::Final(AppendError::Full(_))) => "full",
        Err(Failure::Final(_)) => "refused",
        Err(Failure::Transient(_)) => "retried",
    }
}

enum Failure {
    Final(AppendError),
    Transient(String),
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

async fn append_batch(client: &Client, entries: &[&Entry]) -> Result<u64, Failure> {
    let id = Uuid::now_v7().simple().to_string();
    let mut expected: HashSet<&str> = HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        // Of several events of one history only the first is checked.
        let first = entry.expect.as_ref().is_none_or(|e| expected.insert(&e.history));
        let mut headers = if first { headers(entry) } else { entry.headers.clone() };
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", (index + 1).to_string().as_str());
        if index + 1 == entries.len() {
            headers.insert("Nats-Batch-Commit", "1");
            return request(client, entry, headers).await;
        }
        client
            .publish_with_headers(entry.subject.clone(), headers, entry.payload.clone())
            .await
            .map_err(|error| Failure::Transient(error.to_string()))?;
    }
    Err(Failure::Transient("an empty batch".to_owned()))
}

fn headers(entry: &Entry) -> HeaderMap {
    let mut headers = entry.headers.clone();
    if let Some(expect) = &entry.expect {
        headers.insert("Nats-Expected-Last-Subject-Sequence", expect.sequence.to_string().as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", expect.history.as_str());
    }
    headers
}

async fn request(client: &Client, entry: &Entry, headers: HeaderMap) -> Result<u64, Failure> {
    let most = client.server_info().max_payload;
    if most > 0 && entry.payload.len() > most {
        let reason = format!("{} bytes, and the server takes {most}", entry.payload.len());
        return Err(Failure::Final(AppendError::Refused(reason)));
    }
    let answer = client
        .request_with_headers(entry.subject.clone(), headers, entry.payload.clone())
        .await
        .map_err(|error| Failure::Transient(error.to_string()))?;
    let ack: Ack = serde_json::from_slice(&answer.payload)
        .map_err(|_| Failure::Transient("an answer that is no publish ack".to_owned()))?;
    let Some(error) = ack.error else { return Ok(ack.seq) };
    let reason = format!("{} ({})", error.description, error.err_code);
    Err(match error.err_code {
        // Wrong last sequence; a duplicate within a batch.
        10071 | 10201 => Failure::Final(AppendError::Conflict),
        // Message too large for the stream or the server.
        10054 | 10097 => Failure::Final(AppendError::Refused(reason)),
        // Stream or account limits.
        10047 | 10077 | 10023 | 10028 => Failure::Final(AppendError::Full(reason)),
        // Among them 10164: another append to this history is under way; it is settled by the next
        // try. And all that a change of leader brings.
        _ => Failure::Transient(reason),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::super::Expect;
    use super::*;

    fn job(history: Option<&str>, count: usize) -> Job {
        let entry = Entry {
            subject: "s".to_owned(),
            payload: Bytes::new(),
            headers: HeaderMap::new(),
            expect: history.map(|history| Expect { history: history.to_owned(), sequence: 0 }),
        };
        Job { entries: vec![entry; count], deadline: Instant::now(), reply: oneshot::channel().0 }
    }

    #[test]
    fn two_groups_of_one_history_never_share_a_batch() {
        let mut waiting: VecDeque<Job> =
            [job(Some("a"), 1), job(Some("b"), 1), job(Some("a"), 1), job(None, 1)].into();
        assert_eq!(take_batch(&mut waiting).len(), 3);
        assert_eq!(take_batch(&mut waiting).len(), 1);
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut waiting: VecDeque<Job> = (0..3).map(|_| job(None, ATOMIC_MOST / 2)).collect();
        assert_eq!(take_batch(&mut waiting).len(), 2);
        assert_eq!(waiting.len(), 1);
    }
}
