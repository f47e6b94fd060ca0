//! The server's command line from outside: what it prints and how it exits. Compared with etcd 3.5.1.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use everwatch::config::{Request, Values, flags};

fn everwatch(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwatch"));
    command.env_clear().args(arguments).envs(environment.iter().copied());
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn version_begins_with_the_four_lines_scripts_know() {
    let output = everwatch(&["--version"], &[]);
    assert!(output.status.success());
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    let starts = ["etcd Version: 3.6.", "Git SHA: ", "Go Version: ", "Go OS/Arch: ", "everwatch Version: "];
    assert_eq!(lines.len(), starts.len());
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn a_malformed_command_line_exits_with_2_and_impossible_settings_with_1() {
    let output = everwatch(&["--nope"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("flag provided but not defined: -nope\nUsage:\n"));
    for (arguments, environment, why) in [
        (&["--election-timeout=200"][..], &[][..], "should be at least as 5 times"),
        (&["stray"], &[], "'stray' is not a valid flag"),
        (&["--name=y"], &[("ETCD_NAME", "x")], "shadowed by corresponding command-line flag"),
        (&[], &[("ETCD_HEARTBEAT_INTERVAL", "abc")], "for ETCD_HEARTBEAT_INTERVAL: parse error"),
    ] {
        let output = everwatch(arguments, environment);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let stderr = text(&output.stderr);
        let line = stderr.lines().next().expect("a log line");
        assert!(line.starts_with("{\"level\":\"error\",\"ts\":\"") && line.contains(why), "{line}");
    }
}

#[test]
fn help_names_every_flag_of_the_table() {
    let output = everwatch(&["--help"], &[]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for flag in everwatch::config::flags::FLAGS.iter().flat_map(|(_, flags)| flags.iter()) {
        assert!(help.contains(&format!("\n  --{} ", flag.name)), "{}", flag.name);
    }
}

#[test]
fn every_flag_of_etcd_is_known_and_so_is_its_variable() {
    let list = include_str!("fixtures/etcd_flags.txt");
    for name in list.lines().filter(|line| !line.starts_with('#')) {
        let table = || flags::FLAGS.iter().flat_map(|(_, flags)| flags.iter());
        let flag = table().find(|flag| flag.name == name);
        let former = name.strip_prefix("experimental-");
        let flag = flag.or_else(|| table().find(|flag| flag.experimental && Some(flag.name) == former));
        let flag = flag.unwrap_or_else(|| panic!("{name} is unknown"));
        let default = flag.default.to_owned();
        let typed = Values::read([format!("--{name}={default}")], []);
        assert!(matches!(&typed, Ok(Request::Run(values)) if values.is_given(flag.name)), "{name}: {typed:?}");
        let variable = format!("ETCD_{}", name.to_ascii_uppercase().replace('-', "_"));
        let Ok(Request::Run(values)) = Values::read([], [(variable.clone(), default)]) else { panic!("{variable}") };
        assert_eq!(values.unknown_variables, [""; 0], "{variable}");
    }
}

/// A file for a member that listens on ports of its own.
fn config_file(dir: &tempfile::TempDir, more: &str) -> String {
    let path = dir.path().join("etcd.conf.yml");
    let data = dir.path().join("member");
    let text = format!(
        "name: filed\ndata-dir: {}\nlisten-client-urls: http://127.0.0.1:0\nlisten-peer-urls: http://127.0.0.1:0\n\
         initial-cluster: filed=http://localhost:2380\nauto-compaction-retention: '1'\nlog-outputs: [stderr]\n{more}",
        data.display()
    );
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[test]
fn a_config_file_starts_a_member_and_nothing_else_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = config_file(&dir, "unheard-of: 1\n");
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwatch"));
    command.env_clear().env("ETCD_CONFIG_FILE", &file).env("ETCD_NAME", "variable").args(["--name", "typed"]);
    let mut member = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut log = BufReader::new(member.stderr.take().expect("it is a pipe")).lines().map_while(Result::ok);
    let said: Vec<String> = log.by_ref().take_while(|line| !line.contains("\"starting\"")).collect();
    let said = said.join("\n");
    let loaded = "loaded server configuration, other configuration command line flags and environment variables will be ignored \
                  if provided";
    assert!(said.contains(loaded) && said.contains(&file), "{said}");
    assert!(said.contains("\"unheard-of\""), "{said}");
    let told = Command::new("kill").args(["-TERM", &member.id().to_string()]).status();
    assert!(told.is_ok_and(|status| status.success()));
    let rest: Vec<String> = log.collect();
    assert_eq!(member.wait().expect("it was started").code(), Some(0), "{rest:#?}");
}

#[test]
fn a_config_file_that_cannot_be_used_is_refused_in_etcd_s_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let nowhere = dir.path().join("nope.yml").display().to_string();
    let refused = |file: &str, why: &str| {
        let output = everwatch(&["--config-file", file], &[]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("failed to verify flags") && stderr.contains(why), "{stderr}");
    };
    refused(&nowhere, &format!("open {nowhere}: no such file or directory"));
    let wrong = "json: cannot unmarshal string into Go struct field configYAML.heartbeat-interval of type uint";
    refused(&config_file(&dir, "heartbeat-interval: abc\n"), wrong);
    refused(&config_file(&dir, "election-timeout: 200\n"), "should be at least as 5 times");
    refused(&config_file(&dir, "a: b: c\n"), "error converting YAML to JSON: yaml: ");
}

#[test]
fn the_health_check_fails_where_nobody_answers() {
    let output = everwatch(&["--health-check", "http://127.0.0.1:1"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not healthy"));
}

#[test]
fn a_member_told_to_stop_while_it_starts_stops_with_0() {
    let data = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwatch"));
    command.env_clear().arg("--data-dir").arg(data.path().join("member")).stderr(Stdio::piped());
    command.args(["--listen-client-urls=http://127.0.0.1:0", "--listen-peer-urls=http://127.0.0.1:0"]);
    command.arg("--advertise-client-urls=http://127.0.0.1:2379");
    let mut member = command.spawn().expect("the binary runs");
    let mut log = BufReader::new(member.stderr.take().expect("it is a pipe")).lines().map_while(Result::ok);
    assert!(log.any(|line| line.contains("\"starting\"")));
    let told = Command::new("kill").args(["-TERM", &member.id().to_string()]).status();
    assert!(told.is_ok_and(|status| status.success()));
    let rest: Vec<String> = log.collect();
    assert_eq!(member.wait().expect("it was started").code(), Some(0), "{rest:#?}");
    assert!(rest.last().is_some_and(|line| line.contains("\"stopped\"")), "{rest:#?}");
}
