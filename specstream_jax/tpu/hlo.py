# SPDX-License-Identifier: Apache-2.0
"""Reads optimised HLO text: what a compiled program moves, and between whom."""

from collections.abc import Iterable
import re
from typing import NamedTuple

MOVES = frozenset({
  'copy', 'copy-start', 'slice', 'dynamic-slice', 'transpose', 'convert',
  'gather', 'concatenate', 'reshape', 'pad', 'reverse',
})  # fmt: skip
IN_PLACE = ('dynamic-update-slice', 'scatter')

_BITS = re.compile(r'(\d+)')
SHAPE = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_LAID_OUT = re.compile(SHAPE.pattern + r'(\{[^}]*\})?')
_HEADER = re.compile(r'^(?:ENTRY\s+)?%?([\w.\-]+)\s.*\{\s*$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT\s+)?%?([\w.\-]+) = (\(.*?\)|\S+)\s+([\w\-]+)\((.*)$'
)
_CALLED = re.compile(
  r'(?:body|condition|calls|to_apply|branch_computations|true_computation|'
  r'false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)'
)
_CONSTANT = re.compile(r' constant\((\d+)\)')
_NAME = re.compile(r'%([\w.\-]+)')


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  is_root: bool
  type: str
  opcode: str
  operands: tuple[str, ...]
  called: tuple[str, ...]
  line: str

  @property
  def num_bytes(self) -> int:
    """Bytes of the largest array in the result."""
    return max((array_bytes(*m) for m in SHAPE.findall(self.type)), default=0)

  @property
  def is_on_chip(self) -> bool:
    """Whether the TPU compiler keeps the result in VMEM, memory space 1."""
    return 'S(1)' in self.type


def arrays(kind: str) -> list[tuple[tuple[str, str], str]]:
  """((dtype, sizes), layout) of every array in the type of a result."""
  found = _LAID_OUT.findall(kind)
  return [((dtype, sizes), layout) for dtype, sizes, layout in found]


def _found(match: re.Match[str] | None) -> str:
  """What is in the first group; raises ValueError for what is no HLO."""
  if match is None:
    raise ValueError('this text is no HLO of the kind that is read here')
  return match.group(1)


def array_bytes(dtype: str, dims: str) -> int:
  """Bytes of an array, given its type as HLO writes it."""
  bits = 8 if dtype == 'pred' else int(_found(_BITS.search(dtype)))
  size = 1
  for dim in filter(None, dims.split(',')):
    size *= int(dim)
  return size * bits // 8


# Computation name -> instruction name -> instruction.
Computations = dict[str, dict[str, Instruction]]


def parse(text: str) -> Computations:
  """Computation name -> instruction name -> instruction."""
  computations, current = {}, None
  for line in text.splitlines():
    if line and not line[0].isspace():
      header = _HEADER.match(line)
      current = computations.setdefault(header.group(1), {}) if header else None
    elif current is not None and (match := _INSTRUCTION.match(line)):
      instruction = _instruction(match, line)
      current[instruction.name] = instruction
  return computations


def _instruction(match, line):
  root, name, kind, opcode, rest = match.groups()
  called = []
  for group in _CALLED.findall(rest):
    called += [n.strip().lstrip('%') for n in group.strip('{}').split(',')]
  operands = _NAME.findall(rest.split(')')[0])
  return Instruction(
    name, bool(root), kind, opcode, tuple(operands), tuple(called), line.strip()
  )


def entry(text: str) -> str:
  """Name of the computation that a program starts with."""
  return _found(re.search(r'^ENTRY\s+%?([\w.\-]+)', text, re.MULTILINE))


def while_bodies(computations: Computations) -> set[str]:
  """Computations that run inside a while loop, fusions excluded."""
  pending, seen = [], set()
  for instructions in computations.values():
    for instruction in instructions.values():
      if instruction.opcode == 'while':
        pending += instruction.called
  while pending:
    name = pending.pop()
    if name in seen or name not in computations:
      continue
    seen.add(name)
    for instruction in computations[name].values():
      if instruction.opcode != 'fusion':
        pending += instruction.called
  return seen


def executions(computations: Computations, start: str) -> dict[str, int]:
  """How often each computation runs from `start` on, fusions excluded.

  A loop counts as often as its condition says, `i < N`; once where N is known
  only while it runs.
  """
  times: dict[str, int] = {}
  pending = [(start, 1)]
  while pending:
    name, count = pending.pop()
    if name not in computations:
      continue
    times[name] = times.get(name, 0) + count
    for instruction in computations[name].values():
      rounds = 1
      if instruction.opcode == 'while':
        rounds = max(_rounds(computations[x]) for x in instruction.called)
      if instruction.opcode in ('while', 'call', 'conditional', 'async-start'):
        pending += [(called, count * rounds) for called in instruction.called]
  return times


def _rounds(condition):
  """N of a computation that ends in `i < N`, else 1."""
  root = next(x for x in condition.values() if x.is_root)
  if root.opcode != 'compare' or 'direction=LT' not in root.line:
    return 1
  bounds = [
    _CONSTANT.search(condition[name].line)
    for name in root.operands
    if name in condition and condition[name].opcode == 'constant'
  ]
  return int(bounds[0].group(1)) if len(bounds) == 1 and bounds[0] else 1


def copies_of_size(text: str, min_bytes: int) -> list[str]:
  """Lines inside while loops that write a moved copy of >= `min_bytes`.

  A fusion counts when its result is that large and it contains such a move;
  one whose root updates a slice of its own argument in place does not, and
  neither does what stays inside a fusion with a small result.

  Args:
    text: optimised HLO, `compiled.as_text()`.
    min_bytes: smallest result that counts.
  """
  return copies_in(text, while_bodies(parse(text)), min_bytes)


def copies_in(text: str, names: Iterable[str], min_bytes: int) -> list[str]:
  """`copies_of_size` for some computations."""
  computations, lines = parse(text), []
  for name in sorted(names):
    for instruction in computations[name].values():
      # What is fetched from HBM into a TPU's VMEM is read, not copied.
      if instruction.num_bytes < min_bytes or instruction.is_on_chip:
        continue
      is_move = instruction.opcode in MOVES
      if instruction.opcode == 'fusion':
        fused = computations[instruction.called[0]]
        is_move = _fusion_moves(fused, min_bytes)
      if is_move:
        lines.append(f'{name}: {instruction.line}')
  return lines


def _fusion_moves(fused, min_bytes):
  """Whether a fusion materialises a moved copy of `min_bytes`."""
  root = next(x for x in fused.values() if x.is_root)
  names = root.operands if root.opcode == 'tuple' else (root.name,)
  return any(_result_moves(fused, fused[name], min_bytes) for name in names)


def _result_moves(fused, result, min_bytes):
  """Follows in-place updates to the argument they update."""
  while result.opcode in ('bitcast', *IN_PLACE):
    result = fused[result.operands[0]]
  if result.num_bytes < min_bytes or result.opcode == 'parameter':
    return False
  pending, seen = [result], set()
  while pending:
    instruction = pending.pop()
    if instruction.name in seen:
      continue
    seen.add(instruction.name)
    if instruction.opcode in MOVES and instruction.num_bytes >= min_bytes:
      return True
    pending += [fused[n] for n in instruction.operands if n in fused]
  return False


def dims(line: str) -> list[int]:
  """Sizes in the shape of an instruction's result."""
  shape = re.search(r'= \(?\w+\[([\d,]*)\]', line)
  return [int(n) for n in _found(shape).split(',') if n]
