# SPDX-License-Identifier: Apache-2.0
"""Whose part of the work is whose, before JAX is asked."""

import os

import pytest

from specstream_jax import processes

LAUNCHERS = ('JAX_', 'SLURM_', 'OMPI_', 'TPU_', 'MEGASCALE_')


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
  for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
    monkeypatch.delenv(name)


def launched(monkeypatch, environment):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
  'environment, is_cluster',
  [
    ({'SLURM_JOB_ID': '7'}, False),  # salloc, and no srun
    ({'SLURM_NTASKS': '4'}, False),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'host-0,host-1'}, True),
  ],
)
def test_only_several_tasks_are_a_cluster(monkeypatch, environment, is_cluster):
  launched(monkeypatch, environment)
  assert processes._in_cluster() == is_cluster


@pytest.mark.parametrize(
  'environment, place',
  [
    ({}, (0, 1)),
    ({'SLURM_NTASKS': '4'}, (0, 1)),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '2'}, (2, 4)),
    ({'JAX_NUM_PROCESSES': '3', 'JAX_PROCESS_ID': '1'}, (1, 3)),
    ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'}, (1, 2)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c', 'TPU_WORKER_ID': '2'}, (2, 3)),
    ({'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}, (0, 1)),
  ],
)
def test_place_in_a_job(monkeypatch, environment, place):
  launched(monkeypatch, environment)
  assert processes.shard() == place
  assert processes.shard('1/5') == (1, 5)  # what is asked for wins
  assert processes.shard(num_processes=7, process_id=6) == (6, 7)


@pytest.mark.parametrize(
  'text, message',
  [
    ('4/4', 'shard is 4 of 4; accepted: 0 to 3'),
    ('1', "shard is '1'; write 1/4"),
    ('-1/4', "shard is '-1/4'"),
    ('0/0', 'shard is 0 of 0; accepted: 1 to 65536 shards'),
    ('0/100000000000', 'shard is 0 of 100000000000; accepted: 1 to 65536'),
    ('0/' + '9' * 5000, "shard is '0/9"),
  ],
)
def test_impossible_shards(text, message):
  with pytest.raises(ValueError, match=message):
    processes.shard(text)


def test_jobs_larger_than_any_are_refused():
  with pytest.raises(ValueError, match=r'wrong: number of processes$'):
    processes.initialize('host:9', 10**11, 0)
  for seconds in (0, 2**63):
    with pytest.raises(ValueError, match=f'join_timeout is {seconds}; it must'):
      processes.initialize('host:9', 2, 0, seconds)
