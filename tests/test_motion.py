"""The recipe of the small motion encoder: killed at any named place and started again, it ends with all of its pictures, a finished training and one file of weights.

Runs are forks of one helper process (processes.py). A kill is placed inside of the n-th writing of a file, where half of it is on the disk.
"""
import json, os, signal, sys
from pathlib import Path
import pytest
from processes import apart, forked, killed, recipe

KILLS = ['shard:2', 'look:2', 'checkpoint:1', 'checkpoint:2']      # of 2 shards for training and one for measuring, 2 jittered copies, 2 checkpoints or more


def fork(work, name, kill=None):
    def job():
        import torch
        import headnb.gan.motion_training as m
        torch.set_num_threads(1)
        what, at = (kill or 'never:0').split(':')
        real, count = m.write_atomic, dict(shard=0, look=0, checkpoint=0)
        def write(path, data):
            kind = 'checkpoint' if path.suffix == '.pt' else 'look' if path.name.startswith('look') else 'shard'
            count[kind] += 1
            def half(p):
                if callable(data): data(p)
                else: p.write_bytes(data)
                if (kind, count[kind]) == (what, int(at)):
                    p.write_bytes(p.read_bytes()[:1000])
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(path, half)
        m.write_atomic = write
        return recipe('motion').main([str(work/name), '--blocks', '2', '--held', '1', '--shard', '1', '--seconds', '1.5', '--save', '.4', '--out', str(work/name/'out.safetensors')])
    return forked(job)


def main(work):
    report = {'whole': [fork(work, 'whole')]}
    for kill in KILLS:
        name = kill.replace(':', '-')
        first, left = fork(work, name, kill), sorted(p.name for p in (work/name).iterdir() if not p.name.endswith('.tmp'))
        report[kill] = [first, left, fork(work, name)]
    (work/'report.json').write_text(json.dumps(report))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('motion'))[:2]


def names(folder): return sorted(p.name for p in folder.iterdir() if not p.name.endswith('.tmp'))


@pytest.mark.parametrize('kill', KILLS)
def test_killed_and_resumed(runs, kill):
    "Nothing half written has a name; the second run takes up what is there, and its pictures are those of a run that was never killed."
    work, report = runs
    first, left, second = report[kill]
    whole, again = work/'whole', work/kill.replace(':', '-')
    assert report['whole'] == [0] and killed(first) and second == 0
    assert 'out.safetensors' not in left and ('motion.pt' in left) == (kill == 'checkpoint:2')
    assert names(again) == names(whole)
    for p in [*whole.glob('8*.safetensors'), *whole.glob('look*.safetensors')]: assert (again/p.name).read_bytes() == p.read_bytes(), p.name


def test_what_is_written(runs):
    "The JSON names what was measured, at both sizes; the weights open."
    work, _ = runs
    from headnb.nets.small_motion import open_small_motion
    net = open_small_motion(work/'whole'/'out.safetensors')
    told = net.about['measured']
    assert set(told) == {'64 pixels', '32 pixels'} and told['64 pixels']['chance'] == 1/16 and 0 <= told['64 pixels']['retrieval'] <= 1
    assert net.about['trained']['people'] == 8 and net.about['trained']['seconds'] >= 1


if __name__ == '__main__': main(Path(sys.argv[1]))
