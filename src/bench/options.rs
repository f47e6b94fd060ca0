//! What is asked for on the command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::client::{Client, Login, Settings, Tls};

/// How it is used.
pub const USAGE: &str = "\
everwatch-bench COMMAND --endpoints=http://127.0.0.1:2379[,..] [--pids=1,2,3] [--conns=100] [--key-size=16] [--val-size=256] [--json] [--settle-ms=3000]
  put | range | page | count | list | txn | mixed | cas | lease-grant | lease-keepalive
                   [--clients=1000] [--total=100000] [--key-space=100000] [--fill] [--serializable] [--limit=1000] [--rate=0]
  lease-memory     [--clients=1000] [--total=1000000]
  lease-expiry     [--clients=100] [--total=100000] [--rate=1000] [--seconds=30]      that long after the begin leases end
  first-read       [--seconds=600]                  from here until the first endpoint has answered a linearizable range
  sync             --dir=DIR [--clients=3] [--val-size=4096] [--seconds=5]             threads that write and sync a file each
  echo             --listen=127.0.0.1:2379 [--val-size=256]                            a server that does nothing, until it is stopped
  watch-fanout     [--streams=100] [--watchers=10000] [--clients=1] [--total=1000] [--rate=0] [--lockstep]
  watch-idle       [--streams=100] [--watchers=100000] [--watch=own] [--rounds=2] and what put takes
  watch-memory     [--streams=100] [--more-streams=10000] [--watchers=1000000] [--watch=own]
  watch-stalled    [--streams=100] [--clients=100] [--total=1000000] [--val-size=1024] [--rate=4000]
  watch-behind     [--history=500000] [--clients=100] [--rate=1000] [--seconds=10]
  watch-failover   [--streams=10000] [--rate=5] --kill=PID      the process of the first endpoint
  watch-drain      [--streams=1000] [--rate=5] --kill=PID       the same, asked to stop
  watch-progress   [--watchers=1] [--total=1000]
--fill: writes every key of the key space once before; --limit: keys of a page; range reads one key
--key-size: bytes of keys that are numbered, no fewer than 10 of which are digits
--watchers counts all of them; --watch: each its own key, or all one key, or all one prefix
--rate is requests per second of all clients together, 0: as fast as they are answered
--lockstep: the next put waits until the one before has reached every watcher
--cacert=FILE [--cert=FILE --key=FILE]: endpoints of https, and whom they take the client for
--user=NAME:PASSWORD: who asks, where the cluster has users; for put to lease-keepalive
--json: figures as one line of JSON; --pids: the servers, whose processor time and memory are told then
--settle-ms: memory is read when it has not changed for so long";

/// What watchers of a case watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Each its own key.
    Own,
    /// All the same key.
    One,
    /// All the same prefix.
    Prefix,
}

/// The options, with their defaults.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) command: String,
    pub(super) endpoints: Vec<String>,
    pub(super) tls: Tls,
    pub(super) login: Option<Login>,
    pub(super) clients: usize,
    pub(super) connections: usize,
    pub(super) total: u64,
    pub(super) key_bytes: u16,
    pub(super) value_bytes: usize,
    pub(super) keys: u64,
    /// Every key is written before.
    pub(super) fill: bool,
    pub(super) serializable: bool,
    /// Keys of a page.
    pub(super) limit: u32,
    pub(super) streams: usize,
    pub(super) more_streams: usize,
    pub(super) watchers: usize,
    pub(super) watched: Watched,
    /// Requests per second; 0: no limit.
    pub(super) rate: u64,
    pub(super) lockstep: bool,
    pub(super) rounds: usize,
    pub(super) history: u64,
    /// How long what has no other end goes on.
    pub(super) duration: Duration,
    pub(super) pids: Vec<u32>,
    /// A process to be stopped.
    pub(super) kill: Option<u32>,
    /// Where files are written.
    pub(super) dir: Option<PathBuf>,
    /// Where a server listens.
    pub(super) listen: Option<String>,
    pub(super) json: bool,
    /// How long the servers' memory must have stayed the same to be called settled.
    pub(super) settle: Duration,
}

impl Options {
    /// Reads the arguments, without the program's name.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let command = arguments.next().ok_or("a command is needed")?;
        let mut options = Options {
            command,
            endpoints: Vec::new(),
            tls: Tls::default(),
            login: None,
            clients: 1000,
            connections: 100,
            total: 100_000,
            key_bytes: 16,
            value_bytes: 256,
            keys: 100_000,
            fill: false,
            serializable: false,
            limit: 1000,
            streams: 100,
            more_streams: 10_000,
            watchers: 100_000,
            watched: Watched::Own,
            rate: 0,
            lockstep: false,
            rounds: 2,
            history: 500_000,
            duration: Duration::from_secs(10),
            pids: Vec::new(),
            kill: None,
            dir: None,
            listen: None,
            json: false,
            settle: Duration::from_secs(3),
        };
        options.suit_command();
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "--endpoints" => options.endpoints = value.split(',').map(str::to_owned).collect(),
                "--cacert" => options.tls.cacert = Some(value.into()),
                "--cert" => options.tls.cert = Some(value.into()),
                "--key" => options.tls.key = Some(value.into()),
                "--user" => {
                    let (name, password) = value.split_once(':').ok_or("--user is NAME:PASSWORD")?;
                    options.login = Some(Login { name: name.to_owned(), password: password.to_owned() });
                }
                "--clients" => options.clients = number(name, value)?,
                "--conns" => options.connections = number(name, value)?,
                "--total" => options.total = number(name, value)?,
                "--key-size" => options.key_bytes = number(name, value)?,
                "--val-size" => options.value_bytes = number(name, value)?,
                "--key-space" => options.keys = number(name, value)?,
                "--fill" => options.fill = true,
                "--serializable" => options.serializable = true,
                "--limit" => options.limit = number(name, value)?,
                "--streams" => options.streams = number(name, value)?,
                "--more-streams" => options.more_streams = number(name, value)?,
                "--watchers" => options.watchers = number(name, value)?,
                "--watch" => options.watched = watched(value)?,
                "--rate" => options.rate = number(name, value)?,
                "--lockstep" => options.lockstep = true,
                "--rounds" => options.rounds = number(name, value)?,
                "--history" => options.history = number(name, value)?,
                "--seconds" => options.duration = Duration::from_secs(number(name, value)?),
                "--pids" => options.pids = value.split(',').map(|pid| number(name, pid)).collect::<Result<_, _>>()?,
                "--kill" => options.kill = Some(number(name, value)?),
                "--dir" => options.dir = Some(value.into()),
                "--listen" => options.listen = Some(value.to_owned()),
                "--json" => options.json = true,
                "--settle-ms" => options.settle = Duration::from_millis(number(name, value)?),
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        if [options.clients, options.connections, options.rounds].contains(&0) || options.keys == 0 {
            return Err("a client, a connection, a round and a key are needed".to_owned());
        }
        if options.endpoints.is_empty() && !["echo", "sync"].contains(&options.command.as_str()) {
            return Err("an endpoint is needed".to_owned());
        }
        // Without stalled streams: what the same writing takes without them.
        if options.streams == 0 && options.command != "watch-stalled" {
            return Err("a stream is needed".to_owned());
        }
        Ok(options)
    }

    /// A client of these endpoints with so many connections to each.
    pub(super) fn client(&self, endpoints: &[String], connections: usize) -> Result<Client, String> {
        let settings = Settings { tls: self.tls.clone(), ..Settings::default() };
        let client = Client::with_settings(endpoints, connections, &settings).map_err(|error| error.to_string())?;
        Ok(client.with_login(self.login.clone()))
    }

    /// Defaults that differ between commands.
    fn suit_command(&mut self) {
        match self.command.as_str() {
            "lease-memory" => self.total = 1_000_000,
            "lease-expiry" => (self.clients, self.rate, self.duration) = (100, 1000, Duration::from_secs(30)),
            "first-read" => self.duration = Duration::from_secs(600),
            "sync" => (self.clients, self.value_bytes, self.duration) = (3, 4096, Duration::from_secs(5)),
            "watch-fanout" => (self.clients, self.total, self.watchers) = (1, 1000, 10_000),
            "watch-memory" => self.watchers = 1_000_000,
            "watch-stalled" => {
                (self.clients, self.total, self.value_bytes, self.rate) = (100, 1_000_000, 1024, 4000);
            }
            "watch-behind" => (self.clients, self.rate) = (100, 1000),
            "watch-failover" => (self.clients, self.streams, self.rate) = (10, 10_000, 5),
            "watch-drain" => (self.clients, self.streams, self.rate) = (10, 1000, 5),
            "watch-progress" => (self.total, self.watchers) = (1000, 1),
            _ => {}
        }
    }
}

fn watched(value: &str) -> Result<Watched, String> {
    match value {
        "own" => Ok(Watched::Own),
        "one" => Ok(Watched::One),
        "prefix" => Ok(Watched::Prefix),
        _ => Err(format!("--watch is own, one or prefix, not {value:?}")),
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} wants a number, not {value:?}"))
}
