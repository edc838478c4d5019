"""A run as a job: interrupted and started again it ends with the weights of one that was left alone; what cannot run is refused before anything starts.

submitit's local executor in the normal tests, and a SLURM of shell scripts that record what they are given; a real SLURM of one machine in the slow ones.
"""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
from headnb.base.core import repo_path
from headnb.cluster import main
from headnb.runs import EXIT, in_queue

TRAIN = '{kimg: 0.16, batch: 4, snapshot_kimg: 0.02, log_every: 1, preview_kimg: 0, density_every: 2, r1_every: 2}'
ENV = {'OMP_NUM_THREADS': '1', 'HEADNB_QUIET': '1'}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as m:
        for k, v in ENV.items(): m.setenv(k, v)
        yield


def write_set(path, seed=0):
    from headnb.base.camera import orbit
    from headnb.gan.data import write_dataset
    rng = np.random.default_rng(seed)
    write_dataset(path, [dict(image=rng.integers(0, 255, (16, 16, 3), np.uint8), c=orbit(float(y))[0]) for y in np.linspace(-1, 1, 8)])


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A data set, a specification, and what a run of it in a process of its own makes."
    here = tmp_path_factory.mktemp('cluster')
    write_set(here/'set.zip')
    (here/'small.yaml').write_text(f'paper: eg3d\nconfig: tiny\ndata: {here}/set.zip\ntrain: {TRAIN}\n')
    done = subprocess.run([sys.executable, '-m', 'headnb.runs', str(here/'small.yaml'), '--folder', str(here/'whole')], cwd=repo_path(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return here


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    "Programs on PATH that record their arguments; -> folder, in which more can be written."
    def write(name, text): (tmp_path/name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.args\n{text}\n'); (tmp_path/name).chmod(0o755)
    write('sinfo', "printf 'gpu|4|1-00:00:00\\n'"); write('sbatch', f'cp "$1" {tmp_path}/script; echo Submitted batch job 17'); write('squeue', 'echo PENDING')
    for name in ('srun', 'scontrol'): write(name, 'exit 0')
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    return tmp_path, write


def status(folder): return json.loads((folder/'status.json').read_text())
def steps(folder): return [json.loads(l)['step'] for l in p.read_text().splitlines()] if (p := folder/'metrics.jsonl').exists() else []
def until(true, seconds=400):
    end = time.time() + seconds
    while not true():
        assert time.time() < end, 'it took too long'
        time.sleep(.1)


def same_weights(a, b):
    from headnb.gan.train import weights_of
    a, b = weights_of(a), weights_of(b)
    return a.keys() == b.keys() and all((a[m][k] == b[m][k]).all() for m in a for k in a[m])


def test_interrupted_job_ends_as_if_left_alone(place, capfd):
    "Everything of a job killed at once, then resumed as another job; that one warned (SIGUSR2) and so started again: the weights of the run that was left alone."
    import psutil
    args = [str(place/'small.yaml'), '--executor', 'local-jobs', '--time', '30', '--out', str(place/'out')]
    def refused(*more):
        assert main([*args, '--resume', *more]) == EXIT['refused']
        err = capfd.readouterr().err
        assert err.count('\n') == 1, err
        return err
    assert main(args) == 0
    folder = place/'out'/'small'
    job = json.loads((folder/'job.json').read_text())
    assert f'job {job["id"]}: {folder}  (log: {folder}/jobs/' in capfd.readouterr().out
    until(lambda: len(steps(folder)) > 6)
    assert f'small is still running (process {job["id"]})' in refused()
    first = psutil.Process(int(job['id']))
    killed = [first, *first.children(recursive=True)]
    for p in killed: p.kill()
    psutil.wait_procs(killed, timeout=30)                                    # on a busy machine they take a while to be gone
    until(lambda: not in_queue(folder))
    assert steps(folder)[-1] < 40 and 'cannot be resumed: train.gamma is 7' in refused('-p', 'train.gamma=7')
    shutil.copy(place/'set.zip', place/'kept.zip'); write_set(place/'set.zip', seed=1)
    assert 'small cannot be resumed: data_hash was' in refused()
    shutil.move(place/'kept.zip', place/'set.zip')
    before = steps(folder)[-1]
    assert main([*args, '--resume']) == 0 and [p.name for p in (place/'out').iterdir()] == ['small']
    job = json.loads((folder/'job.json').read_text())
    until(lambda: steps(folder)[-1] > before + 3)
    task, = psutil.Process(int(job['id'])).children()
    task.send_signal(signal.SIGUSR2)
    until(lambda: status(folder)['status'] == 'resumable')
    assert steps(folder)[-1] < 40
    until(lambda: not in_queue(folder))
    log = (folder/'jobs'/f'{job["id"]}_0_log.err').read_text() + Path(job['log']).read_text()
    assert 'Requeued job' in log and log.count('Starting with JobEnvironment') == 2, log
    assert status(folder)['status'] == 'done' and steps(folder) == list(range(1, 41)) and same_weights(folder, place/'whole')


def test_parts_of_a_data_set(place, capfd):
    "Two jobs make one set; then everything is there, and nothing is made again."
    args = ['tiny/genhead-4d', '--executor', 'local-jobs', '--time', '30', '--parts', '2', '--out', str(place/'parts'), '--wait']
    assert main(args) == 0, capfd.readouterr()
    set_ = place/'parts'/'tiny-genhead-4d-set'
    made = [json.loads((place/'parts'/f'tiny-genhead-4d-{k}of2'/'result.json').read_text()) for k in (0, 1)]
    assert (set_/'index.json').exists() and any(m['finished'] for m in made) and capfd.readouterr().out.count('done: ') == 2
    from headnb.gan.triples import Heads4D
    assert len(Heads4D(set_)) == made[0]['images']


def test_failed_job(place, capfd):
    "The exit code of the run is that of the command that waits; the log says why."
    args = [str(place/'small.yaml'), '--executor', 'local-jobs', '--time', '30', '--out', str(place/'failed'), '--wait', '-p', 'train.max_loss=0.001']
    assert main(args) == EXIT['failed']
    out, folder = capfd.readouterr().out, place/'failed'/'small'
    assert 'failed: ' in out and 'no checkpoint had been written' in out
    assert 'small ended with 1; its status is failed' in next((folder/'jobs').glob('*_log.err')).read_text()


def test_submitted_to_slurm(place, slurm, capfd):
    "What sbatch is given, what the job will run, an array of two runs; sbatch that refuses leaves nothing behind."
    here, write = slurm
    (place/'other.yaml').write_text((place/'small.yaml').read_text())
    args = [str(place/'small.yaml'), '--executor', 'slurm', '--partition', 'gpu', '--out', str(place/'slurm')]
    assert main([*args, '--nodes', '2', '--gpus', '2', '--time', '0:30:00', '--slurm', 'constraint=a100', '--dry-run']) == 0 and not (place/'slurm').exists() and not (here/'sbatch.args').exists()
    shown = capfd.readouterr().out
    assert main([*args, '--nodes', '2', '--gpus', '2', '--time', '0:30:00', '--slurm', 'constraint=a100']) == 0
    script, folder = (here/'script').read_text(), place/'slurm'/'small'
    assert script in shown and all(f'#SBATCH --{x}\n' in script for x in ('partition=gpu', 'nodes=2', 'gpus-per-node=2', 'ntasks-per-node=1', 'time=30', 'signal=USR2@300', 'requeue', 'constraint=a100'))
    assert f'job 17: {folder}' in capfd.readouterr().out and json.loads((folder/'config.json').read_text())['parameters']['processes'] == 2 and status(folder)['status'] == 'queued'
    assert main([*args, '--resume']) == 2 and 'small is still running (job 17 (PENDING))' in capfd.readouterr().err
    assert main([args[0], str(place/'other.yaml'), *args[1:], '-p', 'train.kimg=1']) == 0
    assert '--array=0-1%2' in (here/'script').read_text() and [json.loads((place/'slurm'/n/'job.json').read_text())['id'] for n in ('small.2', 'other')] == ['17_0', '17_1']
    write('sbatch', 'echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1')
    assert main(args) == 2
    err = capfd.readouterr().err
    assert 'sbatch refused: ' in err and 'Invalid account' in err and err.count('\n') == 1 and not (place/'slurm'/'small.3').exists(), err


@pytest.mark.parametrize('more, message', [
    (['--executor', 'slurm', '--partition', 'gpus'], "no partition 'gpus'; did you mean 'gpu'?"),
    (['--executor', 'slurm', '--partition', 'gpu', '--nodes', '9'], 'partition gpu has'),
    (['--executor', 'slurm', '--partition', 'gpu', '--time', '2-00'], 'for 1440 minutes at most, not 2880'),
    (['--executor', 'slurm', '--time', 'long'], "time is 'long'"),
    (['--executor', 'slrum'], "no executor 'slrum'; did you mean 'slurm'?"),
    (['--executor', 'slurm', '--nodes', '3'], 'batch 4 does not divide by 3 processes (3 nodes)'),
    (['--executor', 'slurm', '--parts', '2'], '--parts divides runs of the template synthesize'),
    (['--executor', 'slurm', '-p', 'data=data/none.zip'], 'no data set at'),
    (['--executor', 'local-jobs', '--nodes', '2'], 'local-jobs is this machine'),
    (['--gpus', '2'], 'gpus without --executor'),
])
def test_refused_before_anything_starts(place, slurm, capfd, more, message):
    assert main([str(place/'small.yaml'), '--out', str(place/'refused'), *more]) == EXIT['refused']
    err = capfd.readouterr().err
    assert message in err and err.count('\n') == 1, err
    assert not (place/'refused').exists() and not (slurm[0]/'sbatch.args').exists()


def test_refused_without_slurm(place, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert main([str(place/'small.yaml'), '--executor', 'slurm']) == 2
    assert 'no SLURM here: sbatch, srun' in capfd.readouterr().err
