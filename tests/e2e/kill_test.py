"""kill -9 of worker, coordinator, agent and serve in mid-job and mid-pull: the same end state each time."""
import contextlib
import json
import os
import shutil
import signal
import time
import unittest

import harness

RECIPE = '''version: 1
seed: 7
teacher: {{id: tiny}}
data:
  train: {{dataset: train}}
  held_out: {{dataset: judged, max_tokens: 2000}}
passes:
  - prune.structured: {{layers: 2, ffn: 64, importance: activation, calibration_tokens: 1024}}
  - distil.soft: {{tokens: {tokens}, batch_tokens: 512, temperature: 2.0, alpha: 0.9, learning_rate: 2e-4, checkpoint_seconds: 1}}
  - quantize.weights: {{format: Q8_0}}
  - export: {{file: student.gguf, format: Q8_0, label: distilled}}
'''
# A model of random weights, large enough for a pull to be caught in its middle.
LARGE = '''version: 1
seed: {seed}
data:
  train: {{dataset: train}}
passes:
  - train: {{init: {{hidden: 512, layers: 12, heads: 8, kv_heads: 8, ffn: 1536, context: 64, tokenizer: {tokenizer}}}, tokens: 128, batch_tokens: 64, learning_rate: 1e-4}}
  - export: {{file: large.gguf, format: F16, label: large}}
'''


class Kill(harness.FleetTest):
    def prepare(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2')
        self.teacher = harness.make_teacher(fleet.path('teacher'))
        fleet.retort('teacher', 'import', self.teacher, '--name', 'tiny')
        for name, seed in (('train', 1), ('judged', 2)):
            fleet.retort('dataset', 'import', harness.make_texts(fleet.path(name + '.jsonl'), 3000 if seed == 1 else 100, seed),
                         '--name', name)
        fleet.retort('class', 'set', 'any')

    def submit(self, text, *options):
        path = self.fleet.path('recipe.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)
        return self.fleet.retort('job', 'submit', path, *options)['id']

    def progress(self, job_id):
        """The last progress event of the distillation, or None."""
        path = self.fleet.path('data', 'jobs', job_id, 'progress.jsonl')
        last = None
        if os.path.exists(path):
            with open(path, encoding='utf-8') as file:
                for line in file:
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue
                    if event.get('event') == 'progress' and event.get('pass') == 'distil.soft':
                        last = event
        return last

    def mid_job(self, job_id):
        return self.fleet.wait('the middle of the job', lambda: (self.progress(job_id) or {}).get('step', 0) >= 10, seconds=90)

    def end_state(self, job_id):
        job = self.fleet.job_done(job_id, seconds=240)
        self.assertEqual(job['state'], 'succeeded', json.dumps(job) + self.fleet.logs())
        # A worker that wrote its result has yet to unload LibTorch: no one else runs meanwhile, and it does end.
        self.assertLessEqual(len(self.fleet.pids('retort-worker')), 1)
        self.fleet.wait('the end of the worker', lambda: not self.fleet.pids('retort-worker'), seconds=20)
        student = [a for a in job['artifacts'] if a['label'] == 'distilled']
        self.assertEqual(len(student), 1)
        return student[0]

    def test_mid_job(self):
        self.prepare()
        fleet = self.fleet
        recipe = RECIPE.format(tokens=60000)
        unbroken = self.end_state(self.submit(recipe))

        with self.subTest('worker'):
            job = self.submit(recipe)
            self.mid_job(job)
            time.sleep(2)  # past a checkpoint
            for pid in fleet.pids('retort-worker'):
                os.kill(pid, signal.SIGKILL)
            self.same(self.end_state(job), unbroken)

        with self.subTest('coordinator'):
            job = self.submit(recipe)
            self.mid_job(job)
            worker = fleet.pids('retort-worker')
            self.assertEqual(len(worker), 1)
            os.kill(fleet.coordinator.pid, signal.SIGKILL)
            fleet.coordinator.wait()
            time.sleep(0.5)
            self.assertEqual(fleet.pids('retort-worker'), worker, 'the worker did not outlive the coordinator')
            fleet.start_coordinator('--job-threads', '2')
            self.assertLessEqual(len(fleet.pids('retort-worker')), 1, 'the job runs twice')
            self.same(self.end_state(job), unbroken)

        with self.subTest('coordinator and worker'):
            job = self.submit(recipe)
            self.mid_job(job)
            os.kill(fleet.coordinator.pid, signal.SIGKILL)
            for pid in fleet.pids('retort-worker'):
                os.kill(pid, signal.SIGKILL)
            fleet.coordinator.wait()
            fleet.start_coordinator('--job-threads', '2')
            self.same(self.end_state(job), unbroken)

    def same(self, student, unbroken):
        if student['sha256'] == unbroken['sha256']:
            print('  the same bytes as the unbroken run')
            return
        a, b = student['evaluation']['perplexity'], unbroken['evaluation']['perplexity']
        print(f'  perplexity {a} against {b} of the unbroken run')
        self.assertLess(abs(a - b) / b, 0.01)
        self.assertEqual(student['parameters'], unbroken['parameters'])

    def test_mid_pull(self):
        self.prepare()
        fleet = self.fleet
        tokenizer = self.teacher
        artifacts = []
        for seed in (1, 2, 3, 4):
            job = fleet.job_done(self.submit(LARGE.format(seed=seed, tokenizer=tokenizer)), seconds=240)
            self.assertEqual(job['state'], 'succeeded', json.dumps(job) + fleet.logs())
            artifacts.append(job['artifacts'][-1])
        self.assertGreater(artifacts[0]['bytes'], 20 << 20)
        fleet.start_agent('one')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'any', fleet.agents['one'])
        fleet.retort('class', 'assign', 'any', artifacts[0]['sha256'])
        first = fleet.serving('one', artifacts[0]['sha256'])
        # A student that dies in probation is rolled back, by design; this one is to have proved itself.
        fleet.wait('the end of probation', lambda: fleet.status('one').get('state') == 'idle')

        with self.subTest('serve'):
            os.kill(first['serve_pid'], signal.SIGKILL)
            again = fleet.wait('another serve', lambda: fleet.status('one').get('serve_pid') not in (None, 0, first['serve_pid']) and
                               fleet.serving('one', artifacts[0]['sha256']))
            self.assertNotEqual(again['serve_pid'], first['serve_pid'])

        with self.subTest('agent in mid-pull'):
            before = fleet.serving('one', artifacts[0]['sha256'])
            fleet.retort('class', 'assign', 'any', artifacts[1]['sha256'])
            self.catch_pull()
            os.kill(fleet.agents['one'].pid, signal.SIGKILL)
            fleet.agents['one'].wait()
            self.assertTrue(harness.get(before['serve_url'] + '/health'), 'the old student did not serve on')
            os.remove(fleet.path('one.json'))
            fleet.start_agent('one')
            fleet.serving('one', artifacts[1]['sha256'])

        with self.subTest('coordinator in mid-pull'):
            fleet.retort('class', 'assign', 'any', artifacts[2]['sha256'])
            self.catch_pull()
            os.kill(fleet.coordinator.pid, signal.SIGKILL)
            fleet.coordinator.wait()
            time.sleep(1)
            fleet.start_coordinator('--job-threads', '2')
            fleet.serving('one', artifacts[2]['sha256'], seconds=90)

        with self.subTest('serve in mid-pull'):
            before = fleet.serving('one', artifacts[2]['sha256'])
            fleet.retort('class', 'assign', 'any', artifacts[3]['sha256'])
            self.catch_pull()
            os.kill(before['serve_pid'], signal.SIGKILL)
            fleet.serving('one', artifacts[3]['sha256'])

        with self.subTest('a file that changed while nothing ran'):
            fleet.wait('the end of probation', lambda: fleet.status('one').get('state') == 'idle')
            before = fleet.serving('one', artifacts[3]['sha256'])
            for process in (fleet.agents['one'].pid, before['serve_pid']):
                os.kill(process, signal.SIGKILL)
            fleet.agents['one'].wait()
            state = fleet.path('agent-one')
            for slot in ('a', 'b'):
                with open(os.path.join(state, 'slots', slot, 'manifest.json'), encoding='utf-8') as file:
                    if artifacts[3]['sha256'] not in file.read():
                        continue
                with open(os.path.join(state, 'slots', slot, 'model.gguf'), 'r+b') as file:
                    file.seek(-1000, os.SEEK_END)
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 1]))
            shutil.rmtree(os.path.join(state, 'packed'))
            os.remove(fleet.path('one.json'))
            fleet.start_agent('one')

            def mended():
                url = fleet.status('one').get('serve_url')
                health = harness.get(url + '/health') if url else None
                return health and health.get('artifact_sha256') == artifacts[3]['sha256']

            fleet.wait('the right file', mended, fleet.agents['one'], seconds=60)

        devices = fleet.retort('device', 'ls')
        self.assertEqual(len(devices), 1)
        fleet.wait('one serve', lambda: len(fleet.pids('retort-serve')) <= 1)

    def catch_pull(self):
        """Returns when a pull is under way: its file is there, and has been written to since."""
        slots = self.fleet.path('agent-one', 'slots')

        def part():
            for slot in ('a', 'b'):
                path = os.path.join(slots, slot, 'model.gguf.part')
                if os.path.exists(path):
                    return path
            return None

        path = self.fleet.wait('a pull to begin', part)
        with contextlib.suppress(FileNotFoundError):
            begun = os.stat(path).st_mtime_ns
            deadline = time.monotonic() + 0.3
            while os.stat(path).st_mtime_ns == begun and time.monotonic() < deadline:
                pass


if __name__ == '__main__':
    harness.run()
