# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates in a process of its own, within limits.

A template that never ends or fills the memory costs that process, and ends in
a ValueError here. It starts with the first chat (a tenth of a second), answers
in well under a millisecond, and goes when this process does.
"""

import atexit
import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

_CHILD = pathlib.Path(__file__).with_name('render_child.py')
_SECONDS_TO_START = 120.0
SECONDS = 10.0


class Renderer:
  """The process, started when it is asked and there is none.

  Attributes:
    seconds: what a template may take.
  """

  def __init__(self, seconds: float = SECONDS):
    self.seconds = seconds
    self._lock = threading.Lock()
    self._process: subprocess.Popen | None = None
    self._owner = 0

  def render(self, source: str, names: dict[str, Any]) -> str:
    """The text of a template.

    Args:
      source: Jinja.
      names: what it is rendered with, JSON types.

    Raises:
      ValueError: the template refuses, fails, or takes too much; says what of
        these.
    """
    # ASCII, so that halves of surrogate pairs travel as well.
    request = json.dumps({'source': source, 'names': names}).encode() + b'\n'
    with self._lock:
      if not self._is_running():
        self._start()
      found = self._ask(request, self.seconds)
    if 'error' in found:
      raise ValueError(' '.join(found['error'].split())[:500])
    return found['text']

  def close(self) -> None:
    """Ends the process, if this one started it."""
    process, self._process = self._process, None
    if process is not None and self._owner == os.getpid():
      process.kill()
      process.wait()
      for pipe in (process.stdin, process.stdout):
        if pipe is not None:
          pipe.close()

  def _is_running(self) -> bool:
    # A fork shares the pipes, and must not read the other's answers.
    process = self._process if self._owner == os.getpid() else None
    return process is not None and process.poll() is None

  def _start(self) -> None:
    self.close()
    path = os.pathsep.join(filter(None, sys.path))  # the same jinja2
    self._process = subprocess.Popen(
      [sys.executable, '-P', str(_CHILD)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=os.environ | {'PYTHONPATH': path},
    )
    self._owner = os.getpid()
    found = self._ask(b'', _SECONDS_TO_START)
    if 'error' in found:
      raise ValueError(
        f'{sys.executable} {_CHILD} does not start, so no template can be '
        'rendered; run that line to see why'
      )

  def _ask(self, request: bytes, seconds: float) -> dict[str, Any]:
    """What the process answers; without an answer it is ended."""
    process, is_late = self._process, threading.Event()
    assert process and process.stdin and process.stdout  # it was started

    def end():
      is_late.set()
      process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
      if request:
        process.stdin.write(request)
        process.stdin.flush()
      line = process.stdout.readline()
    except OSError:
      line = b''
    finally:
      timer.cancel()
    if is_late.is_set() or not line.endswith(b'\n'):
      self.close()
    if line.endswith(b'\n'):
      return json.loads(line)
    if is_late.is_set():
      return {'error': f'does not end within {seconds:g} seconds'}
    return {'error': 'ended the process that rendered it, for want of memory'}


RENDERER = Renderer()
atexit.register(RENDERER.close)
