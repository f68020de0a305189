"""Full disks: import, job and pull say what is missing, lose nothing, and go on once there is room.

Each runs on a small file system of its own, so that the system's own "no space left" is met, not a check of ours.
"""
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import unittest

import harness

RECIPE = '''version: 1
seed: 7
teacher: {id: tiny}
data:
  train: {dataset: train}
  held_out: {dataset: judged, max_tokens: 2000}
passes:
  - prune.structured: {layers: 2, ffn: 64, importance: activation, calibration_tokens: 1024}
  - distil.soft: {tokens: {tokens}, batch_tokens: 512, temperature: 2.0, alpha: 0.9, learning_rate: 2e-4, checkpoint_seconds: 1}
  - export: {file: student.gguf, format: Q8_0, label: distilled}
'''


class Disk(unittest.TestCase):
    def setUp(self):
        self.fleet = harness.Fleet()
        self.addCleanup(self.fleet.close)

    def small_disk(self, name, mebibytes):
        """A file system of its own below the fleet's folder."""
        path = self.fleet.path(name)
        os.makedirs(path)
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={mebibytes}m', 'tmpfs', path], capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest('no file system can be mounted here: ' + done.stderr.strip())
        # Before the fleet's folder goes: clean-ups run last in, first out, and lazily because programs may still end.
        self.addCleanup(subprocess.run, ['umount', '-l', path], check=False)
        return path

    @staticmethod
    def free(path):
        info = os.statvfs(path)
        return info.f_bavail * info.f_frsize

    def fill(self, path, leave=0):
        """Takes all of the file system but `leave` bytes; the file that takes them."""
        filler = os.path.join(path, 'filler')
        with open(filler, 'wb') as file:
            with contextlib.suppress(OSError):
                while self.free(path) > leave:
                    file.write(b'x' * min(1 << 16, max(4096, self.free(path) - leave)))
                    file.flush()
        return filler

    def test_read_only(self):
        """An agent that starts on a read-only or full disk serves what it served; the disk mended, it goes on."""
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher')), '--name', 'tiny')
        fleet.retort('class', 'set', 'any')
        with open(fleet.path('recipe.yaml'), 'w', encoding='utf-8') as file:
            file.write('version: 1\nteacher: {id: tiny}\npasses:\n  - export: {file: a.gguf, format: F16, label: whole}\n')
        job = fleet.job_done(fleet.retort('job', 'submit', fleet.path('recipe.yaml'), '--class', 'any')['id'])
        device = self.small_disk('agent-d', 64)
        fleet.retort('class', 'assign', 'any', job['artifacts'][0]['sha256'])
        artifact = job['artifacts'][0]['sha256']

        def start():
            fleet.start_agent('d', '--probation-seconds', '0.3', '--stop-serve-on-exit', '--run', fleet.path('d-run'))

        def stop():
            fleet.agents['d'].terminate()
            fleet.agents['d'].wait(timeout=30)
            os.remove(fleet.path('d.json'))

        def link():
            return fleet.status('d').get('link') == 'up'

        start()
        fleet.serving('d', artifact)
        fleet.wait('the end of its probation', lambda: fleet.status('d').get('state') == 'idle')
        stop()
        subprocess.run(['mount', '-o', 'remount,ro', device], check=True)
        start()
        fleet.serving('d', artifact)
        told = fleet.wait('the reason', lambda: fleet.status('d').get('link_reason'), fleet.agents['d'])
        self.assertRegex(told, r'(?i)read-?only')
        self.assertFalse(link(), 'a session that cannot be noted')
        subprocess.run(['mount', '-o', 'remount,rw', device], check=True)
        fleet.wait('the link', link, fleet.agents['d'])
        # As after a power cut: nothing was tidied up.
        for pid in (fleet.agents['d'].pid, *fleet.pids('retort-serve')):
            os.kill(pid, signal.SIGKILL)
        fleet.agents['d'].wait(timeout=30)
        os.remove(fleet.path('d.json'))
        subprocess.run(['mount', '-o', 'remount,ro', device], check=True)
        start()
        fleet.serving('d', artifact)
        stop()
        subprocess.run(['mount', '-o', 'remount,rw', device], check=True)
        filler = self.fill(device)
        start()
        fleet.serving('d', artifact)
        os.remove(filler)
        fleet.wait('the link', link, fleet.agents['d'])
        stop()

        # What the device knew is garbage: it serves on, and enrols anew where it has a token.
        state = fleet.path('agent-d', 'state.db')
        with open(state, 'r+b') as file:
            file.seek(4096)
            file.write(b'garbage ' * 512)
        subprocess.run(['mount', '-o', 'remount,ro', device], check=True)
        start()
        fleet.serving('d', artifact)
        stop()
        subprocess.run(['mount', '-o', 'remount,rw', device], check=True)
        start()
        fleet.serving('d', artifact)
        self.assertTrue(os.path.exists(state + '.damaged'))
        fleet.wait('the link', link, fleet.agents['d'])
        fleet.wait('the same student', lambda: fleet.status('d').get('state') == 'idle' and not fleet.status('d').get('last_error'))

    def test_import(self):
        fleet = self.fleet
        data = self.small_disk('data', 48)
        fleet.start_coordinator()
        teacher = harness.make_teacher(fleet.path('teacher'), hidden=256, layers=2, ffn=512)
        filler = self.fill(data, leave=2 << 20)
        refused = fleet.run_retort('teacher', 'import', teacher, '--name', 'tiny')
        self.assertEqual(refused.returncode, 4, refused.stdout + refused.stderr)
        self.assertRegex(refused.stderr, r'(?i)space|room|free')
        self.assertEqual(fleet.retort('teacher', 'ls'), [])
        os.remove(filler)
        self.assertEqual(fleet.retort('teacher', 'import', teacher, '--name', 'tiny')['name'], 'tiny')

        # No byte left at all: what the store cannot promise it does not acknowledge, and it recovers by itself.
        filler = self.fill(data)
        refused = fleet.run_retort('dataset', 'import', harness.make_texts(fleet.path('big.jsonl'), 2000, 1), '--name', 'train')
        self.assertEqual(refused.returncode, 4, refused.stdout + refused.stderr)
        refused = [fleet.run_retort('class', 'set', f'c{i}', '--file', '1MiB') for i in range(64)]
        made = {f'c{i}' for i, run in enumerate(refused) if run.returncode == 0}
        self.assertEqual({run.returncode for run in refused} - {0, 4}, set(), refused[-1].stderr)
        self.assertEqual(fleet.retort('dataset', 'ls'), [])
        os.remove(filler)
        fleet.retort('class', 'set', 'after', '--file', '1MiB')
        kept = {c['name'] for c in fleet.retort('class', 'ls')}
        self.assertLessEqual(made | {'after'}, kept)
        fleet.coordinator.kill()
        fleet.coordinator.wait()
        fleet.start_coordinator()
        self.assertLessEqual(made | {'after'}, {c['name'] for c in fleet.retort('class', 'ls')})
        self.assertEqual([t['name'] for t in fleet.retort('teacher', 'ls')], ['tiny'])

    def test_writers_on_a_full_disk(self):
        """Many at once write to a coordinator without room: each hears so, it lives, and nothing acknowledged is lost."""
        fleet = self.fleet
        data = self.small_disk('data', 60)
        fleet.start_coordinator()
        filler = self.fill(data, leave=6 << 20)
        made, codes = set(), set()

        def write(i):
            labels = [o for n in range(60) for o in ('--label', f'l{n}={"x" * 200}')]
            run = fleet.run_retort('class', 'set', f'w{i}', '--file', '1MiB', *labels)
            codes.add(run.returncode)
            if run.returncode == 0:
                made.add(f'w{i}')

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(40)))
            with open(os.path.join(data, 'rest'), 'wb') as file, contextlib.suppress(OSError):
                while True:
                    file.write(b'x' * 65536)
                    file.flush()
            list(pool.map(write, range(40, 80)))
        self.assertLessEqual(codes, {0, 4}, fleet.logs())
        self.assertIn(4, codes)
        self.assertIsNone(fleet.coordinator.poll(), fleet.logs())
        fleet.coordinator.kill()
        fleet.coordinator.wait()
        check = subprocess.run([harness.program('retort-coordinator'), 'check', '--data', data], capture_output=True, text=True)
        self.assertEqual(check.returncode, 4, check.stdout + check.stderr)
        self.assertIn('make room', check.stderr)
        os.remove(filler)
        os.remove(os.path.join(data, 'rest'))
        fleet.start_coordinator()
        self.assertLessEqual(made, {c['name'] for c in fleet.retort('class', 'ls')})
        fleet.retort('class', 'set', 'after', '--file', '1MiB')

    def test_job(self):
        fleet = self.fleet
        data = self.small_disk('data', 64)
        fleet.start_coordinator('--job-threads', '2')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher')), '--name', 'tiny')
        for name, seed in (('train', 1), ('judged', 2)):
            fleet.retort('dataset', 'import', harness.make_texts(fleet.path(name + '.jsonl'), 3000 if seed == 1 else 100, seed),
                         '--name', name)
        fleet.retort('class', 'set', 'any')
        recipe = fleet.path('recipe.yaml')
        with open(recipe, 'w', encoding='utf-8') as file:
            file.write(RECIPE.replace('{tokens}', '200000'))
        job = fleet.retort('job', 'submit', recipe)['id']
        fleet.wait('the middle of the job', lambda: (fleet.retort('job', 'show', job).get('progress') or {}).get('step', 0) >= 10,
                   seconds=90)
        filler = self.fill(data)
        # It waits, says why, and goes on from its checkpoint once there is room.
        told = fleet.wait('the job to say that the disk is full', lambda: self.waiting(job), seconds=120)
        self.assertIn('make room', told['error']['message'])
        self.assertEqual(told['state'], 'running')
        fleet.wait('the end of the worker', lambda: not fleet.pids('retort-worker'), seconds=30)
        reached = told['progress']['step']
        os.remove(filler)
        ended = fleet.job_done(job, seconds=240)
        self.assertEqual(ended['state'], 'succeeded', json.dumps(ended) + fleet.logs())
        self.assertIsNone(ended.get('error'))
        self.assertEqual(len([a for a in ended['artifacts'] if a['label'] == 'distilled']), 1)
        with open(os.path.join(data, 'jobs', job, 'progress.jsonl'), encoding='utf-8') as file:
            events = [json.loads(line) for line in file if line.startswith('{') and line.endswith('}\n')]
        resumed = [e for e in events if 'resumed_at_step' in json.dumps(e)]
        self.assertTrue(resumed, 'the job began anew')
        self.assertLessEqual(reached - 40, max(e.get('resumed_at_step', 0) for e in resumed), events)

    def waiting(self, job_id):
        job = self.fleet.retort('job', 'show', job_id)
        self.assertNotEqual(job['state'], 'failed', json.dumps(job))
        return job if 'disk is full' in json.dumps(job.get('error')) else None

    def test_pull(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher'), hidden=256, layers=4, ffn=1024), '--name', 'tiny')
        for name, seed in (('train', 1), ('judged', 2)):
            fleet.retort('dataset', 'import', harness.make_texts(fleet.path(name + '.jsonl'), 200, seed), '--name', name)
        fleet.retort('class', 'set', 'any')
        state = self.small_disk('agent-one', 24)
        filler = self.fill(state, leave=3 << 20)
        fleet.start_agent('one')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'any', fleet.agents['one'])
        recipe = fleet.path('recipe.yaml')
        with open(recipe, 'w', encoding='utf-8') as file:
            file.write('version: 1\nteacher: {id: tiny}\npasses:\n  - export: {file: whole.gguf, format: F16, label: whole}\n')
        job = fleet.job_done(fleet.retort('job', 'submit', recipe)['id'])
        self.assertEqual(job['state'], 'succeeded', json.dumps(job))
        artifact = job['artifacts'][0]
        self.assertGreater(artifact['bytes'], 4 << 20)
        fleet.retort('class', 'assign', 'any', artifact['sha256'])
        told = fleet.wait('the agent to say that the disk is full',
                          lambda: (lambda s: s if 'disk' in json.dumps(s.get('last_error') or '') else None)(fleet.status('one')),
                          fleet.agents['one'])
        self.assertNotEqual(told.get('artifact'), artifact['sha256'])
        os.remove(filler)
        fleet.serving('one', artifact['sha256'], seconds=120)


if __name__ == '__main__':
    harness.run()
