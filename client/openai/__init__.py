"""OpenAI's bodies, read and written: a request as the engine takes it, its answer in OpenAI's words. No I/O.

bytes ──objects──► JSON ──chat, completions──► Asked ──job──► Job ──► the engine ──► Generation ──job──► JSON

`bros-openai` and `bros batch` both read and answer with it: a line of a batch is read like any other request.
"""
