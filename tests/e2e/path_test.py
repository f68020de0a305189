"""Import, F16 GGUF, serve the teacher; enrol, pull, serve; tailor; and what a person sees when it goes wrong."""
import json
import os
import subprocess
import unittest

import harness


class Path(harness.FleetTest):
    def test_teacher_to_served_student(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2')
        folder = harness.make_teacher(fleet.path('teacher'))
        teacher = fleet.retort('teacher', 'import', folder, '--name', 'tiny')
        self.assertEqual(teacher['name'], 'tiny')
        fleet.retort('teacher', 'serve', 'tiny')

        def teacher_url():
            serve = fleet.retort('status').get('teacher_serve') or {}
            return serve.get('url') if serve.get('url') and harness.get(serve['url'] + '/health') else None

        url = fleet.wait("the teacher's serve", teacher_url)
        self.assertGreater(len(harness.complete(url, 'the small')), 0)
        # Another teacher takes its place, and the first one's process is gone, not a zombie.
        before = fleet.pids('retort-serve')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('other'), seed=2), '--name', 'other')
        fleet.retort('teacher', 'serve', 'other')
        fleet.wait("the other teacher's serve", lambda: teacher_url() not in (None, url))
        fleet.wait('the end of the first', lambda: not any(os.path.exists(f'/proc/{pid}') for pid in before))
        self.assertEqual(len(before), 1)
        fleet.retort('teacher', 'serve', 'tiny')

        fleet.retort('class', 'set', 'any', '--file', '1MiB')
        fleet.start_agent('one')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'any', fleet.agents['one'])
        devices = fleet.retort('device', 'ls')
        self.assertEqual(len(devices), 1)
        self.assertGreater(devices[0]['profile']['memory_bytes'], 0)
        self.assertEqual(fleet.retort('device', 'show', devices[0]['name'])['id'], devices[0]['id'])

        for name, seed in (('train', 1), ('judged', 2)):
            fleet.retort('dataset', 'import', harness.make_texts(fleet.path(name + '.jsonl'), 200, seed), '--name', name)
        watch = fleet.run_tailor('tiny', ['any'], tokens=8192)
        self.assertEqual(watch.returncode, 0, watch.stdout + watch.stderr + fleet.logs())
        self.assertIn('succeeded', watch.stdout)
        job = fleet.retort('job', 'ls')[0]
        job = fleet.job(job['id'])
        student = [a for a in job['artifacts'] if a['label'] == 'distilled'][-1]
        self.assertLessEqual(student['bytes'], 1 << 20)
        self.assertGreater(student['evaluation']['perplexity'], 1)
        status = fleet.serving('one', student['sha256'])
        text = harness.complete(status['serve_url'], 'the small')

        # What the device serves is what the store holds, bit by bit, and writes the same.
        copy = fleet.path('copy.gguf')
        self.assertEqual(fleet.run_retort('artifact', 'get', student['sha256'][:12], copy).returncode, 0)
        port_file = fleet.path('port')
        serve = fleet.start('copy', [harness.program('retort-serve'), copy, '--port', '0', '--port-file', port_file])
        port = fleet.wait('the copy', lambda: os.path.exists(port_file) and open(port_file, encoding='ascii').read().strip(), serve)
        self.assertEqual(harness.complete(f'http://127.0.0.1:{port}', 'the small'), text)

    def test_a_latency_budget_goes_by_what_the_device_measured(self):
        fleet = self.fleet
        fleet.start_coordinator()
        fleet.retort('teacher', 'import', os.path.join(harness.ROOT, 'scripts/demo-teacher/model'), '--name', 'demo')
        for name, seed in (('train', 1), ('judged', 2)):
            fleet.retort('dataset', 'import', harness.make_texts(fleet.path(name + '.jsonl'), 200, seed), '--name', name)
        fleet.retort('class', 'set', 'any')
        fleet.start_agent('one', '--measure-decode-after', '1', '--cpu-threads', '1')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'any', fleet.agents['one'])

        def plan(*budget):
            if budget:
                fleet.retort('class', 'set', 'any', *budget)
            run = fleet.run_retort('-o', 'json', 'tailor', '--teacher', 'demo', '--class', 'any', '--train', 'train', '--held-out',
                                   'judged', '--dry-run')
            self.assertEqual(run.returncode, 0, run.stderr)
            return json.loads(run.stdout)['jobs'][0]

        self.assertIn('bandwidth', plan()['token_seconds_from'])
        fleet.wait('the measurement', lambda: fleet.retort('device', 'show', 'one')['profile']['decode'], fleet.agents['one'])
        whole = plan()
        self.assertIn('measurements', whole['token_seconds_from'])
        self.assertGreater(whole['token_seconds'], 5e-6)
        self.assertLess(whole['token_seconds'], 0.1)
        tight = plan('--p95-token-seconds', str(whole['token_seconds'] / 3))
        self.assertLessEqual(tight['token_seconds'], whole['token_seconds'] / 3)
        self.assertLess(tight['parameters'], whole['parameters'])
        # It is measured once: an agent that starts again knows it.
        fleet.agents['one'].terminate()
        fleet.agents['one'].wait(timeout=30)
        os.remove(fleet.path('one.json'))
        fleet.start_agent('one', '--cpu-threads', '1')
        fleet.wait('the link', lambda: fleet.status('one').get('link') == 'up', fleet.agents['one'])
        self.assertEqual(plan()['token_seconds'], tight['token_seconds'])

    def test_what_goes_wrong_is_said(self):
        fleet = self.fleet
        nobody = subprocess.run([harness.program('retort'), '--server', 'http://127.0.0.1:1', '--token', 'x', 'status'],
                                capture_output=True, text=True)
        self.assertEqual(nobody.returncode, 5, nobody.stderr)
        self.assertIn('http://127.0.0.1:1', nobody.stderr)

        fleet.start_coordinator()
        wrong = fleet.run_retort('--token', 'wrong', 'status')
        self.assertEqual(wrong.returncode, 6, wrong.stderr)
        self.assertIn('token', wrong.stderr)
        missing = fleet.run_retort('teacher', 'import', '/nowhere/at/all')
        self.assertEqual(missing.returncode, 3, missing.stderr)
        self.assertIn('/nowhere/at/all', missing.stderr)
        empty = fleet.path('empty.jsonl')
        open(empty, 'w', encoding='utf-8').close()
        self.assertEqual(fleet.run_retort('dataset', 'import', empty).returncode, 3)
        unknown = fleet.run_retort('job', 'show', 'job-000000000000')
        self.assertEqual(unknown.returncode, 3, unknown.stderr)
        self.assertEqual(fleet.run_retort('job', 'frobnicate').returncode, 2)

        recipe = fleet.path('recipe.yaml')
        with open(recipe, 'w', encoding='utf-8') as file:
            file.write('version: 1\npases: []\n')
        refused = fleet.run_retort('job', 'submit', recipe, '--watch')
        self.assertEqual(refused.returncode, 3, refused.stdout + refused.stderr)
        self.assertIn('pases', refused.stdout + refused.stderr)
        self.assertIn('passes', refused.stdout + refused.stderr)

        # The port is taken: a second coordinator says so and ends.
        second = subprocess.run(
            [harness.program('retort-coordinator'), 'serve', '--data', fleet.path('other'), '--rest-listen',
             fleet.rest.split('://')[1], '--fleet-listen', 'tcp://127.0.0.1:*'],
            capture_output=True, text=True, timeout=30)
        self.assertNotEqual(second.returncode, 0)
        self.assertIn(fleet.rest.rsplit(':', 1)[1], second.stderr)

    def test_a_wrong_server_key_is_refused(self):
        fleet = self.fleet
        fleet.start_coordinator()
        token = fleet.retort('token', 'create', '--kind', 'enrolment')['token']
        prefix, key, secret = token.split(':', 2)[0], token[len('retort-enrol:'):][:40], token[len('retort-enrol:') + 41:]
        self.assertEqual(prefix, 'retort-enrol')
        other = ('1' if key[0] != '1' else '2') + key[1:]
        with open(fleet.path('enrol'), 'w', encoding='utf-8') as file:
            file.write(f'retort-enrol:{other}:{secret}')
        fleet.start_agent('one')
        fleet.wait('the agent to try', lambda: fleet.status('one'), fleet.agents['one'])
        harness.time.sleep(3)
        self.assertEqual(fleet.retort('device', 'ls'), [])


if __name__ == '__main__':
    harness.run()
