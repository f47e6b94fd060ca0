//! What is asked for on the command line.

use std::str::FromStr;

/// How it is used.
pub const USAGE: &str = "\
everwatch-bench COMMAND --endpoints=http://127.0.0.1:2379[,..] [--pids=1,2,3] [--conns=100] [--val-size=256]
  put | range      [--clients=1000] [--total=100000] [--key-space=100000]
  watch-fanout     [--streams=100] [--watchers=10000] [--clients=1] [--total=1000] [--rate=0]
  watch-idle       [--streams=100] [--watchers=100000] and what put takes
  watch-stalled    [--streams=100] [--clients=100] [--total=100000]
  watch-behind     [--history=500000] [--clients=10] [--rate=1000]
  watch-failover   [--streams=10000] --kill=PID
  watch-progress   [--total=1000]
--watchers counts all of them; --rate is puts per second of all clients together, 0: as fast as they are answered";

/// The options, with their defaults.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) command: String,
    pub(super) endpoints: Vec<String>,
    pub(super) clients: usize,
    pub(super) connections: usize,
    pub(super) total: u64,
    pub(super) value_bytes: usize,
    pub(super) keys: u64,
    pub(super) streams: usize,
    pub(super) watchers: usize,
    /// Puts per second; 0: no limit.
    pub(super) rate: u64,
    pub(super) history: u64,
    pub(super) pids: Vec<u32>,
    /// A process to be killed.
    pub(super) kill: Option<u32>,
}

impl Options {
    /// Reads the arguments, without the program's name.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let command = arguments.next().ok_or("a command is needed")?;
        let (clients, total, watchers, rate) = match command.as_str() {
            "watch-fanout" => (1, 1000, 10_000, 0),
            "watch-stalled" => (100, 100_000, 0, 0),
            "watch-behind" => (10, 0, 0, 1000),
            "watch-progress" => (1, 1000, 0, 0),
            _ => (1000, 100_000, 100_000, 0),
        };
        let streams = if command == "watch-failover" { 10_000 } else { 100 };
        let mut options = Options {
            command,
            endpoints: Vec::new(),
            clients,
            connections: 100,
            total,
            value_bytes: 256,
            keys: 100_000,
            streams,
            watchers,
            rate,
            history: 500_000,
            pids: Vec::new(),
            kill: None,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "--endpoints" => options.endpoints = value.split(',').map(str::to_owned).collect(),
                "--clients" => options.clients = number(name, value)?,
                "--conns" => options.connections = number(name, value)?,
                "--total" => options.total = number(name, value)?,
                "--val-size" => options.value_bytes = number(name, value)?,
                "--key-space" => options.keys = number(name, value)?,
                "--streams" => options.streams = number(name, value)?,
                "--watchers" => options.watchers = number(name, value)?,
                "--rate" => options.rate = number(name, value)?,
                "--history" => options.history = number(name, value)?,
                "--pids" => options.pids = value.split(',').map(|pid| number(name, pid)).collect::<Result<_, _>>()?,
                "--kill" => options.kill = Some(number(name, value)?),
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        let counts = [options.clients, options.connections, options.streams, options.endpoints.len()];
        if counts.contains(&0) || options.keys == 0 {
            return Err("an endpoint, a client, a connection, a stream and a key are needed".to_owned());
        }
        Ok(options)
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} wants a number, not {value:?}"))
}
