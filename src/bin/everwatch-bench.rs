//! The load generator: see [`everwatch::bench`].

use std::process::ExitCode;

use everwatch::bench::{Options, USAGE, run};

fn main() -> ExitCode {
    let result = Options::parse(std::env::args().skip(1)).and_then(|options| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(run(options))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("everwatch-bench: {message}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}
