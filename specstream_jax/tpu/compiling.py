# SPDX-License-Identifier: Apache-2.0
"""Training step, prompt pass and decode loop through the real TPU compiler.

libtpu compiles for a slice that is not there: memory, FLOPs and the scheduled
program are the real ones, time is not known.
"""

from collections.abc import Iterator, Sequence
import os
from typing import Any

import jax
from jax.experimental import topologies

from specstream_jax import mesh as mesh_lib, partitioning
from specstream_jax.checkpoints import weights as weights_lib
from specstream_jax.tpu import programs as programs_lib

# GiB of HBM a device has. Source: Cloud TPU documentation, system architecture
# pages; a 7x chip is two devices.
HBM_GIB = {'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32, 'tpu7x': 96}
KNOWN = (
  'v4:2x2x2',
  'v5e:2x4',
  'v5e:4x4',
  'v5e:16x16',
  'v5p:2x2x2',
  'v5p:4x4x4',
  'v5p:8x8x8',
  'v6e:4x4',
  'v6e:16x16',
  'tpu7x:2x2x1',
)


def devices(topology: str) -> Sequence[Any]:
  """The devices of a slice such as 'v5e:4x4'; needs libtpu, and no TPU.

  Raises:
    ValueError: libtpu is missing or does not know the topology.
  """
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  except Exception as error:  # libtpu raises its own kinds.
    reason = str(error).splitlines()[0]
    raise ValueError(
      f'topology {topology!r} cannot be compiled for ({reason}); slices that '
      f'are known to work: {", ".join(KNOWN)}. It takes libtpu: pip install '
      "'specstream_jax[tpu_aot]' into an environment of its own"
    ) from error
  return found.devices


def capacity(topology: str) -> int:
  """Bytes of HBM of a device of the slice."""
  kind = topology.partition(':')[0]
  if kind not in HBM_GIB:
    raise ValueError(f'no HBM size for {kind!r}; known: {sorted(HBM_GIB)}')
  return HBM_GIB[kind] * 2**30


def compile_all(
  job: programs_lib.Job,
  topology: str,
  programs: Sequence[str],
  mesh: mesh_lib.MeshConfig | None = None,
) -> Iterator[programs_lib.Compiled]:
  """Compiles one program after the other.

  Args:
    job: what to compile.
    topology: see `devices`.
    programs: names of `programs_lib.PROGRAMS`.
    mesh: None takes the `MeshConfig` of gin.

  Raises:
    ValueError: unknown topology, or a mesh that does not fit it or the model.
  """
  _check_programs(programs)
  hbm, found = capacity(topology), devices(topology)
  made = mesh_lib.make_mesh(mesh or mesh_lib.MeshConfig(), found)
  part = partitioning.Partitioner(made)
  part.check_fits(job.model.num_heads, job.model.num_kv_heads)
  if 'train' in programs:
    part.check_rows(job.recipe.train.batch_size)
  for name in programs:
    yield programs_lib.PROGRAMS[name](job, part, hbm)


def _check_programs(programs):
  unknown = [name for name in programs if name not in programs_lib.PROGRAMS]
  if unknown or not programs:
    raise ValueError(
      f'programs {unknown} are unknown; accepted: {", ".join(programs_lib.PROGRAMS)}'
    )


def search_mesh(
  job: programs_lib.Job, topology: str, programs: Sequence[str]
) -> Iterator[tuple[mesh_lib.MeshConfig, list[programs_lib.Compiled]]]:
  """Tries meshes, from few ways of splitting a layer to many, until one fits.

  Meshes whose weights alone exceed the HBM of a chip, and those that do not
  divide heads or batch, are passed over.

  Raises:
    ValueError: unknown topology or program.
  """
  _check_programs(programs)
  count = len(devices(topology))
  for mesh in _meshes(count):
    ways = mesh.fsdp * mesh.tensor
    weights = 2 * weights_lib.count(job.model) / ways
    rows = mesh.data * mesh.fsdp
    if weights > capacity(topology) or job.recipe.train.batch_size % rows:
      continue
    try:
      found = list(compile_all(job, topology, programs, mesh))
    except ValueError:  # heads or weights do not divide
      continue
    yield mesh, found
    if all(one.fits for one in found):
      return


def _meshes(count):
  """Every mesh of powers of two over `count` devices, least split first."""
  powers = [2**i for i in range(count.bit_length()) if count % 2**i == 0]
  sizes = [
    (count // (fsdp * tensor), fsdp, tensor)
    for tensor in powers
    for fsdp in powers
    if count % (fsdp * tensor) == 0
  ]
  sizes.sort(key=lambda size: (size[2], size[1]))
  return [mesh_lib.MeshConfig(*size) for size in sizes]


def table(found: Sequence[programs_lib.Compiled]) -> str:
  """Markdown: one row per program, then what needs words."""
  gib, mega = 2**30, 1e6
  lines = [
    '| program | arguments, GiB | temporaries | peak | of HBM '
    '| TFLOP | GFLOP / token | HBM traffic, MB | ideal | ratio '
    '| collectives, MB | compile, s |',
    '|---|---|---|---|---|---|---|---|---|---|---|---|',
  ]
  for one in found:
    moved = ', '.join(
      f'{kind} {size / mega:.0f}' for kind, size in one.collectives.items()
    )
    per_token = one.flops / one.tokens / 1e9 if one.tokens else 0.0
    ratio = f'{one.traffic / one.ideal:.2f}' if one.ideal else '-'
    share = f'{one.peak / one.capacity:.0%}' if one.peak else 'too large'
    lines.append(
      f'| {one.name} | {one.arguments / gib:.2f} '
      f'| {one.temporaries / gib:.2f} | {one.peak / gib:.2f} | {share} '
      f'| {one.flops / 1e12:.3f} | {per_token:.1f} | {one.traffic / mega:.0f} '
      f'| {one.ideal / mega:.0f} | {ratio} | {moved or "none"} '
      f'| {one.seconds:.0f} |'
    )
  for one in found:
    if one.error:
      lines += ['', f'{one.name} does not compile: {one.error}']
    for where, copies in (
      ('inside', one.copies),
      ('before', one.copies_before),
    ):
      if copies:
        lines += [
          '',
          f'{one.name}: {len(copies)} copies of weights or cache {where} the '
          f'loop, the first: `{copies[0][:160]}`',
        ]
  return '\n'.join(lines)
