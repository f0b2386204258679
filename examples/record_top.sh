#!/bin/sh
# Serve with a small KV cache, run bursts of real-time over a best-effort backlog, and record what `bros top` shows.
#   sh examples/record_top.sh bros-top.svg                    # SmolLM2-135M
# What follows the file goes to bros-serve. docs/img/bros-top.svg is of the simulated executor, with steps of 30 ms:
#   sh examples/record_top.sh docs/img/bros-top.svg --executor sim --set sim.num_blocks=128 \
#     --set sim.num_host_slots=2330 --set sim.coefficients='[0.03,0.0002,2e-8,2e-9,5e-6]'
set -eu
svg=${1:-bros-top.svg}
[ $# -eq 0 ] || shift
case $svg in /*) ;; *) svg=$PWD/$svg ;; esac
python=${PYTHON:-python}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD"

at=$(mktemp)
"$python" -m backend.launcher.serve --http-port 0 --grpc-port 0 --metrics-port 0 --openai-port off --kv-tokens 1280 --set torch.host_kv_gib=0.05 --json "$@" > "$at" &
server=$!
trap 'kill $server; wait $server || true; rm -f "$at"' EXIT
trap 'exit 130' INT TERM # dash runs no trap of EXIT on a signal
until [ -s "$at" ]; do kill -0 $server; sleep 0.2; done
url() { "$python" -c "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "$at" "$1"; }

"$python" examples/burst.py "$(url grpc_url)" 32 &
burst=$!
sleep 5
"$python" -m client.cli top --url "$(url grpc_url)" --metrics-url "$(url metrics_url)" \
  --interval-s 0.7 --for-s 9 --svg "$svg"
wait $burst
