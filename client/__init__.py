"""Client library and command line for a Triton server that serves the `bros` models.

Client, AsyncClient     generate, stream and inspect over gRPC or HTTP; `client.errors` is what they raise
FakeTransport           a server without a server, for tests
"""

from client.client import AsyncClient, AsyncStream, Client, Stream
from client.generation import Chunk, Generation, Message, Metrics, Options, Prompt
from client.retry import Retry
from client.transports.fake import AsyncFakeTransport, FakeServer, FakeTransport

__all__ = [
    "AsyncClient",
    "AsyncFakeTransport",
    "AsyncStream",
    "Chunk",
    "Client",
    "FakeServer",
    "FakeTransport",
    "Generation",
    "Message",
    "Metrics",
    "Options",
    "Prompt",
    "Retry",
    "Stream",
]
