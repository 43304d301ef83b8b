//! What callers of the HTTP api sign in with: `millrace key new` and `millrace token new` make it, and
//! the tools that speak HTTP take it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use millrace_api::auth::config::TokenConfig;
use millrace_api::auth::token::issue;
use millrace_api::auth::{Role, keys};

/// What `millrace key` is to do.
#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// Make a key for a program or an operator. It is shown once: the file of --api-keys has its hash
    New {
        /// Whose it is; several may have one name, such as an old key and its successor
        #[arg(value_name = "NAME")]
        name: String,
        /// What it is for
        #[arg(long, value_enum)]
        role: Role,
    },
}

/// Makes a key.
pub fn key(action: &KeyAction) -> anyhow::Result<()> {
    let KeyAction::New { name, role } = action;
    let made = keys::make(name, *role)?;
    println!("The key, which is shown only now:\n\n  {}\n", made.key);
    println!("Its line in the file of --api-keys:\n\n  {}", made.line);
    Ok(())
}

/// What `millrace token` is to do.
#[derive(Debug, Subcommand)]
pub enum TokenAction {
    /// Make a token, signed with the secret of the api: to try things out, or for a shop that has no
    /// other issuer of tokens
    New {
        /// Whose it is: of a customer the customer id
        #[arg(value_name = "SUBJECT")]
        subject: String,
        /// What the subject may do
        #[arg(long, value_enum)]
        role: Role,
        /// For how many minutes it is good
        #[arg(long, value_name = "NUMBER", default_value_t = 60,
              value_parser = clap::value_parser!(u32).range(1..=525_600))]
        minutes: u32,
        #[command(flatten)]
        #[allow(missing_docs, reason = "the text would become part of the help")]
        config: TokenConfig,
    },
}

/// Makes a token.
pub fn token(action: &TokenAction) -> anyhow::Result<()> {
    let TokenAction::New { subject, role, minutes, config } = action;
    let secret = config.secret()?.context(
        "the secret that the api takes tokens by is needed: --jwt-secret-file or MILLRACE_JWT_SECRET",
    )?;
    let valid = Duration::from_secs(u64::from(*minutes) * 60);
    println!("{}", issue(&secret, &config.expected(), subject, *role, valid)?);
    Ok(())
}

/// What a tool signs in with at the HTTP api.
#[derive(Debug, Clone, Default, Args)]
pub struct SignIn {
    /// File with the token or API key for the HTTP API; without it the variable `MILLRACE_TOKEN` has it
    #[arg(long, env = "MILLRACE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl SignIn {
    /// The value of the header `Authorization`, if there is a token.
    pub fn authorization(&self) -> anyhow::Result<Option<String>> {
        let token = match &self.token_file {
            Some(file) => std::fs::read_to_string(file)
                .with_context(|| format!("the token file {} cannot be read", file.display()))?,
            // No argument: every user of the machine sees those.
            None => match std::env::var("MILLRACE_TOKEN") {
                Ok(token) => token,
                Err(_) => return Ok(None),
            },
        };
        let token = token.trim();
        ensure!(
            !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()),
            "the token is empty, or has characters that no token has"
        );
        Ok(Some(format!("Bearer {token}")))
    }
}
