# SPDX-License-Identifier: Apache-2.0
"""The devices of a job as a mesh with named axes."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import gin
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from specstream_jax.config import checks

MESH_AXES = ('data', 'fsdp', 'tensor')


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many ways each mesh axis splits; all 1 is a single device.

  Attributes:
    data: replicas of the weights, each with rows of its own; -1 takes what
      the other axes leave, and so may one of the next two.
    fsdp: rows and weights are both split, weights gathered layer by layer.
    tensor: heads, MLP and vocabulary are split.
    dcn_data: `data` over slices that share no fast links (data centre
      network); the axis is dcn_data * data long.
    dcn_fsdp: the same of `fsdp`.
  """

  data: int = 1
  fsdp: int = 1
  tensor: int = 1
  dcn_data: int = 1
  dcn_fsdp: int = 1

  def __post_init__(self):
    checks.config_types(self)
    ici = (self.data, self.fsdp, self.tensor)
    if ici.count(-1) > 1:
      raise ValueError(f'{self} leaves several sizes open; one may be -1')
    for field in dataclasses.fields(self):
      name, size = f'MeshConfig.{field.name}', getattr(self, field.name)
      if field.name.startswith('dcn_') or size != -1:
        checks.at_least(name, size, 1)

  def sizes(self, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) within a slice; -1 resolved.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [self.data, self.fsdp, self.tensor]
    num_slices = self.dcn_data * self.dcn_fsdp
    if -1 in sizes:
      known = -math.prod(sizes) * num_slices
      sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) * num_slices != num_devices or min(sizes) < 1:
      raise ValueError(
        f'{self} does not divide the {num_devices} devices; the sizes must '
        f'multiply to {num_devices} (one of data, fsdp, tensor may be -1)'
      )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """A (data, fsdp, tensor) mesh; neighbours on the mesh are near each other.

  Args:
    cfg: sizes; all 1 takes the first device of a single process.
    devices: default all of the job; of this host where there is no job.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  if devices is None:
    # Processes that joined no job work by themselves, each on its devices.
    is_job = jax.distributed.is_initialized()
    devices = jax.devices() if is_job else jax.local_devices()
  devices = list(devices)
  # Not `cfg == MeshConfig()`: gin's bindings are in both.
  is_one = set(dataclasses.astuple(cfg)) == {1}
  if is_one and len({d.process_index for d in devices}) == 1:
    devices = devices[:1]
  ici = cfg.sizes(len(devices))
  dcn = (cfg.dcn_data, cfg.dcn_fsdp, 1)
  if math.prod(dcn) > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      ici,
      dcn,
      devices,
      process_is_granule=not hasattr(devices[0], 'slice_index'),
    )
  else:
    grid = mesh_utils.create_device_mesh(
      ici, devices, allow_split_physical_axes=True
    )
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
