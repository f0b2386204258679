"""What Triton loads; the model is `backend.triton_model`, found beside this repository where it is not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))

from backend.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
