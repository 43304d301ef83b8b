//! The keys of the bare loop: one pipeline for each batch.

use anyhow::{Context as _, Result, ensure};
use fred::clients::Client;
use fred::cmd;
use fred::interfaces::{ClientLike as _, KeysInterface as _, LuaInterface as _};
use fred::types::Value;
use futures_util::TryStreamExt as _;
use millrace_shared::message::Event;

use super::{Bones, Model};
use crate::bench::system::System;

/// Writes a document unless one of the same or a newer version is there.
const PUT: &str = "
local old = string.match(redis.call('GETRANGE', KEYS[1], 0, 19), '^%d+')
if old and tonumber(old) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
return 1";

pub(super) struct Keys {
    redis: Client,
    put: String,
    prefix: String,
}

impl Keys {
    pub async fn new(system: &System) -> Result<Self> {
        let redis = system.config.redis.client()?;
        redis.wait_for_connect().await?;
        let put: String = redis.script_load(PUT).await?;
        let prefix = format!("{}:bench:", system.topology.namespace());
        let keys = Self { redis, put, prefix };
        keys.clear().await?;
        Ok(keys)
    }

    /// What an event of each order changes in the views.
    pub async fn views(&self, model: &Model, event: &Event, orders: &[Bones]) -> Result<()> {
        let Self { redis, put, prefix } = self;
        let version = event.version.to_string();
        let customer = model.order.customer_id.as_str();
        let micros = event.occurred_at.timestamp_micros();
        let pipeline = redis.pipeline();
        let mut count = 0;
        let mut send = async |command: &'static str, arguments: Vec<Value>| {
            count += 1;
            pipeline.custom::<(), _>(cmd!(command), arguments).await
        };
        for order in orders {
            let id = &order.text;
            let state = model.with_id(event.state.get().as_bytes(), order);
            let key = format!("{prefix}order:{id}");
            let words = vec![put.clone().into(), 1.into(), key.into(), version.clone().into()];
            send("EVALSHA", [words, vec![Value::Bytes(state)]].concat()).await?;
            if event.version == 1 {
                let outcome = format!(
                    "{{\"commandId\":\"{id}\",\"status\":\"accepted\",\"orderId\":\"{id}\",\"version\":1}}"
                );
                let key = format!("{prefix}command:{id}");
                send("SET", vec![key.into(), outcome.into()]).await?;
            }
            let place = format!("{micros:016}_{id}");
            // Which customer it is spreads the list as Millrace's are spread.
            let lists = [format!("of:{customer}:{}", order.number % 1_000), "on".to_owned()];
            for list in &lists {
                if event.version > 1 {
                    let key = format!("{prefix}{list}:validated");
                    send("ZREM", vec![key.into(), place.clone().into()]).await?;
                }
                let key = format!("{prefix}{list}:{}", event.kind);
                send("ZADD", vec![key.into(), 0.into(), place.clone().into()]).await?;
            }
            let changed = format!("{prefix}{}:changed", lists[0]);
            send("ZADD", vec![changed.into(), micros.into(), id.clone().into()]).await?;
            let counted = format!("{prefix}counted:{}", &id[..2]);
            send("HSET", vec![counted.into(), id.clone().into(), version.clone().into()]).await?;
        }
        let told: Vec<String> =
            orders.iter().map(|order| format!("order/{} {version}", order.text)).collect();
        let channel = format!("{prefix}changes");
        send("PUBLISH", vec![channel.into(), told.join("\n").into()]).await?;
        let answers: Vec<Value> = pipeline.all().await.context("a pipeline")?;
        ensure!(answers.len() == count, "{} answers to {count} commands", answers.len());
        Ok(())
    }

    pub async fn remove(&self) -> Result<()> {
        self.clear().await?;
        self.redis.quit().await?;
        Ok(())
    }

    async fn clear(&self) -> Result<()> {
        let found = self.redis.scan_buffered(format!("{}*", self.prefix), Some(1_000), None);
        let found: Vec<fred::types::Key> = found.try_collect().await?;
        for keys in found.chunks(1_000) {
            self.redis.unlink::<(), _>(keys.to_vec()).await?;
        }
        Ok(())
    }
}
