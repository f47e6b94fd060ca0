#!/usr/bin/env bash
# Makes the Python environment of the comparison and cluster tests in the directory given, once.
set -euo pipefail
venv=$1
[ -f "$venv/.complete" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check 'grpcio>=1.60' 'grpcio-tools>=1.60' 'etcd3==0.12.0' 'etcd3gw==2.7.0'
touch "$venv/.complete"
