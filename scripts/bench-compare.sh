#!/usr/bin/env bash
# Puts per second and server CPU per million puts of etcd and Everwatch side by side: three members each, 256-byte
# values, 1,000 clients over 100 connections, the same generator. Arguments: see tests/compat/bench_compare.py.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --bins
exec python3 tests/compat/bench_compare.py "$@"
