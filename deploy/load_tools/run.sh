#!/bin/sh
# Run NVIDIA's load tools, unmodified, against a running server, and keep what they print.
#
#   make serve                                              # in another terminal
#   deploy/load_tools/run.sh 127.0.0.1:8000 127.0.0.1:8001 bench/results/load_tools [TOOL]
#
# Uses whichever of perf_analyzer (install_perf_analyzer.sh), genai-perf 0.0.16 and aiperf 0.13.0 are on PATH; the last
# two are best installed into environments of their own. Real-time is measured alone, mixed with best-effort, and by every
# tool over a best-effort backlog, which perf_analyzer makes. Takes about four minutes.
set -eu

http=${1:?usage: $0 HTTP_HOST:PORT GRPC_HOST:PORT OUTPUT_DIRECTORY [TOOL]}
grpc=${2:?}
mkdir -p "${3:?}"
out=$(cd "$3" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
python=$(cd "$here/../.." && pwd)/.venv/bin/python
work=$(mktemp -d)
backlog=
trap 'test -z "$backlog" || kill "$backlog"; rm -rf "$work"' EXIT
cd "$work"
export COLUMNS=140
PYTHONPATH="$here/../.." "$python" "$here/save_tokenizer.py" tokenizer 2>/dev/null
provenance=$(PYTHONPATH="$here/../.." "$python" -c 'from bench.common.provenance import describe, provenance; print(describe(provenance()))')

tool=${4:-}
wanted() { [ "${tool:-$1}" = "$1" ] && command -v "$1" > /dev/null; }

# keep NAME COMMAND...: the command, where it ran, and what it printed, in NAME.txt
keep() {
    name=$1
    shift
    echo "$*" | sed "s#$here/##g; s#$work/##g" > "$out/$name.txt"
    echo "$provenance" >> "$out/$name.txt"
    if "$@" 2>&1 | sed 's/\x1b\[[0-9;]*m//g; s/[[:space:]]*$//' | sed "s#$work/##g; s#$here/##g" >> "$out/$name.txt"; then :; fi
    echo "$name: $(wc -l < "$out/$name.txt") lines"
}

measure() {
    name=$1 model=$2 data=$3
    keep "$name" perf_analyzer -m "$model" -u "$grpc" -i grpc --async --streaming --input-data "$here/$data" \
        --request-rate-range 2 --request-distribution poisson --request-count 40 --profile-export-file "$work/$name.json"
    "$python" "$here/by_class.py" "$work/$name.json" >> "$out/$name.txt"
}

if wanted perf_analyzer; then
    measure perf_analyzer_mixed bros mixed.json
    measure perf_analyzer_bros_rt bros_rt by_model.json
    measure perf_analyzer_bros_be bros_be by_model.json
fi
if command -v perf_analyzer > /dev/null; then
    perf_analyzer -m bros_be -u "$grpc" -i grpc --async --streaming --input-data "$here/by_model.json" \
        --concurrency-range 8 --request-count 100000 > "$work/backlog.txt" 2>&1 &
    backlog=$!
fi
if wanted perf_analyzer; then
    measure perf_analyzer_bros_rt_over_backlog bros_rt by_model.json
fi
if wanted genai-perf; then
    for backend in vllm tensorrtllm; do
        HF_HUB_OFFLINE=1 keep "genai_perf_$backend" genai-perf profile -m bros --endpoint-type kserve \
            --backend "$backend" --streaming -u "$grpc" --tokenizer "$work/tokenizer" --isl 50 --osl 16 \
            --num-dataset-entries 8 --request-count 12 --concurrency 2 --extra-inputs priority_class:rt --artifact-dir "$work/$backend"
    done
fi
if wanted aiperf; then
    keep aiperf_generate_stream aiperf profile -m bros --endpoint-type template --url "http://$http" \
        --custom-endpoint /v2/models/bros/generate_stream --streaming --tokenizer "$work/tokenizer" \
        --extra-inputs "payload_template:$here/generate_stream.j2" --extra-inputs response_field:text_output \
        --isl 50 --osl 16 --request-count 12 --concurrency 2 --ui none --artifact-dir "$work/aiperf"
fi
