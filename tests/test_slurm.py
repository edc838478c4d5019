"""A real SLURM on this machine: one controller, two nodes. Runs of `headnb-run --executor slurm` are warned, preempted, cancelled, spread over two nodes.

Slow (`make test-all`), and skipped where SLURM is not installed or the user is not root. To set it up on Debian, as root (the tests start their own
munged, slurmctld and two slurmd in a temporary folder, with a configuration, a key, a socket and ports of their own, and end them; a system SLURM is not needed and not touched):

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge      # slurm-wlm 22.05 is these
    pytest -q tests/test_slurm.py

What happened is written to slurm.log beside the runs, in pytest's temporary folder, and shown by `pytest -s`.
"""
import json, os, secrets, shutil, socket, subprocess, sys, time
import pytest
from headnb.base.core import repo_path
from headnb.cluster import main, partitions
from headnb.runs import in_queue
from test_cluster import one_thread, place, same_weights, status, steps, until  # noqa: F401  fixtures

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scontrol', 'scancel', 'sinfo')
LOST = [p for p in PROGRAMS if not shutil.which(p)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LOST) or os.geteuid() != 0, reason=f'no SLURM to start here: {", ".join(LOST) or "not root"} (the docstring says how)')]

CONF = '''ClusterName=headnb
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={0}
AuthType=auth/munge
AuthInfo=socket={at}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool-%n
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
KillWait=30
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={1} CPUs=2 RealMemory=4000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={2} CPUs=2 RealMemory=4000
PartitionName=all Nodes=one,two Default=YES MaxTime=60 State=UP
PartitionName=short Nodes=one MaxTime=5 State=UP
'''


def free_ports(n):
    taken = [socket.socket() for _ in range(n)]
    for s in taken: s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in taken]
    for s in taken: s.close()
    return ports


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    at, daemons = tmp_path_factory.mktemp('slurm'), []
    (at/'slurm.conf').write_text(CONF.format(*free_ports(3), host=socket.gethostname().partition('.')[0], at=at))
    (at/'key').write_bytes(secrets.token_bytes(128)); (at/'key').chmod(0o600)
    for d in ('state', 'spool-one', 'spool-two'): (at/d).mkdir()
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SLURM_CONF', str(at/'slurm.conf'))
        with open(at/'daemons.log', 'w') as log:
            def start(*command): daemons.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            start('munged', '--foreground', '--force', f'--socket={at}/munge.socket', f'--key-file={at}/key', f'--pid-file={at}/munged.pid', f'--log-file={at}/munged.log', f'--seed-file={at}/seed')
            until((at/'munge.socket').exists, 30)
            start('slurmctld', '-D')
            for name in ('one', 'two'): start('slurmd', '-D', '-N', name)
            try:
                until(lambda: subprocess.run(['sinfo', '-h', '-N', '-p', 'all', '-o', '%T'], capture_output=True, text=True).stdout.split() == ['idle']*2, 60)
                yield at
            finally:
                subprocess.run(['scancel', '--user=root'], capture_output=True)
                for p in reversed(daemons): p.terminate(); p.wait(30)


@pytest.fixture(scope='module')
def said(place):
    "Writes a line of the log beside the runs."
    def write(line):
        print(line)
        with open(place/'slurm.log', 'a') as f: f.write(f'{time.strftime("%Y-%m-%d %H:%M", time.gmtime())}  {line}\n')
    write(subprocess.run(['sinfo', '-V'], capture_output=True, text=True).stdout.strip())
    return write


def submit(place, out, *more):
    assert main([str(place/'small.yaml'), '--executor', 'slurm', '--time', '20', '--out', str(place/out), *more]) == 0
    folder = place/out/'small'
    return folder, json.loads((folder/'job.json').read_text())['id']


def logs(folder): return ''.join(p.read_text() for p in sorted((folder/'jobs').glob('*_log.*')))


def test_refused(slurm, place, capfd):
    assert partitions() == {'all': (2, 60), 'short': (1, 5)}
    for more, message in [(['--partition', 'shrt'], "no partition 'shrt'; did you mean 'short'?"), (['--partition', 'short'], 'for 5 minutes at most, not 20'), (['--mem', '900'], 'sbatch refused: ')]:
        assert main([str(place/'small.yaml'), '--executor', 'slurm', '--time', '20', '--out', str(place/'refused'), *more]) == 2
        err = capfd.readouterr().err
        assert message in err and err.count('\n') == 1, err
    assert not (place/'refused'/'small').exists()


def test_warned_and_preempted(slurm, said, place):
    "The warning before the end of the time (SIGUSR2 to all processes of the job), then SLURM's own requeue: both go on, and the weights are those of the run that was left alone."
    folder, id = submit(place, 'slurm-one')
    until(lambda: len(steps(folder)) > 4)
    subprocess.run(['scancel', '--signal=USR2', id], check=True)
    until(lambda: status(folder)['status'] == 'resumable')
    first = len(steps(folder))
    until(lambda: len(steps(folder)) > first + 4)
    subprocess.run(['scontrol', 'requeue', id], check=True)
    second = len(steps(folder))
    until(lambda: not in_queue(folder), 580)
    assert status(folder)['status'] == 'done' and first < 40 and second < 40, logs(folder)
    assert steps(folder) == list(range(1, 41)) and same_weights(folder, place/'whole')
    assert logs(folder).count('Starting with JobEnvironment') == 3
    said(f'one node: warned at step {first}, requeued by SLURM at step {second}, 40 steps of 40, weights equal to an uninterrupted run')


def test_cancelled(slurm, said, place):
    "scancel: a checkpoint, and not queued again."
    folder, id = submit(place, 'slurm-cancelled', '-p', 'train.kimg=40')
    until(lambda: len(steps(folder)) > 4)
    subprocess.run(['scancel', id], check=True)
    until(lambda: not in_queue(folder))
    said(f'cancelled at step {len(steps(folder))}: {status(folder)["status"]}')
    assert status(folder)['status'] in ('resumable', 'killed') and status(folder)['resumable'], logs(folder)


def test_two_nodes(slurm, said, place):
    "One process on each of two nodes, warned on the way, follows two processes of one machine. Not bit for bit: alone on its node a process computes with more threads, and sums are added in another order."
    both = subprocess.run([sys.executable, '-m', 'headnb.runs', str(place/'small.yaml'), '--folder', str(place/'two'), '-p', 'processes=2'], cwd=repo_path(), capture_output=True, text=True, timeout=500)
    assert both.returncode == 0, both.stderr[-2000:]
    folder, id = submit(place, 'slurm-two', '--nodes', '2')
    until(lambda: len(steps(folder)) > 4)
    subprocess.run(['scancel', '--signal=USR2', id], check=True)
    until(lambda: status(folder)['status'] == 'resumable')
    stopped = len(steps(folder))
    until(lambda: not in_queue(folder), 580)
    assert status(folder)['status'] == 'done', logs(folder)
    assert logs(folder).count('Requeued job') == 1 and steps(folder) == list(range(1, 41)) and stopped < 40
    loss = lambda f: [json.loads(l)['G/logistic'] for l in (f/'metrics.jsonl').read_text().splitlines()][:stopped + 4]
    far = [max(abs(a - b) for a, b in zip(loss(folder), loss(f))) for f in (place/'two', place/'whole')]
    assert far[0] < 2e-3 < far[1], far
    said(f'two nodes, gloo, warned at step {stopped}: the loss of G differs by {far[0]:.1e} from two processes of one machine in {stopped + 4} steps (by {far[1]:.1e} from one process)')


def test_array(slurm, said, place):
    "The shards of a data set as an array of two jobs."
    assert main(['tiny/genhead-4d', '--executor', 'slurm', '--time', '20', '--parts', '2', '--out', str(place/'slurm-parts'), '--wait']) == 0
    assert (place/'slurm-parts'/'tiny-genhead-4d-set'/'index.json').exists()
    said('an array of two jobs: the set is finished')
