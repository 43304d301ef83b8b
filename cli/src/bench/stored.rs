//! How much the servers hold.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use fred::interfaces::ClientLike as _;
use fred::types::InfoKind;
use serde::Serialize;

use super::figures::float;
use super::system::System;

/// Bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stored {
    nats: u64,
    nats_disk: Option<u64>,
    postgres: u64,
    postgres_wal: u64,
    redis: u64,
}

/// Bytes for each order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PerOrder {
    /// Of messages in COMMANDS and EVENTS, as the server counts them.
    pub nats: f64,
    /// On the disk of nats-server; only of a private system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats_disk: Option<f64>,
    /// Of the database: tables and indexes.
    pub postgres: f64,
    /// Written to its write-ahead log, which is used again.
    pub postgres_wal: f64,
    /// `used_memory` of Redis.
    pub redis: f64,
}

impl Stored {
    /// What a system holds now.
    pub async fn read(system: &System) -> Result<Self> {
        let jetstream = jetstream::new(system.nats.clone());
        let mut nats = 0;
        for name in [system.topology.commands_stream(), system.topology.events_stream()] {
            nats += jetstream.get_stream(&name).await?.cached_info().state.bytes;
        }
        let (postgres, wal): (i64, i64) = sqlx::query_as(
            "select pg_database_size(current_database()),
                    pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint",
        )
        .fetch_one(&system.pool)
        .await?;
        let redis = system.config.redis.client()?;
        redis.wait_for_connect().await?;
        let info: String = redis.info(Some(InfoKind::Memory)).await?;
        redis.quit().await?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        let redis = used.context("Redis does not tell its memory")?.trim().parse()?;
        Ok(Self {
            nats,
            nats_disk: system.data.as_deref().map(|data| on_disk(data, "nats")),
            postgres: postgres.unsigned_abs(),
            postgres_wal: wal.unsigned_abs(),
            redis,
        })
    }

    /// What was added since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            nats: self.nats.saturating_sub(before.nats),
            nats_disk: self
                .nats_disk
                .zip(before.nats_disk)
                .map(|(now, before)| now.saturating_sub(before)),
            postgres: self.postgres.saturating_sub(before.postgres),
            postgres_wal: self.postgres_wal.saturating_sub(before.postgres_wal),
            redis: self.redis.saturating_sub(before.redis),
        }
    }

    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self {
            nats: self.nats + other.nats,
            nats_disk: match (self.nats_disk, other.nats_disk) {
                (Some(one), Some(two)) => Some(one + two),
                (one, two) => one.or(two),
            },
            postgres: self.postgres + other.postgres,
            postgres_wal: self.postgres_wal + other.postgres_wal,
            redis: self.redis + other.redis,
        }
    }

    /// For each of so many orders.
    pub fn per(self, orders: u64) -> PerOrder {
        let per = |bytes: u64| float(bytes) / float(orders.max(1));
        PerOrder {
            nats: per(self.nats),
            nats_disk: self.nats_disk.map(per),
            postgres: per(self.postgres),
            postgres_wal: per(self.postgres_wal),
            redis: per(self.redis),
        }
    }
}

/// The size of the folders whose name begins with `server`.
fn on_disk(data: &Path, server: &str) -> u64 {
    let entries = fs::read_dir(data).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(server));
    ours.map(|entry| size(&entry.path())).sum()
}

fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
