# Three images of the same code.
#
#   docker build --target vllm   -t bros-vllm .        vLLM on NVIDIA GPUs, under NVIDIA's own Triton
#   docker build --target trtllm -t bros-trtllm .      TensorRT-LLM on NVIDIA GPUs, under NVIDIA's own Triton
#   docker build --target cpu    -t bros-cpu .         the built-in engine on CPU, under the Triton of nvidia-pytriton
#
#   docker run --rm --gpus all --shm-size=2g --ulimit memlock=-1 -p 127.0.0.1:8000-8002:8000-8002 \
#     -v /path/to/checkpoint:/model:ro bros-trtllm
#   docker run --rm --shm-size=256m -p 127.0.0.1:8000-8002:8000-8002 -p 127.0.0.1:8080:8080 bros-cpu
#
# In a container the server listens on all addresses: publish the ports on loopback, or put a gateway in front.

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
ARG VLLM_IMAGE=nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${TRITON_IMAGE} AS trtllm

# The code comes first on the path, so that no package of the image can take its import names.
ENV PYTHONPATH=/opt/bros PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/opt/bros/.numba
WORKDIR /opt/bros

# The image's own numpy, torch and tensorrt_llm stay as they are: what is added comes without dependencies.
COPY requirements/lock.txt requirements/trtllm-image.txt requirements/
RUN pip install --no-cache-dir --no-deps --constraint requirements/lock.txt --requirement requirements/trtllm-image.txt

COPY kv kv
COPY backend backend
COPY model_repository model_repository
COPY requirements/check_image.py requirements/
RUN command -v tritonserver && python3 requirements/check_image.py tensorrt_llm && chown -R 1000 .numba

USER 1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=35s --start-period=15m \
    CMD ["python3", "-m", "backend.launcher.probe", "http://127.0.0.1:8000"]
CMD ["python3", "-m", "backend.launcher.serve", "--host", "0.0.0.0", "--openai-port", "off", "--executor", "trtllm", \
     "--set", "trtllm.model=/model", "--start-timeout-s", "1800"]


FROM ${VLLM_IMAGE} AS vllm

ENV PYTHONPATH=/opt/bros PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/opt/bros/.numba
WORKDIR /opt/bros

# The image's vLLM may be another than the adapter knows: the known one gets an environment of its own.
COPY requirements/lock.txt requirements/trtllm-image.txt requirements/
RUN pip install --no-cache-dir --no-deps --constraint requirements/lock.txt --requirement requirements/trtllm-image.txt \
    && python3 -m venv /opt/vllm \
    && /opt/vllm/bin/pip install --no-cache-dir vllm==0.32.0 gguf==0.19.0 \
    && /opt/vllm/bin/pip install --no-cache-dir --no-deps --constraint requirements/lock.txt numba llvmlite

COPY kv kv
COPY backend backend
COPY model_repository model_repository
COPY requirements/check_image.py requirements/
RUN command -v tritonserver && /opt/vllm/bin/python requirements/check_image.py vllm && chown -R 1000 .numba

USER 1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=35s --start-period=15m \
    CMD ["python3", "-m", "backend.launcher.probe", "http://127.0.0.1:8000"]
CMD ["python3", "-m", "backend.launcher.serve", "--host", "0.0.0.0", "--openai-port", "off", "--executor", "vllm", \
     "--set", "vllm.python=/opt/vllm/bin/python", "--set", "vllm.model=/model", "--start-timeout-s", "1800"]


FROM ${PYTHON_IMAGE} AS cpu

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONPATH=/opt/bros PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/opt/bros/.numba
WORKDIR /opt/bros

# What changes rarely comes first. torch's CPU build leads, or pip would take the CUDA one; `.` holds no code yet: it
# brings the dependencies and the commands `bros` and `bros-serve`.
COPY pyproject.toml README.md LICENSE ./
COPY requirements/lock.txt requirements/no-deps.txt requirements/
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} torch==2.13.0 \
    && pip install --no-cache-dir --constraint requirements/lock.txt '.[torch,serve,client]' \
    && pip install --no-cache-dir --no-deps --requirement requirements/no-deps.txt

COPY kv kv
COPY backend backend
COPY client client
COPY front front
COPY model_repository model_repository
COPY requirements/check_image.py requirements/
RUN python3 requirements/check_image.py pytriton torch \
    && useradd --uid 1000 --create-home bros \
    && chown -R 1000 .numba

USER 1000
EXPOSE 8000 8001 8002 8080
HEALTHCHECK --interval=10s --timeout=35s --start-period=2m \
    CMD ["python3", "-m", "backend.launcher.probe", "http://127.0.0.1:8000"]
CMD ["python3", "-m", "backend.launcher.serve", "--host", "0.0.0.0"]
