# SPDX-License-Identifier: Apache-2.0
"""Names in the order that people count: stream_2 before stream_10."""

import re


def natural(name: str) -> list[str | int]:
  """A key to sort names by, their numbers as numbers."""
  parts = re.split(r'([0-9]+)', name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)]
