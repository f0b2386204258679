"""Stream a real-time answer with our client.  python examples/client_sync.py [grpc://host:port | http://host:port]"""

import sys

from client import Client
from client.errors import ClientError

url = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"

try:
    with Client(url) as client:
        for chunk in client.stream("The sea is", priority_class="rt", ttft_slo_s=0.5, tpot_slo_s=0.1, max_tokens=32):
            print(chunk.text, end="", flush=True)
        print("\n", chunk.finish_reason, chunk.metrics)
except ClientError as error:
    raise SystemExit(str(error)) from None
