//! A password for each principal, in a folder of files, and what the servers are told of them.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use millrace_shared::access::{NatsRights, Principal};
use millrace_shared::topology::Topology;
use postgres_protocol::password::scram_sha_256;
use rand::distr::{Alphanumeric, SampleString as _};
use sqlx::{AssertSqlSafe, PgConnection};

/// Characters of a password: 256 bits.
const LENGTH: usize = 43;

/// What `millrace credentials` is to make.
#[derive(Debug, Clone, Args)]
pub struct CredentialsArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Prefix of all streams, subjects and Redis keys
    #[arg(long, env = "MILLRACE_NAMESPACE", default_value = "millrace")]
    namespace: String,
}

/// Makes the passwords that are missing, the secret that tokens are signed with, and the parts of
/// the servers' configuration that name the passwords.
pub fn run(args: &CredentialsArgs) -> Result<()> {
    let topology = Topology::new(&args.namespace)?;
    let credentials = Credentials::open(&args.folder)?;
    let file = |name: &str| args.folder.join(name);
    make_secret(&file("jwt"))?;
    write_open(&file("nats-users.conf"), &nats_users(&credentials, &[topology], &[])?)?;
    let rules = redis_users(&credentials, std::slice::from_ref(&args.namespace))?;
    write_open(&file("valkey-users.acl"), &format!("user default off\n{rules}"))
}

/// A folder that has a file with a password for each principal, named after it. Nobody but the
/// owner can enter it. The files themselves can be read by all: mounted into a container one by one
/// they have to be read by its user.
#[derive(Debug, Clone)]
pub struct Credentials {
    folder: PathBuf,
}

impl Credentials {
    /// The folder, made if it is missing, with passwords for whom there is none.
    pub fn open(folder: &Path) -> Result<Self> {
        let of = || format!("the folder of credentials {}", folder.display());
        fs::create_dir_all(folder).with_context(of)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700)).with_context(of)?;
        let folder = folder.canonicalize().with_context(of)?;
        for principal in Principal::ALL {
            make_secret(&folder.join(principal.name()))?;
        }
        Ok(Self { folder })
    }

    /// The folder of somebody else's making.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the password is of whom `{role}` stands for.
    pub fn template(&self) -> PathBuf {
        self.folder.join("{role}")
    }

    /// A principal's password; none if the folder has no file for it.
    fn password(&self, principal: Principal) -> Result<Option<String>> {
        let path = self.folder.join(principal.name());
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        let text = text.trim_end_matches(['\r', '\n']);
        ensure!(!text.is_empty(), "{} is empty", path.display());
        Ok(Some(text.to_owned()))
    }

    fn passwords(&self) -> impl Iterator<Item = Result<(Principal, String)>> {
        Principal::ALL.into_iter().filter_map(|principal| {
            let password = self.password(principal).transpose()?;
            Some(password.map(|password| (principal, password)))
        })
    }

    /// Lets the roles of a database log in, each with its own password. The server gets what it
    /// checks passwords by (RFC 5803), and never sees one.
    pub async fn let_in(&self, connection: &mut PgConnection) -> Result<()> {
        let found: Vec<_> = self.passwords().collect::<Result<_>>()?;
        ensure!(
            !found.is_empty(),
            "{0} has no password for any role: make them with `millrace credentials {0}`",
            self.folder.display()
        );
        for (principal, password) in found {
            let role: Option<String> = sqlx::query_scalar(
                "select quote_ident(rolname) from pg_roles
                 where rolname = current_database() || '_' || $1",
            )
            .bind(principal.name())
            .fetch_optional(&mut *connection)
            .await?;
            let Some(role) = role else { continue };
            let verifier = scram_sha_256(password.as_bytes());
            let change = format!("alter role {role} login password '{verifier}'");
            sqlx::raw_sql(AssertSqlSafe(change)).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// The users of NATS, for its configuration: of each namespace, and others who may do everything.
pub fn nats_users(
    credentials: &Credentials,
    namespaces: &[Topology],
    others: &[(&str, &str)],
) -> Result<String> {
    let mut text = "authorization {\n  users: [\n".to_owned();
    for (user, password) in others {
        let (user, password) = (quoted([user]), quoted([password]));
        writeln!(text, "    {{ user: {user}, password: {password} }}")?;
    }
    for topology in namespaces {
        for found in credentials.passwords() {
            let (principal, password) = found?;
            let Some(rights) = principal.at_nats(topology) else { continue };
            let user = format!("{}-{principal}", topology.namespace());
            let (user, password) = (quoted([user]), quoted([password]));
            writeln!(text, "    {{ user: {user}, password: {password}, permissions: {{")?;
            text.push_str(&permissions(&rights));
            text.push_str("    } }\n");
        }
    }
    text.push_str("  ]\n}\n");
    Ok(text)
}

fn permissions(rights: &NatsRights) -> String {
    let NatsRights { publish, never, subscribe, answers } = rights;
    let mut text = format!(
        "      publish: {{ allow: [{}], deny: [{}] }}\n      subscribe: [{}]\n",
        quoted(publish),
        quoted(never),
        quoted(subscribe)
    );
    if *answers {
        // An answer may be waited for for half a minute. All services of a process may be asked with
        // one inbox for their answers.
        text.push_str("      allow_responses: { max: 16, expires: \"1m\" }\n");
    }
    text
}

/// Words as the configuration of NATS takes them.
fn quoted(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let words = words.into_iter().map(|word| serde_json::Value::from(word.as_ref()).to_string());
    words.collect::<Vec<_>>().join(", ")
}

/// The users of Redis, as lines of its configuration or of an ACL file.
pub fn redis_users(credentials: &Credentials, namespaces: &[String]) -> Result<String> {
    let mut text = String::new();
    for namespace in namespaces {
        for found in credentials.passwords() {
            let (principal, password) = found?;
            let Some(rules) = principal.at_redis(namespace) else { continue };
            writeln!(text, "user {namespace}-{principal} on >{password} {rules}")?;
        }
    }
    Ok(text)
}

/// Makes a secret, unless there is one.
fn make_secret(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    write_open(path, &Alphanumeric.sample_string(&mut rand::rng(), LENGTH))
}

/// Writes a file whole or not at all; the folder is what keeps it secret.
fn write_open(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let new = path.with_added_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}
