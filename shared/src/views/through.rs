//! How far the views have come on the server that holds them. A Redis that is killed may come back
//! without the last writes that it acknowledged: always without the last of them, never without
//! some in between. So a note that is written behind the views, and is still there, vouches for all
//! that was written before it.

use fred::interfaces::LuaInterface as _;

use super::{ViewError, Views};

/// Notes how far the views have come, if the server is the one of the last note, or has been caught
/// up with (`ARGV[2]`); otherwise returns its name and how far the views had come for sure.
const NOTE: &str = "
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or '0'
local noted, through = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) (%d+)$')
if noted and noted ~= run and run ~= ARGV[2] then return {run, through} end
if noted ~= run or tonumber(through) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], run .. ' ' .. ARGV[1])
end
return {'', '0'}";

/// The server has been started anew, or is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restarted {
    /// Which server it is now.
    pub run: String,
    /// The place in EVENTS up to which the views are whole; what came behind it may be lost.
    pub through: u64,
}

impl Views {
    pub(super) fn note_key(&self) -> String {
        format!("{}:through", self.namespace)
    }

    /// Notes that all events up to the place `through` are in the views; does not, and says so, if
    /// the server has been started anew since the last note. `caught_up` names a server for which
    /// what may have been lost was written again.
    pub async fn note(
        &self,
        through: u64,
        caught_up: Option<&str>,
    ) -> Result<Option<Restarted>, ViewError> {
        let key = self.note_key();
        let arguments = vec![through.to_string(), caught_up.unwrap_or_default().to_owned()];
        let (run, through): (String, String) =
            self.redis.eval(NOTE, vec![key.clone()], arguments).await?;
        if run.is_empty() {
            return Ok(None);
        }
        let through = through.parse().map_err(|_| ViewError::Damaged(key))?;
        Ok(Some(Restarted { run, through }))
    }
}
