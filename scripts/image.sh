#!/usr/bin/env bash
# Builds the static binary and the image everwatch:local around it. EVERWATCH_IMAGE gives it another name; docker-compose.yml
# heeds that, too.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/static.sh
docker build --quiet --tag "${EVERWATCH_IMAGE:-everwatch:local}" .
