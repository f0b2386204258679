"""Batch files: OpenAI's format in and out, best-effort class, resumable, in constant memory.

in.jsonl ──► format.parse ──► AsyncClient ──► format.answer ──► results.Results ──► out.jsonl, out.errors.jsonl
"""
