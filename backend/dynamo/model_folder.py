"""The files from which Dynamo's frontend renders, tokenises and detokenises: a Hugging Face directory.

A model that is such a directory is taken as it is. For a GGUF file and for the simulated executor one is written. It
holds the tokenizer, its chat templates and the few keys of config.json that the frontend reads. It holds no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from backend.config import EngineConfig, ExecutorKind
from backend.core.errors import ConfigError
from backend.text.chat_template import DEFAULT
from backend.text.model_files import resolve_model
from backend.text.sim_tokenizer import FIRST_BYTE_ID
from backend.text.token_bytes import byte_level_alphabet
from backend.text.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    import tokenizers

_SIM_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
_SIM_SPECIAL = ("<pad>", "<s>", "</s>")  # ids 0, 1, 2


def model_folder(config: EngineConfig, folder: Path) -> Path:
    """Return the directory for the frontend, written to `folder` where the model has none. Raises ConfigError."""
    match config.executor:
        case ExecutorKind.SIM:
            vocabulary = _sim_tokenizer(config.sim.vocab_size)
            return _write(folder, vocabulary, {DEFAULT: _SIM_TEMPLATE}, config.sim.eos_token_id)
        case ExecutorKind.TORCH:
            files = resolve_model(config.torch.model_path)
            if not files.is_gguf:
                return files.path
            parts = read_tokenizer(files)
            sources = {name: template.source for name, template in parts.chat_templates.items()}
            return _write(folder, parts.backend, sources, min(parts.eos_token_ids))
    raise ConfigError(f"executor {config.executor.value!r}: workers of Dynamo run the sim and torch executors")


def _write(folder: Path, backend: tokenizers.Tokenizer, templates: Mapping[str, str], eos_id: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    eos = backend.id_to_token(eos_id)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": eos_id}
    config |= {"vocab_size": backend.get_vocab_size(), "bos_token_id": eos_id}
    named = [{"name": name, "template": template} for name, template in templates.items()]
    template = named if templates.keys() - {DEFAULT} else templates.get(DEFAULT)
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": template}
    for name, content in (("config", config), ("tokenizer_config", tokenizer_config)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return folder


def _sim_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """What `SimTokenizer` does, as a file that other programs read: a token a byte, then made-up words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    characters = {byte: character for character, byte in byte_level_alphabet().items()}
    vocabulary = {name: token_id for token_id, name in enumerate(_SIM_SPECIAL)}
    vocabulary |= {characters[byte]: byte + FIRST_BYTE_ID for byte in range(256)}
    space = characters[ord(" ")]
    vocabulary |= {f"{space}t{token_id}": token_id for token_id in range(FIRST_BYTE_ID + 256, vocab_size)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_SIM_SPECIAL))
    return backend
