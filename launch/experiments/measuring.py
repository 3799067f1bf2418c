# SPDX-License-Identifier: Apache-2.0
"""What the measuring scripts share: the model's flag, times, the machine."""

from collections.abc import Callable, Mapping
import json
import os
import statistics
import time
from typing import Any

from absl import flags
import jax

from specstream_jax.bench import results
from specstream_jax.outputs import writing

_WARM_UP = 2  # calls: one compiles, one touches cold memory


def define_model() -> None:
  """Declares --model."""
  flags.DEFINE_string(
    'model', 'smollm2-135m-instruct', 'Known name, folder, hub id or GGUF file.'
  )


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
  """Median time of `repeats` calls, after two that do not count."""
  seconds = []
  for _ in range(_WARM_UP + repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[_WARM_UP:])


def machine() -> dict[str, Any]:
  """What ran: the device, the CPUs that it may use, versions."""
  return {
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
    'cpus': len(os.sched_getaffinity(0)),
    'versions': results.versions(),
  }


def write(folder: str, name: str, document: Mapping[str, Any], **texts: str):
  """Writes NAME.json, and a text as NAME.KIND for each of `texts`."""
  files = {'json': json.dumps(document, indent=2) + '\n', **texts}
  paths = [os.path.join(folder, f'{name}.{kind}') for kind in files]
  for path, text in zip(paths, files.values(), strict=True):
    writing.write_text(path, text)
  print(f'written: {", ".join(paths)}')
