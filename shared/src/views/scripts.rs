//! The scripts of the views. Each touches one hash slot of a cluster; without a cluster many items
//! are written by one call.

use std::collections::BTreeMap;

use fred::interfaces::{ClientLike as _, LuaInterface as _};
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand, FromValue, Value};
use fred::util::redis_keyslot;
use futures_util::future::try_join_all;

use super::changed::NOTE;
use super::orders::{BROWSE, FIND, NEWER, SHELVE};
use super::reports::COUNT;
use super::write::MARK;
use super::{ViewError, Views};

/// Writes documents (version and text after each other), each unless one of the same or a newer
/// version is there. What has no version is always written.
const PUT: &str = "
for i, key in ipairs(KEYS) do
  local version, text = ARGV[2 * i - 1], ARGV[2 * i]
  if version == '' then
    redis.call('SET', key, text)
  else
    local old = string.match(redis.call('GETRANGE', key, 0, 19), '^%d+')
    if not old or tonumber(old) < tonumber(version) then
      redis.call('SET', key, version .. ' ' .. text)
    end
  end
end
return 1";

const ALL: [&str; 8] = [PUT, MARK, COUNT, SHELVE, NEWER, BROWSE, FIND, NOTE];

/// Items that one call writes: it holds up everybody else for about a millisecond.
const AT_A_TIME: usize = 100;

/// What a script needs of one thing that it writes.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its keys, all in one hash slot.
    pub keys: Vec<String>,
    /// Its words.
    pub words: Vec<Value>,
}

impl Item {
    /// Adds what is to be done to a key: a command, and its words.
    pub fn push(&mut self, command: &'static str, words: Vec<String>) {
        let count = i64::try_from(words.len()).unwrap_or(i64::MAX);
        self.words.extend([command.into(), count.into()]);
        self.words.extend(words.into_iter().map(Value::from));
    }
}

/// All of them, by their hashes.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    pub put: Script,
    pub mark: Script,
    pub count: Script,
    pub shelve: Script,
    pub newer: Script,
    pub browse: Script,
    pub find: Script,
    pub note: Script,
}

impl Scripts {
    pub fn new() -> Self {
        Self {
            put: Script::from_lua(PUT),
            mark: Script::from_lua(MARK),
            count: Script::from_lua(COUNT),
            shelve: Script::from_lua(SHELVE),
            newer: Script::from_lua(NEWER),
            browse: Script::from_lua(BROWSE),
            find: Script::from_lua(FIND),
            note: Script::from_lua(NOTE),
        }
    }
}

impl Views {
    /// Does what needs scripts, and again where Redis does not have them: it was restarted, or is
    /// new. Writing again is harmless.
    pub(super) async fn with_scripts<T, F>(&self, work: impl Fn() -> F) -> Result<T, ViewError>
    where
        F: Future<Output = Result<T, ViewError>>,
    {
        match work().await {
            Err(ViewError::Redis(error)) if error.details().starts_with("NOSCRIPT") => {
                try_join_all(ALL.map(|script| self.load(script))).await?;
                work().await
            }
            result => result,
        }
    }

    /// Runs a script on items, many at a time; returns its answers with the items that they are about.
    pub(super) async fn each<R: FromValue>(
        &self,
        script: &Script,
        items: impl Iterator<Item = Item>,
    ) -> Result<Vec<(Vec<Item>, R)>, ViewError> {
        let clustered = self.redis.is_clustered();
        let mut slots: BTreeMap<u16, Vec<Vec<Item>>> = BTreeMap::new();
        for item in items {
            let slot = |key: &String| if clustered { redis_keyslot(key.as_bytes()) } else { 0 };
            let parts = slots.entry(item.keys.first().map_or(0, slot)).or_default();
            match parts.last_mut().filter(|part| part.len() < AT_A_TIME) {
                Some(part) => part.push(item),
                None => parts.push(vec![item]),
            }
        }
        let parts: Vec<Vec<Item>> = slots.into_values().flatten().collect();
        let call = async |part: &Vec<Item>| {
            let keys: Vec<String> = part.iter().flat_map(|item| item.keys.clone()).collect();
            let words: Vec<Value> = part.iter().flat_map(|item| item.words.clone()).collect();
            Ok(self.redis.evalsha(script.sha1().clone(), keys, words).await?)
        };
        let answers = Box::pin(self.with_scripts(|| try_join_all(parts.iter().map(call)))).await?;
        Ok(parts.into_iter().zip(answers).collect())
    }

    /// Runs a script that only reads: who may only read may run it.
    pub(super) async fn ask<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        words: Vec<String>,
    ) -> Result<R, ViewError> {
        // The first key is the third word.
        let command = CustomCommand::new_static("EVALSHA_RO", ClusterHash::Offset(2), false);
        let head = [script.sha1().to_string(), keys.len().to_string()];
        let words: Vec<String> = head.into_iter().chain(keys).chain(words).collect();
        Ok(Box::pin(self.redis.custom(command, words)).await?)
    }

    async fn load(&self, script: &'static str) -> Result<(), ViewError> {
        if self.redis.is_clustered() {
            self.redis.script_load_cluster::<(), _>(script).await?;
        } else {
            self.redis.script_load::<(), _>(script).await?;
        }
        Ok(())
    }
}
