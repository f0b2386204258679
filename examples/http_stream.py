"""Stream over HTTP with nothing but the standard library.  python examples/http_stream.py [http://host:port]"""

import json
import sys
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
body = {"text_input": "The sea is", "max_tokens": 32, "stream": True, "priority_class": "rt", "ttft_slo_ms": 500}
request = Request(
    f"{url}/v2/models/bros/generate_stream", json.dumps(body).encode(), {"Content-Type": "application/json"}
)

try:
    with urlopen(request) as response:
        for line in response:
            if line.startswith(b"data:"):
                event = json.loads(line.removeprefix(b"data:"))
                print(event.get("error") or event["text_output"], end="", flush=True)
except HTTPError as error:  # an error before the first token is a 400; its code stands in front of the message
    raise SystemExit(json.load(error)["error"]) from error
except URLError as error:
    raise SystemExit(f"{url}: {error.reason}") from None
print()
