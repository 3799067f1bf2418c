# SPDX-License-Identifier: Apache-2.0
"""Several processes as one job: start, agree, exchange small things.

With one process everything here returns at once.
"""

from collections.abc import Sequence
import json
import os
import re
import secrets
import socket
import time
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from specstream_jax.config import bounds, checks


def _in_cluster() -> bool:
  """Whether this is one of several tasks that JAX can find by itself."""
  env, hosts = os.environ.get, os.environ.get('TPU_WORKER_HOSTNAMES', '')
  return (
    ('SLURM_PROCID' in os.environ and int(env('SLURM_NTASKS', 1)) > 1)
    or int(env('OMPI_COMM_WORLD_SIZE', 1)) > 1
    or (',' in hosts and ' ' not in hosts)  # libtpu may put a sentence there
    or 'MEGASCALE_COORDINATOR_ADDRESS' in os.environ
  )


def initialize(
  coordinator: str = '',
  num_processes: int = 0,
  process_id: int = -1,
  timeout_seconds: int = 300,
) -> None:
  """Joins the job that flags or environment describe; nothing if there is none.

  Flags win. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come
  next (a GKE JobSet sets them); then TPU metadata, SLURM and Open MPI, which
  JAX reads itself.

  Args:
    coordinator: host:port of process 0; 'auto' insists on a cluster that JAX
      finds by itself, which on a TPU VM takes its metadata server.
    num_processes: of the job.
    process_id: of this process.
    timeout_seconds: how long to wait for the others.

  Raises:
    ValueError: a part of the description is missing.
    ConnectionError: the coordinator, or another process, did not answer.
  """
  env = os.environ.get
  checks.count('join_timeout', timeout_seconds, 1, bounds.COUNT)
  coordinator = coordinator or env('JAX_COORDINATOR_ADDRESS', '')
  num_processes = num_processes or int(env('JAX_NUM_PROCESSES', 0))
  if process_id < 0:
    process_id = int(env('JAX_PROCESS_ID', -1))
  named = {}
  is_auto = coordinator == 'auto'
  if (coordinator and not is_auto) or num_processes > 1:
    _check_description(coordinator, num_processes, process_id)
    if num_processes == 1:
      return
    named = {
      'coordinator_address': coordinator,
      'num_processes': num_processes,
      'process_id': process_id,
    }
    if process_id:
      _check_reachable(coordinator, timeout_seconds)
  elif not (is_auto or _in_cluster()):
    return
  try:
    jax.distributed.initialize(initialization_timeout=timeout_seconds, **named)
  except (RuntimeError, ValueError) as error:
    first = str(error).splitlines()[0]
    raise ConnectionError(
      f'process {process_id} of {num_processes} could not join the job at '
      f'{"the address of the cluster" if not named else coordinator} within '
      f'{timeout_seconds} s ({first}); are all processes running, and is the '
      'port open?'
    ) from error
  logging.info('process %d of %d', jax.process_index(), jax.process_count())


def _check_description(coordinator, num_processes, process_id):
  missing = [
    name
    for name, is_missing in (
      ('coordinator address', ':' not in coordinator),
      ('number of processes', not 1 <= num_processes <= bounds.SHARDS),
      ('process id', not 0 <= process_id < max(num_processes, 1)),
    )
    if is_missing
  ]
  if missing:
    raise ValueError(
      f'a job of several processes needs coordinator=HOST:PORT, its number of '
      f'processes and an id below it; got coordinator={coordinator!r}, '
      f'num_processes={num_processes}, process_id={process_id}; wrong: '
      + ', '.join(missing)
    )


def _check_reachable(address: str, timeout_seconds: int) -> None:
  """Waits for the coordinator's port; JAX itself would abort the process."""
  host, port = address.rsplit(':', 1)
  end = time.monotonic() + timeout_seconds
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 2).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise ConnectionError(
          f'no coordinator at {address} within {timeout_seconds} s ({error}); '
          'is process 0 running there, and is the port open?'
        ) from error
      time.sleep(0.2)


# Variables with the number of a process and of all of them, as launchers set.
_PLACES = (
  ('JAX_PROCESS_ID', 'JAX_NUM_PROCESSES'),
  ('SLURM_PROCID', 'SLURM_NTASKS'),
  ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
)


def shard(
  text: str = 'auto', *, num_processes: int = 0, process_id: int = -1
) -> tuple[int, int]:
  """This process's part of work in which none waits for another.

  Args:
    text: '1/4' is the second of four; 'auto' takes the place that the other
      arguments or the environment give (JAX_PROCESS_ID, SLURM, Open MPI, TPU
      VMs), and '0/1' where there is none.
    num_processes: of the job.
    process_id: of this process.

  Returns:
    (number, of how many).

  Raises:
    ValueError: not of this form, or a number beyond the count.
  """
  if text != 'auto':
    number, slash, count = text.partition('/')
    is_number = re.compile(r'\d{1,18}', re.ASCII).fullmatch
    if not (slash and is_number(number) and is_number(count)):
      raise ValueError(
        f'shard is {text!r}; write 1/4 for the second of four, or auto'
      )
    place = int(number), int(count)
  elif num_processes:
    place = process_id, num_processes
  else:
    place = _place()
  checks.shard(*place)
  return place


def _place() -> tuple[int, int]:
  env = os.environ
  for number, count in _PLACES:
    if number in env and count in env:
      return int(env[number]), int(env[count])
  hosts = env.get('TPU_WORKER_HOSTNAMES', '')
  if ',' in hosts and ' ' not in hosts and 'TPU_WORKER_ID' in env:
    return int(env['TPU_WORKER_ID']), len(hosts.split(','))
  return 0, 1


def is_main() -> bool:
  """Whether this process writes logs and files."""
  return jax.process_index() == 0


def check_alone(what: str) -> None:
  """Raises ValueError in a job of several processes, where `what` cannot be."""
  if jax.process_count() > 1:
    raise ValueError(
      f'{what} runs in one process, and this job has {jax.process_count()}; '
      'start it without a coordinator, on the devices of one host'
    )


def barrier(name: str) -> None:
  """Returns once every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(value: Any) -> Sequence[Any]:
  """What each process passed, by process; any JSON value."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([data.size], np.int32))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  rows = np.asarray(rows).reshape(jax.process_count(), -1)
  return [
    json.loads(row[: int(size)].tobytes())
    for row, size in zip(rows, np.asarray(sizes).reshape(-1))
  ]


def check_shared(folder: str | os.PathLike) -> None:
  """Raises ValueError unless all processes see the same folder."""
  if jax.process_count() == 1:
    return
  name = f'.shared-{gather(secrets.token_hex(8))[0]}'
  path = epath.Path(folder) / name
  problem = ''
  if is_main():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text('all processes must see this file')
    except OSError as error:
      problem = f'cannot write {os.fspath(folder)}: {error.strerror or error}'
  problem = gather(problem)[0]
  if problem:
    raise ValueError(f'{problem}; free some space, or give another folder')
  seen = gather(path.exists())
  if is_main():
    path.unlink()
  blind = [i for i, sees in enumerate(seen) if not sees]
  if blind:
    raise ValueError(
      f'{os.fspath(folder)!r} is not shared: processes {blind} do not see what '
      'process 0 writes there; give a folder on a file system that all hosts '
      'mount, or a bucket'
    )


def should_stop(step: int) -> bool:
  """Whether a preemption notice (SIGTERM) reached any process by this step.

  Every process must ask at every step; all get the same answer.
  """
  if jax.process_count() == 1:
    return False
  return bool(multihost_utils.reached_preemption_sync_point(step))
