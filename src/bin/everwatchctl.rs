//! The control tool: see [`everwatch::ctl`].

use std::process::ExitCode;

use everwatch::ctl::{Failure, run, tell};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(std::env::args_os()));
            // What still waits for stdin or a command must not keep the process.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Said { text: error.to_string(), code: 1 }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.code())
        }
    }
}
