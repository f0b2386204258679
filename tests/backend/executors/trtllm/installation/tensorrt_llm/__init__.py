"""What `import tensorrt_llm` finds where the folder above is on the path: the fakes, in wall time, for real servers."""

import sys

from tests.backend.executors.trtllm.fake_executor import RunningLlm, fake_modules, make_executor

sys.modules.update(fake_modules(RunningLlm(make_executor(num_blocks=512, max_num_tokens=2048), time_scale=1.0)))
