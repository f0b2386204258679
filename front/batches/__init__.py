"""OpenAI's files and batches on this machine's disk: nothing lost and nothing done twice, whenever the process dies.

The two paths of an upload and of a batch:

    POST /v1/files ──► uploads ──► folder/files/<id>, store          store: SQLite; its rows decide
    POST /v1/batches ─► store ──► runner ──► check, then client.batch.run_lines ──► Engine.answer, best-effort
                                    │
                                    └──► folder/files/<output id>, line by line; the store names it when it is whole
"""
