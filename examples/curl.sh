#!/bin/sh
# Real-time and best-effort with curl.  sh examples/curl.sh [http://host:port]
set -eu
url=${1:-http://127.0.0.1:8000}
json='Content-Type: application/json'

echo '# real-time, streamed'
curl -sSN "$url/v2/models/bros/generate_stream" -H "$json" \
  -d '{"text_input": "The sea is", "max_tokens": 16, "stream": true, "priority_class": "rt", "ttft_slo_ms": 500}'

echo '# best-effort, one answer, with what the server measured'
curl -sS "$url/v2/models/bros/generate" -H "$json" \
  -d '{"text_input": "The sea is", "max_tokens": 16, "priority": 2, "return_metrics": true}'
echo

echo '# best-effort by the name of the model, through the chat template'
curl -sS "$url/v2/models/bros_be/generate" -H "$json" \
  -d '{"messages": "[{\"role\": \"user\", \"content\": \"Name three colours.\"}]", "max_tokens": 16}'
echo
