#!/usr/bin/env bash
# Makes the Python environment of the comparison and cluster tests in the directory given, once, and again when it lacks something.
set -euo pipefail
venv=$1
packages=('grpcio>=1.60' 'grpcio-tools>=1.60' etcd3==0.12.0 etcd3gw==2.7.0 aetcd==1.0.0)
[ "$(cat "$venv/.complete" 2>/dev/null)" = "${packages[*]}" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
echo "${packages[*]}" > "$venv/.complete"
