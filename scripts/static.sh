#!/usr/bin/env bash
# Builds the static binary, target/x86_64-unknown-linux-gnu/release/everwatch.
set -euo pipefail
cd "$(dirname "$0")/.."
export EVERWATCH_GIT_SHA
EVERWATCH_GIT_SHA=$(git rev-parse --short=9 HEAD 2>/dev/null || echo unknown)
RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --bin everwatch --target x86_64-unknown-linux-gnu
