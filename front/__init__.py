"""`bros-openai`: OpenAI's API in front of a Triton server that serves the `bros` models.

It may stand on another machine than the server, so it imports `client` and never `backend`.
"""
