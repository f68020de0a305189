"""Kills at the places where agent and coordinator note something, in random order. For the agent half of them are power cuts:
its students end too, and the disk has lost or torn what it had promised (of a pull, of a slot's model, of SQLite's log). A device serves a verified model after each, without a coordinator too, and what was acknowledged is there.

RETORT_CRASHES kills of each program (6 unless said; scripts/test --all: 100), RETORT_SEED for another order.
"""
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
import unittest

import harness

CRASHES = int(os.environ.get('RETORT_CRASHES', '6'))
SEED = int(os.environ.get('RETORT_SEED', '1'))
MOMENTS = ('saving', 'saved')
STATES = ('fetch', 'trust', 'verify', 'stage', 'probe', 'serve', 'probation', 'commit', 'idle')
RECIPE = '''version: 1
teacher: {{id: tiny{n}}}
passes:
  - export: {{file: a.gguf, format: F16, label: whole}}
'''


class Crash(harness.FleetTest):
    def prepare(self, artifacts):
        fleet = self.fleet
        self.random = random.Random(SEED)
        fleet.start_coordinator('--job-threads', '1')
        fleet.retort('class', 'set', 'any')
        self.artifacts = []
        for n in range(artifacts):
            teacher = harness.make_teacher(fleet.path(f'teacher{n}'), hidden=128, layers=4, ffn=512, seed=n + 1)
            fleet.retort('teacher', 'import', teacher, '--name', f'tiny{n}')
            with open(fleet.path('recipe.yaml'), 'w', encoding='utf-8') as file:
                file.write(RECIPE.format(n=n))
            job = fleet.job_done(fleet.retort('job', 'submit', fleet.path('recipe.yaml'))['id'])
            self.assertEqual(job['state'], 'succeeded', json.dumps(job))
            self.artifacts.append(job['artifacts'][0]['sha256'])
        fleet.retort('class', 'assign', 'any', self.artifacts[0])
        self.start_agent()
        self.served = self.artifacts[0]
        fleet.serving('one', self.served)

    def start_agent(self, point=None):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.fleet.path('one.json'))
        if point:
            self.fleet.env['RETORT_FAIL_POINT'] = point
        self.fleet.start_agent('one', '--probation-seconds', '0.2')
        self.fleet.env.pop('RETORT_FAIL_POINT', None)

    def stop_agent(self):
        self.fleet.agents['one'].terminate()
        self.fleet.agents['one'].wait(timeout=30)

    def order(self, points):
        """CRASHES of the points in random order, each as often as the others."""
        out = []
        while len(out) < CRASHES:
            out += self.random.sample(points, len(points))
        return out[:CRASHES]

    def verified(self, *wanted):
        """What the device serves is whole on its disk, and one of `wanted`."""
        status = self.fleet.wait('a student', lambda: self.healthy(wanted))
        slots = self.fleet.path('agent-one', 'slots')
        found = set()
        for slot in ('a', 'b'):
            with contextlib.suppress(FileNotFoundError):
                with open(os.path.join(slots, slot, 'model.gguf'), 'rb') as file:
                    found.add(hashlib.sha256(file.read()).hexdigest())
        self.assertIn(status['artifact'], found)
        return status['artifact']

    def healthy(self, wanted):
        status = self.fleet.status('one')
        good = status.get('artifact') in wanted and status.get('serve_url')
        return status if good and harness.get(status['serve_url'] + '/health') else None

    def cut_power(self):
        """The students end with the agent, the machine starts anew, and the tail of one file did not reach the disk."""
        state = self.fleet.path('agent-one')
        for pid in self.fleet.pids('retort-serve'):
            os.kill(pid, signal.SIGKILL)
        self.fleet.wait('the end of the students', lambda: not self.fleet.pids('retort-serve'))
        models = [os.path.join(state, 'slots', slot, 'model.gguf') for slot in ('a', 'b')]
        there = [path for path in models if os.path.exists(path)]
        files = [path + '.part' for path in models] + [os.path.join(state, 'state.db-wal')]
        if len(there) == 2:  # what is lost of the only one cannot be served without a coordinator
            files += there
        files = [path for path in files if os.path.exists(path) and os.path.getsize(path) > 0]
        told = ''
        if files:
            told = self.tear(self.random.choice(files))
        with contextlib.closing(sqlite3.connect(os.path.join(state, 'state.db'))) as database, database:
            database.execute("DELETE FROM state WHERE key = 'checked_slots'")
        return ', power cut' + told

    def tear(self, path):
        """Its tail is gone, other bytes, or noughts."""
        size = os.path.getsize(path)
        # Of SQLite's log the last pages: the device is to stay enrolled.
        begin = max(0, size - self.random.randrange(1, 4 * 4096)) if path.endswith('-wal') else self.random.randrange(size)
        how = self.random.choice(('cut', 'garbage', 'noughts'))
        with open(path, 'r+b') as file:
            if how == 'cut':
                file.truncate(begin)
            else:
                file.seek(begin)
                file.write(self.random.randbytes(size - begin) if how == 'garbage' else bytes(size - begin))
        return f', {os.path.relpath(path, self.fleet.path("agent-one"))} {how} from {begin} of {size}'

    def test_agent(self):
        self.prepare(3)
        fleet, begin = self.fleet, time.monotonic()
        cuts = 0
        for number, point in enumerate(self.order([f'agent.{s}.{m}' for s in STATES for m in MOMENTS])):
            following = self.artifacts[(self.artifacts.index(self.served) + 1) % 3]  # neither slot has it
            self.stop_agent()
            if point.startswith('agent.trust'):
                fleet.retort('trust', 'rotate', 'timestamp')  # else there may be nothing new to note
            self.start_agent(point)
            fleet.retort('class', 'assign', 'any', following)
            self.assertEqual(fleet.agents['one'].wait(timeout=60), -signal.SIGKILL, point)
            told = self.cut_power() if self.random.random() < 0.5 else ''
            cuts += bool(told)
            alone = number % 3 == 0
            if alone:
                os.kill(fleet.coordinator.pid, signal.SIGKILL)
                fleet.coordinator.wait()
                self.start_agent()
                self.verified(*(self.artifacts if told else (self.served, following)))
                fleet.start_coordinator('--job-threads', '1')
            else:
                self.start_agent()
            with self.subTest(point=point, number=number):
                fleet.serving('one', following, seconds=90)
                self.verified(following)
                # A restart in probation counts against the student, and the next kill begins with one.
                fleet.wait('the end of its probation', lambda: fleet.status('one').get('state') == 'idle')
            print(f'  {number + 1}: {point}{told}{", then alone" if alone else ""}', flush=True)
            self.served = following
        print(f'{CRASHES} kills of the agent, {cuts} of them power cuts: {time.monotonic() - begin:.0f} s')

    def write_on(self, stop, acknowledged):
        """Classes made one after another: those that were acknowledged."""
        while not stop.is_set():
            name = f'c{len(self.tried)}'
            self.tried.append(name)
            if self.fleet.run_retort('class', 'set', name).returncode == 0:
                acknowledged.append(name)

    def test_coordinator(self):
        self.prepare(2)
        fleet, begin = self.fleet, time.monotonic()
        self.tried, acknowledged = [], []

        def assign():
            self.served = next(a for a in self.artifacts if a != self.served)
            fleet.run_retort('class', 'assign', 'any', self.served)

        def begin_rollout():
            self.served = next(a for a in self.artifacts if a != self.served)
            self.rollouts += 1
            with open(fleet.path('rollout.yaml'), 'w', encoding='utf-8') as file:
                file.write(f'kind: Rollout\nname: r{self.rollouts}\nclasses: {{any: {self.served}}}\n'
                           'stages: [{percent: 100}]\nsoak_seconds: 0\n')
            fleet.run_retort('apply', '-f', fleet.path('rollout.yaml'))

        def settle_rollout():
            # The same again: begun, if it was not.
            done = fleet.run_retort('apply', '-f', fleet.path('rollout.yaml'))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            fleet.wait('its end', lambda: fleet.retort('rollout', 'show', f'r{self.rollouts}')['state'] == 'completed')

        self.rollouts = 0
        causes = {'coordinator.trust.published': lambda: fleet.run_retort('trust', 'rotate', 'timestamp'),
                  'coordinator.device.rotate': lambda: fleet.run_retort('device', 'rotate', 'one'),
                  'coordinator.device.key': lambda: fleet.run_retort('device', 'rotate', 'one'),
                  'coordinator.rollout.created': begin_rollout, 'coordinator.rollout.members': begin_rollout,
                  'coordinator.rollout.rolling': begin_rollout, 'coordinator.rollout.completed': begin_rollout,
                  'at any time': assign}
        for number, point in enumerate(self.order([(p, m) for p in causes for m in MOMENTS])):
            place, moment = point
            fleet.coordinator.terminate()
            fleet.coordinator.wait(timeout=60)
            if place.startswith('coordinator.'):
                fleet.env['RETORT_FAIL_POINT'] = f'{place}.{moment}'
            fleet.start_coordinator('--job-threads', '1', '--heartbeat-millis', '1000')
            fleet.env.pop('RETORT_FAIL_POINT', None)
            # A rotation that the last kill cut short goes on as soon as the device is back, and may reach this one's point first.
            coordinator = fleet.coordinator
            fleet.wait('the device', lambda: coordinator.poll() is not None or fleet.status('one').get('link') == 'up')
            stop = threading.Event()
            writer = threading.Thread(target=self.write_on, args=(stop, acknowledged))
            writer.start()
            causes[place]()
            if place == 'at any time':
                time.sleep(self.random.random())
                fleet.coordinator.kill()
            self.assertEqual(fleet.coordinator.wait(timeout=60), -signal.SIGKILL, point)
            stop.set()
            writer.join()
            check = subprocess.run([harness.program('retort-coordinator'), 'check', '--data', fleet.path('data')],
                                   capture_output=True, text=True)
            fleet.start_coordinator('--job-threads', '1', '--heartbeat-millis', '1000')
            with self.subTest(point=point, number=number):
                self.assertEqual(check.returncode, 0, check.stdout + check.stderr)
                there = {c['name'] for c in fleet.retort('class', 'ls')}
                self.assertLessEqual(set(acknowledged), there)
                if causes[place] is begin_rollout:
                    settle_rollout()
                elif causes[place] is assign:
                    fleet.retort('class', 'assign', 'any', self.served)
                fleet.serving('one', self.served, seconds=90)
                self.verified(self.served)
            print(f'  {number + 1}: {place} {moment}, {len(acknowledged)} writes acknowledged so far', flush=True)
        fleet.retort('audit', 'verify')
        print(f'{CRASHES} kills of the coordinator, {len(acknowledged)} acknowledged writes: {time.monotonic() - begin:.0f} s')


if __name__ == '__main__':
    harness.run()
