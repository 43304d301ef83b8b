//! The scripts of the views. Each touches one hash slot of a cluster; without a cluster many items
//! are written by one call.

use std::collections::BTreeMap;

use fred::interfaces::{ClientLike as _, LuaInterface as _};
use fred::types::Value;
use fred::types::scripts::Script;
use fred::util::redis_keyslot;
use futures_util::future::try_join_all;

use super::changed::NOTE;
use super::orders::{BROWSE, FIND, SHELVE};
use super::reports::COUNT;
use super::write::MARK;
use super::{ViewError, Views};

/// Writes documents (version and text after each other), each unless one of the same or a newer
/// version is there.
const PUT: &str = "
for i, key in ipairs(KEYS) do
  local version = ARGV[2 * i - 1]
  local old = string.match(redis.call('GETRANGE', key, 0, 19), '^%d+')
  if not old or tonumber(old) < tonumber(version) then
    redis.call('SET', key, version .. ' ' .. ARGV[2 * i])
  end
end
return 1";

/// Writes what became of commands.
const TELL: &str = "
for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i]) end
return 1";

const ALL: [&str; 8] = [PUT, TELL, MARK, COUNT, SHELVE, BROWSE, FIND, NOTE];

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

/// All of them, by their hashes.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    pub put: Script,
    pub tell: Script,
    pub mark: Script,
    pub count: Script,
    pub shelve: Script,
    pub browse: Script,
    pub find: Script,
    pub note: Script,
}

impl Scripts {
    pub fn new() -> Self {
        Self {
            put: Script::from_lua(PUT),
            tell: Script::from_lua(TELL),
            mark: Script::from_lua(MARK),
            count: Script::from_lua(COUNT),
            shelve: Script::from_lua(SHELVE),
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

    /// Runs a script on items, many at a time.
    pub(super) async fn each(
        &self,
        script: &Script,
        items: impl Iterator<Item = Item>,
    ) -> Result<(), ViewError> {
        let clustered = self.redis.is_clustered();
        let mut slots: BTreeMap<u16, Vec<Item>> = BTreeMap::new();
        for item in items {
            let slot = |key: &String| if clustered { redis_keyslot(key.as_bytes()) } else { 0 };
            slots.entry(item.keys.first().map_or(0, slot)).or_default().push(item);
        }
        let call = async |part: &[Item]| {
            let keys: Vec<String> = part.iter().flat_map(|item| item.keys.clone()).collect();
            let words: Vec<Value> = part.iter().flat_map(|item| item.words.clone()).collect();
            Ok(self.redis.evalsha::<(), _, _, _>(script.sha1().clone(), keys, words).await?)
        };
        let parts = || slots.values().flat_map(|items| items.chunks(AT_A_TIME));
        Box::pin(self.with_scripts(|| try_join_all(parts().map(call)))).await.map(|_| ())
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
