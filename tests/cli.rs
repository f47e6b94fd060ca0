//! The server's command line from outside: what it prints and how it exits. Compared with etcd 3.5.1.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

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
