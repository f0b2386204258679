"""Batch files: OpenAI's format in and out, best-effort class, resumable, in constant memory.

in.jsonl ──► lines.parse_line ──► run.run_lines ──► results.Results ──► out.jsonl, out.errors.jsonl
                                       ▲
                                       └── sender.Sender ──► who answers: the engine
"""
