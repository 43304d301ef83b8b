//! API keys, for programs and operators: random, long, and kept as hashes in a file.
//!
//! One hash is enough: a key is 256 random bits and no password, so nobody finds it by trying, however
//! fast the hash is. The file is looked at again while the edge runs: a line that is added or removed
//! counts from the next second on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use subtle::ConstantTimeEq as _;

use super::{Caller, Role};

/// How every key begins: so it is told from other tokens, and found where it was left by mistake.
const BEGINNING: &str = "millrace_";
/// How often the file is looked at, at the most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether a token is meant to be an API key.
pub fn is_key(token: &str) -> bool {
    token.starts_with(BEGINNING)
}

/// A key that was made.
#[derive(Debug)]
pub struct NewKey {
    /// The key, which nobody can find out again.
    pub key: String,
    /// Its line in the file.
    pub line: String,
}

/// Makes a key for somebody.
pub fn make(name: &str, role: Role) -> anyhow::Result<NewKey> {
    check(name, role)?;
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("no random bits can be had"))?;
    let key = format!("{BEGINNING}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes));
    let hash = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, key.as_bytes()));
    Ok(NewKey { key, line: format!("{name} {} {hash}", role.as_str()) })
}

fn check(name: &str, role: Role) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    ensure!(
        (1..=64).contains(&name.len()) && name.bytes().all(plain),
        "the name {name:?} must be 1 to 64 of the characters A-Z a-z 0-9 _ -"
    );
    ensure!(role != Role::Customer, "keys are for the roles service and operator");
    Ok(())
}

#[derive(Debug)]
struct Entry {
    hash: [u8; 32],
    caller: Caller,
}

/// A file of keys: `NAME ROLE HASH` on each line; what begins with # says nothing.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    /// Its time and length, by which another one is told.
    version: Option<(SystemTime, u64)>,
    entries: Arc<[Entry]>,
}

impl KeyFile {
    /// Reads the file.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let version = version(path);
        let entries = read(path)?;
        let seen = Mutex::new(Seen { at: Instant::now(), version, entries });
        Ok(Self { path: path.to_owned(), seen })
    }

    /// Whose key it is.
    pub fn find(&self, key: &str) -> Option<Caller> {
        let entries = self.entries();
        let hash = digest(&SHA256, key.as_bytes());
        let mut found = None;
        // All of them, each in the same time.
        for entry in entries.iter() {
            if bool::from(entry.hash.ct_eq(hash.as_ref())) {
                found = Some(&entry.caller);
            }
        }
        found.cloned()
    }

    fn entries(&self) -> Arc<[Entry]> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at.elapsed() >= LOOK_AGAIN {
            seen.at = Instant::now();
            let version = version(&self.path);
            if version != seen.version {
                match read(&self.path) {
                    Ok(entries) => {
                        tracing::info!(keys = entries.len(), "the file of API keys was read again");
                        (seen.entries, seen.version) = (entries, version);
                    }
                    Err(error) => {
                        tracing::warn!("the API keys from before stay in use: {error:#}");
                    }
                }
            }
        }
        Arc::clone(&seen.entries)
    }
}

fn version(path: &Path) -> Option<(SystemTime, u64)> {
    let about = fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

fn read(path: &Path) -> anyhow::Result<Arc<[Entry]>> {
    let name = path.display();
    let text = fs::read_to_string(path)
        .with_context(|| format!("the file of API keys {name} cannot be read"))?;
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| entry(line).with_context(|| format!("line {at} of {name} is no API key")))
        .collect()
}

fn entry(line: &str) -> anyhow::Result<Entry> {
    let parts: Vec<&str> = line.split_whitespace().collect();
    let [name, role, hash] = parts.as_slice() else {
        bail!("it must be NAME ROLE HASH, as `millrace key new` prints it");
    };
    let known = || format!("the role {role:?} is neither service nor operator");
    let role: Role = role.parse().map_err(|()| anyhow!(known()))?;
    check(name, role)?;
    let hash = BASE64_URL_SAFE_NO_PAD.decode(hash).ok().and_then(|hash| hash.try_into().ok());
    let hash = hash.context("the hash is not what `millrace key new` prints")?;
    Ok(Entry { hash, caller: Caller::worker(role, &format!("key:{name}"), None) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_key_is_found_by_its_hash_alone() {
        let (shop, ops) =
            (make("shop", Role::Service).unwrap(), make("ann", Role::Operator).unwrap());
        let path = file("keys", &format!("# keys\n\n{}\n  {}\n", shop.line, ops.line));
        let keys = KeyFile::open(&path).unwrap();
        assert_eq!(keys.find(&shop.key).unwrap().actor(), Some("key:shop"));
        assert!(keys.find(&ops.key).unwrap().is_operator());
        assert!(!keys.find(&shop.key).unwrap().is_operator());
        assert!(is_key(&shop.key) && shop.key != make("shop", Role::Service).unwrap().key);
        assert!(!shop.line.contains(&shop.key));
        for other in [&shop.key[..shop.key.len() - 1], "millrace_", &shop.line] {
            assert!(keys.find(other).is_none(), "{other}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_wrong_line_is_told_by_its_number() {
        let line = make("shop", Role::Service).unwrap().line;
        for wrong in ["shop service", "shop customer x", "sh.op service x", "shop service abcd"] {
            let path = file("wrong-keys", &format!("{line}\n{wrong}\n"));
            let error = format!("{:#}", KeyFile::open(&path).unwrap_err());
            assert!(error.contains("line 2"), "{error}");
        }
        assert!(make("ann", Role::Customer).is_err() && make("a b", Role::Service).is_err());
    }
}
