//! Command lines, environments, config files and addresses: whatever is typed is a configuration or an error, and what is accepted means
//! the same when it is written down and read again.

use everwatch::config::{Config, Request, Url, Values, flags};

use crate::engine::{Feed, gist, outcome};

const VALUES: [&str; 30] = [
    "",
    "0",
    "1",
    "-1",
    "10",
    "100",
    "1000",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "1e9",
    "true",
    "false",
    "t",
    "maybe",
    "new",
    "existing",
    "m0",
    "default",
    "5m",
    "-1ns",
    "9999999h",
    "1h2m3.5s",
    ".5s",
    "json",
    "http://127.0.0.1:2379",
    "m0=http://127.0.0.1:2380",
    "http://localhost:0,unix:///x",
    "stderr,/dev/null",
    "periodic",
];
const PIECES: [&str; 22] = [
    "http",
    "https",
    "unix",
    "unixs",
    "://",
    ":",
    "/",
    "[",
    "]",
    "::1",
    "localhost",
    "127.0.0.1",
    "2379",
    "0",
    ",",
    "=",
    " ",
    "a",
    "\u{e9}",
    "@",
    "-",
    "%41",
];

/// Every flag there is.
fn names() -> Vec<&'static str> {
    flags::FLAGS.iter().flat_map(|(_, flags)| flags.iter().map(|flag| flag.name)).collect()
}

fn text(feed: &mut Feed<'_>) -> String {
    match feed.below(4) {
        0 => String::from_utf8_lossy(&feed.bytes(12)).into_owned(),
        1 => (0..feed.below(9)).map(|_| feed.pick(&PIECES)).collect(),
        _ => feed.pick(&VALUES).to_owned(),
    }
}

fn name(feed: &mut Feed<'_>) -> String {
    match feed.below(12) {
        11 => text(feed),
        _ => feed.pick(&names()).to_owned(),
    }
}

fn read(arguments: &[String], environment: &[(String, String)]) -> Result<String, String> {
    let request = Values::read(arguments.to_vec(), environment.to_vec()).map_err(|error| error.to_string())?;
    let Request::Run(values) = request else { return Ok(format!("{request:?}")) };
    accepted(&values)
}

fn accepted(values: &Values) -> Result<String, String> {
    values.without_effect();
    let config = Config::new(values).map_err(|error| error.to_string())?;
    let founders = config.founders().map_err(|error| error.to_string());
    let urls = [&config.listen_peer_urls, &config.listen_client_urls, &config.initial_advertise_peer_urls];
    for url in urls.into_iter().flatten() {
        assert_eq!(Url::parse(&url.to_string()).as_ref(), Ok(url), "an address that was accepted");
        let _ = (url.host(), url.names_own_address());
    }
    assert!(config.election_timeout > config.heartbeat_interval && !config.heartbeat_interval.is_zero());
    assert!(config.backend_batch_max > 0 && config.snapshot_count > 0);
    Ok(format!("{config:?} {founders:?}"))
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    if feed.one_in(4) {
        let text: String = (0..1 + feed.below(12)).map(|_| feed.pick(&PIECES)).collect();
        let text = format!("{text}{}", String::from_utf8_lossy(&feed.bytes(6)));
        if let Ok(url) = Url::parse(&text) {
            assert_eq!(Url::parse(&url.to_string()), Ok(url), "{text:?}");
        }
        if let Ok(urls) = Url::parse_list(&text) {
            let list = urls.iter().map(Url::to_string).collect::<Vec<_>>().join(",");
            assert_eq!(Url::parse_list(&list), Ok(urls), "{text:?}");
        }
        return outcome((
            0,
            Url::parse(&text).is_ok(),
            Url::parse_list(&text).map(|urls| urls.len()).map_err(|error| gist(&error).len()),
        ));
    }
    if feed.one_in(4) {
        let mut file = String::new();
        while !feed.is_empty() {
            let (name, value) = (name(&mut feed), text(&mut feed));
            file += &match feed.below(8) {
                0 => value,
                1 => format!("{name}: [{value}]\n"),
                2 => format!("{name}: '{value}'\n"),
                3 => format!("peer-transport-security:\n  {name}: {value}\n"),
                _ => format!("{name}: {value}\n"),
            };
        }
        let read = || Values::from_file(&file).map_err(|error| error.to_string()).and_then(|values| accepted(&values));
        let found = read();
        assert_eq!(read(), found, "the same file again");
        return outcome((2, found.map(|_| ()).map_err(|error| gist(&error).chars().take(24).collect::<String>())));
    }
    let (mut arguments, mut environment) = (Vec::new(), Vec::new());
    while !feed.is_empty() {
        let (name, value) = (name(&mut feed), text(&mut feed));
        match feed.below(8) {
            0 => environment.push((format!("ETCD_{}", name.to_uppercase().replace('-', "_")), value)),
            1 => arguments.push(value),
            2 => arguments.extend([format!("-{name}"), value]),
            3 => arguments.push(format!("--{name}")),
            4 => arguments.extend([format!("--{name}"), value]),
            _ => arguments.push(format!("--{name}={value}")),
        }
    }
    let found = read(&arguments, &environment);
    assert_eq!(read(&arguments, &environment), found, "the same settings again");
    outcome((1, found.map(|_| ()).map_err(|error| gist(&error).chars().take(24).collect::<String>())))
}
