#!/usr/bin/env bash
# Builds the static binary and the image everwatch:local around it.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/static.sh
docker build --quiet --tag everwatch:local .
