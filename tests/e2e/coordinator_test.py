"""The coordinator from outside: a second one, jobs that are cancelled, pieces of an artifact."""
import http.client
import json
import os
import signal
import subprocess
import unittest
import urllib.parse

import harness

RECIPE = '''version: 1
seed: 7
teacher: {id: tiny}
data:
  train: {dataset: train}
passes:
  - prune.structured: {layers: 2, ffn: 64, importance: activation, calibration_tokens: 1024}
  - distil.soft: {tokens: 4000000, batch_tokens: 512, temperature: 2.0, alpha: 0.9, learning_rate: 2e-4, checkpoint_seconds: 1}
  - export: {file: student.gguf, format: Q8_0, label: distilled}
'''
WHOLE = 'version: 1\nteacher: {id: tiny}\npasses:\n  - export: {file: whole.gguf, format: F16, label: whole}\n'


class Coordinator(harness.FleetTest):
    def prepare(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '1', '--max-jobs', '1')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher')), '--name', 'tiny')
        fleet.retort('dataset', 'import', harness.make_texts(fleet.path('train.jsonl'), 3000, 1), '--name', 'train')

    def submit(self, text):
        path = self.fleet.path('recipe.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)
        return self.fleet.retort('job', 'submit', path)['id']

    def test_a_second_one_leaves_the_first_alone(self):
        fleet = self.fleet
        fleet.start_coordinator()
        second = subprocess.run(
            [harness.program('retort-coordinator'), 'serve', '--data', fleet.path('data'), '--rest-listen', '127.0.0.1:0',
             '--fleet-listen', 'tcp://127.0.0.1:*'], capture_output=True, text=True, timeout=30)
        self.assertNotEqual(second.returncode, 0)
        self.assertIn(fleet.path('data'), second.stderr)
        self.assertIn('another', second.stderr)
        token = subprocess.run([harness.program('retort-coordinator'), 'token', 'create', '--data', fleet.path('data')],
                               capture_output=True, text=True, timeout=30)
        self.assertNotEqual(token.returncode, 0)
        self.assertIsNone(fleet.coordinator.poll())
        fleet.retort('status')

    def test_cancel(self):
        self.prepare()
        fleet = self.fleet
        running = self.submit(RECIPE)
        queued = self.submit(RECIPE)
        fleet.wait('the first to train', lambda: (fleet.retort('job', 'show', running).get('progress') or {}).get('step', 0) > 1)
        self.assertEqual(fleet.retort('job', 'show', queued)['state'], 'queued')
        self.assertEqual(len(fleet.pids('retort-worker')), 1)
        fleet.retort('job', 'cancel', queued)
        self.assertEqual(fleet.job_done(queued)['state'], 'cancelled')
        fleet.retort('job', 'cancel', running)
        self.assertEqual(fleet.job_done(running, seconds=60)['state'], 'cancelled')
        fleet.wait('the end of the worker', lambda: not fleet.pids('retort-worker'), seconds=30)
        again = fleet.run_retort('job', 'cancel', running)
        self.assertEqual(again.returncode, 3, again.stderr)
        self.assertIn('ended already', again.stderr)
        self.assertIn('distil.soft', fleet.run_retort('job', 'logs', running).stdout)

        # Cancelled while the worker is stopped and cannot look: it is ended all the same.
        stuck = self.submit(RECIPE)
        worker = fleet.wait('the worker', lambda: fleet.pids('retort-worker'))
        fleet.wait('it to train', lambda: (fleet.retort('job', 'show', stuck).get('progress') or {}).get('step', 0) > 1)
        os.kill(worker[0], signal.SIGSTOP)
        fleet.retort('job', 'cancel', stuck)
        self.assertEqual(fleet.job_done(stuck, seconds=60)['state'], 'cancelled')
        self.assertEqual(fleet.pids('retort-worker'), [])

    def get(self, path, **headers):
        parts = urllib.parse.urlsplit(self.fleet.rest)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        with open(self.fleet.path('data', 'operator.token'), encoding='utf-8') as file:
            headers['Authorization'] = 'Bearer ' + file.read().strip()
        connection.request('GET', path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def test_pieces_of_an_artifact(self):
        self.prepare()
        job = self.fleet.job_done(self.submit(WHOLE))
        self.assertEqual(job['state'], 'succeeded', json.dumps(job))
        sha256, size = job['artifacts'][0]['sha256'], job['artifacts'][0]['bytes']
        path = f'/v1/artifacts/{sha256}/content'
        answer, whole = self.get(path)
        self.assertEqual((answer.status, len(whole)), (200, size))
        for text, begin, end in (('bytes=0-99', 0, 100), (f'bytes={size - 10}-', size - 10, size),
                                 ('bytes=-7', size - 7, size), (f'bytes=5-{10 * size}', 5, size),
                                 (f'bytes=-{10 * size}', 0, size)):
            answer, piece = self.get(path, Range=text)
            self.assertEqual(answer.status, 206, text)
            self.assertEqual(answer.getheader('Content-Range'), f'bytes {begin}-{end - 1}/{size}')
            self.assertEqual(piece, whole[begin:end], text)
        for text in (f'bytes={size}-', 'bytes=-0'):
            answer, _ = self.get(path, Range=text)
            self.assertEqual(answer.status, 416, text)
            self.assertEqual(answer.getheader('Content-Range'), f'bytes */{size}')
        for text in ('bytes=9-1', 'bytes=0-1,5-6', 'lines=1-2', 'bytes=x-', 'bytes=1'):
            answer, body = self.get(path, Range=text)
            self.assertEqual((answer.status, body), (200, whole), text)


if __name__ == '__main__':
    harness.run()
