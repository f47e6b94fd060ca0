#!/usr/bin/env bash
# The one gate: format, lints, documentation, tests. What passes here may be committed.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --locked --all-targets -- --deny warnings
RUSTDOCFLAGS='--deny warnings' cargo doc --locked --no-deps --document-private-items
cargo test --locked
