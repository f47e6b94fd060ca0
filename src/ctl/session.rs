//! What every command works with: the settings, connections made from them, and how long an answer may take.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::ArgMatches;

use super::arguments::{Global, unknown_variables};
use super::failure::Failure;
use super::print::Format;
use crate::client::ask::Ask;
use crate::client::{self, Client, Keepalive, Login, SOONEST, Settings, Tls};
use crate::discovery::endpoints;

/// What is said when time is up.
pub(super) const LATE: &str = "context deadline exceeded";

/// Go's gRPC, and with it etcdctl, asks for signs of life no more often than this, whatever it is told.
const KEEPALIVE_MIN: Duration = Duration::from_secs(10);

/// One run of the tool.
pub(super) struct Session {
    /// Where the cluster is.
    pub(super) endpoints: Vec<String>,
    /// How answers are printed.
    pub(super) format: Format,
    /// Keys and values in hex.
    pub(super) hex: bool,
    /// How long a command may take.
    pub(super) patience: Duration,
    settings: Settings,
    login: Option<Login>,
}

impl Session {
    /// From flags and variables.
    pub(super) async fn new(matches: &ArgMatches) -> Result<Session, Failure> {
        let global = Global::read(matches, |name| std::env::var(name).ok())?;
        for variable in unknown_variables(std::env::vars()) {
            let variable = super::go::string(&variable);
            eprintln!(
                "{{\"level\":\"warn\",\"msg\":\"unrecognized environment variable\",\"environment-variable\":{variable}}}"
            );
        }
        if global.on("debug")? {
            eprint!("{}", global.lines());
        }
        let domain = Some(global.text("discovery-srv")).filter(|domain| !domain.is_empty());
        // DNS may lie. Whoever does not take its word wants a certificate of the domain from whomever it names.
        let server_name = if global.on("insecure-discovery")? { None } else { domain.map(str::to_owned) };
        let path = |name| Some(global.text(name)).filter(|path| !path.is_empty()).map(Into::into);
        let tls = Tls {
            cacert: path("cacert"),
            cert: path("cert"),
            key: path("key"),
            insecure_skip_verify: global.on("insecure-skip-tls-verify")?,
            required: !global.on("insecure-transport")? || server_name.is_some(),
            server_name,
        };
        let keepalive =
            Keepalive { interval: global.duration("keepalive-time")?, timeout: global.duration("keepalive-timeout")? };
        let settings = Settings { keepalive, connect_timeout: global.duration("dial-timeout")?, tls };
        let session = Session {
            endpoints: global.text("endpoints").split(',').map(str::to_owned).collect(),
            format: Format::parse(global.text("write-out"))?,
            hex: global.on("hex")?,
            patience: global.duration("command-timeout")?,
            settings,
            login: None,
        };
        session.settings.tls.check().map_err(Failure::bad_arguments)?;
        let login = login(global.text("user"), global.text("password"))?;
        let Some(domain) = domain else { return Ok(Session { login, ..session }) };
        let found = endpoints::look_up(domain, global.text("discovery-srv-name")).await.map_err(Failure::error)?;
        let (endpoints, ignored) = allowed(found, session.settings.tls.server_name.is_none());
        for endpoint in ignored {
            eprintln!("ignoring discovered insecure endpoint {}", super::go::string(&endpoint));
        }
        // As etcdctl has it: what is left of nothing is what --endpoints says.
        let endpoints = if endpoints.is_empty() { session.endpoints } else { endpoints };
        Ok(Session { login, endpoints, ..session })
    }

    /// A client of some endpoints.
    pub(super) fn client_of(&self, endpoints: &[String]) -> Result<Client, Failure> {
        self.asking(endpoints, KEEPALIVE_MIN)
    }

    /// One that asks for signs of life no sooner than that.
    fn asking(&self, endpoints: &[String], soonest: Duration) -> Result<Client, Failure> {
        let Keepalive { interval, timeout } = self.settings.keepalive;
        let keepalive = Keepalive { interval: interval.max(soonest), timeout };
        self.connected(endpoints, &Settings { keepalive, ..self.settings.clone() })
    }

    /// A client of all endpoints, which asks for a token with each stream: for what lasts. It asks for signs of life as often as members
    /// allow, if it was told so: whatever lasts goes on elsewhere as soon as there are none.
    pub(super) fn lasting_client(&self) -> Result<Client, Failure> {
        self.asking(&self.endpoints, SOONEST)
    }

    /// A client of all endpoints, whose user is known to them.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        self.authenticated(self.client_of(&self.endpoints)?).await
    }

    fn connected(&self, endpoints: &[String], settings: &Settings) -> Result<Client, Failure> {
        if endpoints.iter().all(String::is_empty) {
            return Err(Failure::connection("etcdclient: no available endpoints"));
        }
        let client = Client::with_settings(endpoints, 1, settings);
        Ok(client.map_err(|error| Failure::connection(error.to_string()))?.with_login(self.login.clone()))
    }

    /// The same client with a token.
    pub(super) async fn authenticated(&self, client: Client) -> Result<Client, Failure> {
        match tokio::time::timeout(self.settings.connect_timeout, client.authenticated()).await {
            Ok(client) => client.map_err(|error| Failure::connection(error.etcd_text())),
            Err(_) => Err(Failure::connection(LATE)),
        }
    }

    /// Something that may not last, as text where it fails.
    pub(super) async fn within<T>(&self, doing: impl Future<Output = Result<T, client::Error>>) -> Result<T, String> {
        match tokio::time::timeout(self.patience, doing).await {
            Ok(outcome) => outcome.map_err(|error| error.etcd_text()),
            Err(_) => Err(LATE.to_owned()),
        }
    }

    /// The answer to one question, from any endpoint.
    pub(super) async fn ask<Q: Ask>(&self, question: Q) -> Result<Q::Answer, Failure> {
        let client = self.client().await?;
        self.ask_with(&client, question).await
    }

    /// The same with a client that is there.
    pub(super) async fn ask_with<Q: Ask>(&self, client: &Client, question: Q) -> Result<Q::Answer, Failure> {
        Ok(self.within(client.ask(question)).await?)
    }
}

/// Of endpoints that were discovered those that may be used, and the others.
fn allowed(found: Vec<String>, in_the_clear: bool) -> (Vec<String>, Vec<String>) {
    found.into_iter().partition(|endpoint| in_the_clear || endpoint.starts_with("https://"))
}

/// `name:password`, or a name and a password beside it, or a name whose password is asked for.
pub(super) fn login(user: &str, password: &str) -> Result<Option<Login>, Failure> {
    let (name, password) = match (user.split_once(':'), password) {
        _ if user.is_empty() => return Ok(None),
        (Some((name, password)), "") => (name, password.to_owned()),
        (None, "") => (user, ask_secret("Password: ")?),
        (_, password) => (user, password.to_owned()),
    };
    Ok(Some(Login { name: name.to_owned(), password }))
}

/// Asks for something that nobody should see. Where stdin is no terminal, its next line is the answer.
pub(super) fn ask_secret(prompt: &str) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    super::print::print(prompt)?;
    let stdin = std::io::stdin();
    let shown = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
    if let Some(shown) = &shown {
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        // A terminal that cannot hide it must not stop who knows the password.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &hidden);
    }
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    if let Some(shown) = &shown {
        let _ = tcsetattr(&stdin, OptionalActions::Now, shown);
    }
    // The newline that was typed was not shown.
    let _ = writeln!(std::io::stdout());
    read.map_err(|error| Failure::bad_arguments(format!("failed to ask password: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_dns_is_not_trusted_only_what_is_encrypted_is_used() {
        let found = || ["https://a:1", "http://b:2", "https://c:3"].map(str::to_owned).to_vec();
        assert_eq!(allowed(found(), true), (found(), Vec::new()));
        let (used, ignored) = allowed(found(), false);
        assert_eq!((used.join(" "), ignored.join(" ")), ("https://a:1 https://c:3".into(), "http://b:2".into()));
    }

    #[test]
    fn a_login_is_written_as_for_etcdctl() {
        let read = |user, password| login(user, password).expect("nothing has to be asked for");
        let made = |name: &str, password: &str| Some(Login { name: name.into(), password: password.into() });
        assert_eq!((read("", ""), read("", "p")), (None, None));
        assert_eq!((read("u:p:q", ""), read("u:v", "p")), (made("u", "p:q"), made("u:v", "p")));
    }
}
