//! The server: flags, configuration, log, then `member`. Nothing here is worth testing.

use std::process::ExitCode;

use everwatch::config::{self, Config, LogConfig, Request, Values, flags};
use everwatch::logging::Logging;
use everwatch::{http, version};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Memory is many small things here: in pages of 2 MiB a member that does little takes twice as much, and none was seen to be
    // faster for them. Where the system does not know this, it stays as it is.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let environment = std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value)));
    match Values::read(arguments.clone(), environment) {
        Ok(Request::Version) => print(&version_lines()),
        Ok(Request::Help) => print(&flags::help()),
        Ok(Request::HealthCheck(url)) => match http::ask_health(&url) {
            Ok(answer) => print(&format!("{}\n", answer.trim_end())),
            Err(error) => {
                eprintln!("{url} is not healthy: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(Request::Run(values)) => match Config::new(&values) {
            Ok(config) => run(config, &arguments, None),
            Err(error) => refuse(&error),
        },
        Ok(Request::RunFile(path)) => match from_file(&path) {
            Ok(config) => run(config, &arguments, Some(&path)),
            Err(error) => refuse(&error),
        },
        Err(error) => refuse(&error),
    }
}

fn from_file(path: &str) -> Result<Config, config::Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| config::Error::Invalid(format!("open {path}: {}", go_words(&error))))?;
    Config::new(&Values::from_file(&text)?)
}

/// As Go says it, without the number of the error.
fn go_words(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn lossy(word: std::ffi::OsString) -> String {
    word.to_string_lossy().into_owned()
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    // A reader that went away (`| head`) is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn refuse(error: &config::Error) -> ExitCode {
    if let config::Error::Usage(text) = error {
        eprintln!("{text}\n{}", flags::USAGE);
        return ExitCode::from(2);
    }
    match Logging::start(&LogConfig::before_settings()) {
        Ok(Logging { logger, .. }) => slog::error!(logger, "failed to verify flags"; "error" => %error),
        Err(_) => eprintln!("failed to verify flags: {error}"),
    }
    ExitCode::FAILURE
}

fn run(config: Config, arguments: &[String], file: Option<&str>) -> ExitCode {
    let logging = match Logging::start(&config.log) {
        Ok(logging) => logging,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let logger = &logging.logger;
    slog::info!(logger, "Running: "; "args" => flags::shown(arguments));
    if let Some(path) = file {
        slog::info!(logger, "loaded server configuration, other configuration command line flags and environment variables will be \
            ignored if provided"; "path" => path);
    }
    for key in &config.remarks.unknown_keys {
        slog::warn!(logger, "unrecognized key in the configuration file"; "key" => key);
    }
    for variable in &config.remarks.unknown_variables {
        slog::warn!(logger, "unrecognized environment variable"; "environment-variable" => variable);
    }
    if !config.remarks.without_effect.is_empty() {
        slog::warn!(logger, "flags without effect yet"; "flags" => config.remarks.without_effect.join(","));
    }
    if config.remarks.default_data_dir {
        slog::warn!(logger, "'data-dir' was empty; using default"; "data-dir" => %config.data_dir.display());
    }
    match everwatch::member::run(&config, logger) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            slog::crit!(logger, "member stopped"; "error" => %error);
            ExitCode::FAILURE
        }
    }
}

/// etcd's four lines, then ours.
fn version_lines() -> String {
    format!(
        "etcd Version: {}\nGit SHA: {}\nGo Version: {}\nGo OS/Arch: {}/{}\neverwatch Version: {}\n",
        version::API,
        option_env!("EVERWATCH_GIT_SHA").unwrap_or("unknown"),
        "none (Rust)",
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        version::RELEASE,
    )
}
