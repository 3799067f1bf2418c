# SPDX-License-Identifier: Apache-2.0
"""The scripts of launch/experiments, as processes."""

import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parents[1] / 'launch' / 'experiments'


def run(script, *words, timeout=600):
  """Runs a script with flags; what it came to, its output as text."""
  return subprocess.run(
    [sys.executable, FOLDER / script, *map(str, words)],
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )
