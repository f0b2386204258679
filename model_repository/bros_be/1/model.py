"""What Triton loads; the model is `backend.stub.triton_model`, found beside this repository if not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))

from backend.stub.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
