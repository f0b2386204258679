"""Deadlines, cancellation and errors with our client.  python examples/client_errors.py [URL]"""

import sys

from client import Client, Retry
from client.errors import CancelledError, InvalidRequestError, OverloadedError, UnavailableError

url = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"

try:
    with Client(url, retry=Retry(max_attempts=5, max_wait_s=2.0)) as client:
        with client.stream("Count to a million: 1, 2, 3,", max_tokens=1_000, ignore_eos=True) as stream:
            first = next(stream)
        print(f"cancelled by leaving the with block, after {len(first.token_ids)} token")

        try:
            client.generate("Count to a million: 1, 2, 3,", max_tokens=1_000, ignore_eos=True, timeout_s=0.2)
        except CancelledError as error:
            print("cancelled by its timeout:", error)

        try:
            client.generate("", max_tokens=10)
        except InvalidRequestError as error:
            print("refused; no retry helps:", error)
        except OverloadedError as error:  # after five attempts
            print(f"refused for now, come back in {error.retry_after_s} s")
except UnavailableError as error:
    raise SystemExit(str(error)) from None
