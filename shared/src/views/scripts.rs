//! The scripts of the views. Each touches one hash slot.

use fred::interfaces::{ClientLike as _, LuaInterface as _};
use fred::types::scripts::Script;
use futures_util::future::try_join_all;

use super::changed::NOTE;
use super::orders::{BROWSE, FIND, SHELVE};
use super::reports::COUNT;
use super::{ViewError, Views};

/// Writes a document unless one of the same or a newer version is there.
const PUT: &str = "
local old = string.match(redis.call('GETRANGE', KEYS[1], 0, 19), '^%d+')
if old and tonumber(old) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
return 1";

/// All of them, by their hashes.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    pub put: Script,
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
                try_join_all(
                    [PUT, COUNT, SHELVE, BROWSE, FIND, NOTE].map(|script| self.load(script)),
                )
                .await?;
                work().await
            }
            result => result,
        }
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
