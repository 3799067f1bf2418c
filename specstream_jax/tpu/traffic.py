# SPDX-License-Identifier: Apache-2.0
"""HBM traffic and collectives of a scheduled TPU program, counted in its HLO.

`cost_analysis()['bytes accessed']` counts every read of on-chip memory, too,
several times what leaves HBM. Here an operand counts when it lies in HBM (its
layout names no memory space 1, VMEM), and an asynchronous copy into VMEM counts
by what it brings. A fused operand of which only a slice is read counts as the
slice; one that is updated in place, as the update.
"""

from collections.abc import Mapping
from typing import NamedTuple

from specstream_jax.tpu import hlo

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Move nothing by themselves.
_FREE = frozenset({
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'conditional', 'call', 'after-all', 'opt-barrier', 'partition-id', 'iota',
  'replica-id', 'custom-call-done',
})  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')


class Traffic(NamedTuple):
  """Bytes of one chip.

  Attributes:
    read: from HBM.
    written: to HBM.
    collectives: sent by kind, as the size of each result.
    lines: (bytes, HLO line), largest first.
  """

  read: int
  written: int
  collectives: dict[str, int]
  lines: list[tuple[int, str]]


def count(text: str, times: Mapping[str, int]) -> Traffic:
  """What the instructions of some computations move.

  Args:
    text: scheduled HLO, `compiled.as_text()`.
    times: how often computations run, such as `hlo.executions`.
  """
  computations = hlo.parse(text)
  read, written, lines = 0, 0, []
  collectives: dict[str, int] = {}
  for name, rounds in times.items():
    for instruction in computations[name].values():
      kind = instruction.opcode.removesuffix('-start')
      if kind in COLLECTIVES:
        sent = rounds * instruction.num_bytes
        collectives[kind] = collectives.get(kind, 0) + sent
      one = _instruction(instruction, computations, computations[name])
      read, written = read + rounds * one[0], written + rounds * one[1]
      if sum(one):
        lines.append((rounds * sum(one), instruction.line))
  lines.sort(key=lambda line: -line[0])
  return Traffic(read, written, collectives, lines)


def _instruction(
  instruction: hlo.Instruction,
  computations: Mapping[str, Mapping[str, hlo.Instruction]],
  own: Mapping[str, hlo.Instruction],
) -> tuple[int, int]:
  """(read, written) of one instruction."""
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(('-done', '-update')):
    return 0, 0
  operands = [own[name] for name in instruction.operands if name in own]
  if opcode in ('copy-start', 'slice-start', 'async-start'):
    moved = _moved(instruction, operands)
    source = operands[0].is_on_chip if operands else True
    return (0 if source else moved), (moved if source else 0)
  if opcode == 'fusion':
    return _fusion(instruction, operands, computations)
  if opcode == 'dynamic-update-slice':
    update = operands[1].num_bytes if len(operands) > 1 else 0
    return 0, 0 if instruction.is_on_chip else update
  read = sum(x.num_bytes for x in operands if not x.is_on_chip)
  if opcode in _SLICES:
    read = 0 if operands[0].is_on_chip else instruction.num_bytes
  return read, 0 if instruction.is_on_chip else instruction.num_bytes


def _moved(instruction, operands):
  """Bytes of an asynchronous copy: what arrives, the smaller end."""
  sizes = [hlo.array_bytes(*m) for m in hlo.SHAPE.findall(instruction.type)[:2]]
  sizes += [x.num_bytes for x in operands[:1]]
  return min((size for size in sizes if size > 4), default=0)


def _fusion(instruction, operands, computations):
  """A fusion reads its operands, or slices of them, and writes its results."""
  inside = computations[instruction.called[0]]
  order = {
    int(x.line.split('parameter(')[1].split(')')[0]): x.name
    for x in inside.values()
    if x.opcode == 'parameter'
  }
  read, updated = 0, 0
  for i, operand in enumerate(operands):
    if operand.is_on_chip:
      continue
    users = _users(inside, order.get(i))
    if users and all(x.opcode in _SLICES for x in users):
      read += sum(x.num_bytes for x in users)
    elif users and all(_is_target(x, inside, order[i]) for x in users):
      updated += sum(inside[x.operands[1]].num_bytes for x in users)
    else:
      read += operand.num_bytes
  if updated:
    return read, updated
  return read, sum(
    hlo.array_bytes(*match)
    for match, layout in hlo.arrays(instruction.type)
    if 'S(1)' not in layout
  )


def _users(inside, name):
  """What reads a parameter, through bitcasts and nested fusions of one."""
  found, pending = [], [name]
  while pending:
    current = pending.pop()
    for x in inside.values():
      if current in x.operands:
        if x.opcode == 'bitcast':
          pending.append(x.name)
        else:
          found.append(x)
  return found


def _is_target(user, inside, name):
  """Whether `user` updates the parameter `name` in place."""
  if user.opcode != 'dynamic-update-slice':
    return False
  target = inside[user.operands[0]]
  while target.opcode == 'bitcast':
    target = inside[target.operands[0]]
  return target.name == name
