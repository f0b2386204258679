"""Says which settings of a model's generation_config.json the engine leaves out.

The library's `generate` obeys them in every call, also in greedy ones. Here a request says all it wants.
"""

from __future__ import annotations

import logging
import reprlib

from backend.text.model_files import ModelFiles
from backend.text.tokenizer_files import read_generation_config

_log = logging.getLogger(__name__)
# What changes greedy tokens: the value without effect beside None, and the request's own field where it has one.
_CHANGES_GREEDY: dict[str, tuple[object, str | None]] = {
    "repetition_penalty": (1.0, "repetition_penalty"),
    "min_new_tokens": (0, "min_tokens"),
    "min_length": (0, "min_tokens"),
    "stop_strings": (None, "stop"),
    "no_repeat_ngram_size": (0, None),
    "bad_words_ids": (None, None),
    "suppress_tokens": (None, None),
    "begin_suppress_tokens": (None, None),
    "forced_bos_token_id": (None, None),
    "forced_eos_token_id": (None, None),
    "sequence_bias": (None, None),
    "exponential_decay_length_penalty": (None, None),
    "encoder_repetition_penalty": (1.0, None),
    "encoder_no_repeat_ngram_size": (0, None),
    "num_beams": (1, None),
    "guidance_scale": (1.0, None),
    "penalty_alpha": (0.0, None),
    "dola_layers": (None, None),
    "watermarking_config": (None, None),
    "token_healing": (False, None),
    "constraints": (None, None),
    "force_words_ids": (None, None),
}


def warn_of_ignored(files: ModelFiles) -> None:
    """Log one warning that names each setting which changes the greedy tokens of `generate`, and its value."""
    config = read_generation_config(files)
    ignored = [
        f"{key} {reprlib.repr(config[key])}" + (f" (a request's own {field!r} does it)" if field else "")
        for key, (neutral, field) in _CHANGES_GREEDY.items()
        if config.get(key) is not None and config[key] != neutral
    ]
    if ignored:
        _log.warning(
            "model %r: the engine ignores what its files set for generate: %s", str(files.path), "; ".join(ignored)
        )
