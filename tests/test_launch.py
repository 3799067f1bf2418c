# SPDX-License-Identifier: Apache-2.0
"""Launch scripts: what they would do, and what they do with fake clusters."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from specstream_jax.cli import command_flags, main

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
SCRIPTS = sorted(str(path.relative_to(LAUNCH)) for path in LAUNCH.rglob('*.sh'))
TRAIN = ('--', '--data_dir=/data/records', "--gin.TrainConfig.x='a b'")
DRY_RUNS = {
  'tpu_vm.sh': ('run', '--name=n', '--zone=z', '--type=v5litepod-16'),
  'xpk.sh': ('--cluster=c', '--workload=w', '--type=v5e-8', '--image=i'),
  'gke_jobset.sh': (
    '--name=n',
    '--image=i',
    '--accelerator=tpu-v5p-slice',
    '--topology=2x2x4',
    '--slices=2',
    '--bucket=b',
  ),
  'slurm.sh': ('--nodes=4', '--gpus=8', '--partition=p'),
}


def script(name, *arguments, path='', **env):
  return subprocess.run(
    [LAUNCH / name, *arguments],
    capture_output=True,
    text=True,
    timeout=60,
    env=os.environ | env | {'PATH': f'{path}:{os.environ["PATH"]}'},
  )


def dry_run(name):
  done = script(name, *DRY_RUNS[name], '--dry_run', *TRAIN)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_shows_the_usage(name):
  done = script(name, '--help')
  assert done.returncode == 0
  assert f'usage: launch/{name}' in done.stdout
  assert 'set -euo' not in done.stdout


@pytest.mark.parametrize('name', sorted(DRY_RUNS))
def test_unknown_argument(name):
  done = script(name, '--nonsense=1')
  assert done.returncode == 2
  assert f'unknown argument --nonsense=1; see launch/{name}' in done.stderr


@pytest.mark.parametrize('name', SCRIPTS)
def test_shellcheck_is_content(name):
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not here')
  done = subprocess.run(
    ['shellcheck', LAUNCH / name], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stdout


def test_tpu_vm_commands_in_order():
  lines = dry_run('tpu_vm.sh').splitlines()
  verbs = [
    verb
    for line in lines
    for verb in (
      'create n',
      'git archive',
      'scp',
      'venv/bin/pip',
      '--coordinator',
    )
    if verb in line
  ]
  assert verbs == [
    'create n',
    'git archive',
    'scp',
    'venv/bin/pip',
    '--coordinator',
  ]
  assert '--runtime-version=v2-alpha-tpuv5-lite' in lines[0]


def test_tpu_vm_of_an_unknown_type_needs_a_runtime():
  arguments = ('create', '--name=n', '--zone=z', '--type=v99-8', '--dry_run')
  done = script('tpu_vm.sh', *arguments)
  assert done.returncode == 2
  assert 'no image is known for --type=v99-8; give --runtime' in done.stderr


@pytest.mark.slow
def test_tpu_vm_asks_again_after_a_preemption(tmp_path):
  """A fake gcloud: the first slice goes, training ends on the second."""
  fake = tmp_path / 'gcloud'
  fake.write_text(f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls
slices=$(grep -c "queued-resources create" {tmp_path}/calls)
asked=$(grep -c "describe" {tmp_path}/calls)
case "$*" in
  *describe*) [ "$slices $asked" = "1 3" ] && echo SUSPENDED || echo ACTIVE ;;
  *"cat train.status"*) [ "$slices" = 2 ] && echo 0 || true ;;
esac
""")
  fake.chmod(0o755)
  done = script(
    'tpu_vm.sh',
    *('run', '--name=n', '--zone=z', '--type=v6e-8', '--spot', *TRAIN),
    path=tmp_path,
    POLL_SECONDS='0',
  )
  assert done.returncode == 0, done.stderr
  assert 'the slice is gone (' in done.stdout
  assert 'training ended with status 0' in done.stdout
  calls = (tmp_path / 'calls').read_text()
  assert calls.count('queued-resources create') == 2
  assert calls.count('queued-resources delete') == 1
  assert calls.count('--coordinator=auto') == 2


def test_xpk_passes_training_as_one_command():
  text = dry_run('xpk.sh')
  assert text.startswith('xpk workload create --cluster=c --workload=w ')
  assert '--tpu-type=v5e-8' in text
  assert 'specstream\\ train\\ --coordinator=auto' in text


def test_jobset_is_valid():
  manifest = yaml.safe_load(dry_run('gke_jobset.sh'))
  assert manifest['kind'] == 'JobSet'
  (replicated,) = manifest['spec']['replicatedJobs']
  job = replicated['template']['spec']
  assert replicated['replicas'] == 2
  assert (job['parallelism'], job['completions']) == (4, 4)
  (container,) = job['template']['spec']['containers']
  assert container['args'] == ['train', '--coordinator=auto', *TRAIN[1:]]
  validator = pytest.importorskip('kubernetes_validate')
  whole = {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': {'name': 'n'},
    'spec': job,
  }
  validator.validate(whole, '1.30', strict=True)
  with pytest.raises(validator.ValidationError):
    job['template']['spec']['nonsense'] = 1
    validator.validate(whole, '1.30', strict=True)


def test_serving_manifests_are_valid():
  text = (LAUNCH / 'gke_serve.yaml').read_text()
  deployment, service, _, *roles = yaml.safe_load_all(text)
  pod = deployment['spec']['template']
  assert service['spec']['selector'] == pod['metadata']['labels']
  (container,) = pod['spec']['containers']
  command, *flags = container['args']
  known = command_flags.of(command) | command_flags.defined_by(
    main.define_common_flags
  )
  given = dict(flag.removeprefix('--').split('=', 1) for flag in flags)
  assert set(given) <= set(known)
  for name, value in given.items():
    known[name].parse(value)
  (port,) = container['ports']
  assert given['port'] == str(port['containerPort'])
  assert service['spec']['ports'][0]['targetPort'] == port['name']
  assert (
    float(given['shutdown_timeout']) + 5
    < (pod['spec']['terminationGracePeriodSeconds'])
  )
  validator = pytest.importorskip('kubernetes_validate')
  for one in (deployment, service, *roles):
    validator.validate(one, '1.30', strict=True)


def test_who_collects_metrics_has_the_key():
  text = (LAUNCH / 'gke_serve.yaml').read_text()
  deployment, service, monitoring, role, binding = yaml.safe_load_all(text)
  pod = deployment['spec']['template']
  (container,) = pod['spec']['containers']
  (key,) = (one['valueFrom']['secretKeyRef'] for one in container['env'])
  spec = monitoring['spec']
  assert spec['selector']['matchLabels'] == pod['metadata']['labels']
  (endpoint,) = spec['endpoints']
  assert endpoint['port'] == container['ports'][0]['name']
  assert endpoint['path'] == '/metrics'
  # As the resource's definition has it, monitoring.googleapis.com/v1.
  given = endpoint['authorization']
  assert given == {'type': 'Bearer', 'credentials': {'secret': key}}
  assert set(endpoint) == {'port', 'path', 'interval', 'authorization'}
  # The key is no one's who only knows of annotations.
  assert 'annotations' not in service['metadata']
  (rule,) = role['rules']
  assert rule['resourceNames'] == [key['name']]
  assert rule['resources'] == ['secrets'] and 'get' in rule['verbs']
  assert binding['roleRef']['name'] == role['metadata']['name']


def test_jobset_with_chips_that_do_not_fill_hosts():
  arguments = [a for a in DRY_RUNS['gke_jobset.sh'] if 'topology' not in a]
  done = script('gke_jobset.sh', *arguments, '--topology=3x1')
  assert done.returncode == 2
  assert '3 chips of --topology=3x1 are not divisible by' in done.stderr


def test_slurm_job_saves_and_queues_itself_again(tmp_path):
  """The batch script with a fake srun, warned of its end by USR1."""
  batch = tmp_path / 'batch.sh'
  batch.write_text(dry_run('slurm.sh'))
  assert '#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=8' in batch.read_text()
  for name, text in {
    # Training: says that it is there, and ends well on SIGTERM.
    'srun': f'trap "exit 0" TERM; touch {tmp_path}/on; echo $$ > {tmp_path}/pid;'
    ' while :; do sleep 0.05; done',
    'scancel': f'kill -TERM $(cat {tmp_path}/pid)',
    'scontrol': f'echo "$*" > {tmp_path}/requeued',
  }.items():
    (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
    (tmp_path / name).chmod(0o755)
  warn = (
    f'bash {batch} & job=$!; while [ ! -e {tmp_path}/pid ]; do sleep 0.05; '
    'done; kill -USR1 $job; wait $job'
  )
  done = subprocess.run(
    ['bash', '-c', warn],
    env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7'},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'requeued').read_text() == 'requeue 7\n'


def test_ablations_that_are_done_become_table_and_plot(tmp_path):
  values = {'tokens_per_call': 2.5, 'loss/main': 0.5, 'top1/main': 0.75}
  for name, more in (('recipe', {}), ('lossless', {'tokens_per_call': 1.25})):
    (tmp_path / name / 'adapter').mkdir(parents=True)
    lines = [
      {'split': 'train', 'tokens_per_second': 3},
      {'split': 'eval', 'top1/stream_1': 0.5, 'top1/pruning': 0.125}
      | values
      | more,
    ]
    text = '\n'.join(map(json.dumps, lines))
    (tmp_path / name / 'metrics.jsonl').write_text(text)
  flags = ['--data_dir=x', f'--output_dir={tmp_path}']
  run = lambda *more: subprocess.run(
    [sys.executable, LAUNCH / 'experiments' / 'ablate.py', *flags, *more],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  done = run('--variants=recipe,lossless')
  assert done.returncode == 0, done.stderr
  rows = (tmp_path / 'ablations.md').read_text().splitlines()[2:]
  assert rows == [
    '| recipe | 2.50 | 0.500 | 75.0 50.0 | 12.5 |',
    '| lossless | 1.25 | 0.500 | 75.0 50.0 | 12.5 |',
  ]
  assert '>lossless<' in (tmp_path / 'ablations.svg').read_text()
  early = run('--variants=o_theta afterwards')
  assert "goes on from 'no pruning adapter'; train that first" in early.stderr
