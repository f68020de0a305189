"""Rollouts with six real agents: a good student reaches all of them, bad ones are stopped and taken back; kill -9 of
coordinator and agents in between changes nothing about how it ends."""
import contextlib
import json
import os
import signal
import stat
import subprocess
import unittest

import harness

RECIPES = {
    'first': '  - export: {file: a.gguf, format: F16, label: first}\n',
    'good': '  - export: {file: a.gguf, format: Q8_0, label: good}\n',
    'doomed': '  - export: {file: a.gguf, format: Q4_0, label: doomed}\n',
    # Has learnt what its teacher never did: they agree on hardly anything.
    'stranger': '  - train: {tokens: 40000, batch_tokens: 512, learning_rate: 1e-2}\n'
                '  - export: {file: a.gguf, format: Q8_0, label: stranger}\n',
}
HEAD = 'version: 1\nteacher: {id: tiny}\ndata:\n  train: {dataset: train}\npasses:\n'
AGENTS = [f'd{i}' for i in range(6)]
# Ends a student whose hash stands in the file "doomed" a little after it starts: a crash in probation.
SERVE = '''#!/bin/sh
if [ "$1" = serve ] && grep -q "$(sha256sum < "$2" | cut -c1-64)" "{doomed}"; then
  pid=$$
  ( sleep 0.8; kill -9 $pid ) > /dev/null 2>&1 &
fi
exec "{serve}" "$@"
'''


class Rollout(harness.FleetTest):
    def prepare(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2', '--heartbeat-millis', '1000')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher')), '--name', 'tiny', '--serve')
        for name, seed in (('train', 1), ('judged', 2)):
            fleet.retort('dataset', 'import', harness.make_texts(fleet.path(name + '.jsonl'), 600, seed), '--name', name)
        fleet.retort('class', 'set', 'any')
        self.doomed, self.serve = fleet.path('doomed'), fleet.path('serve.sh')
        with open(self.serve, 'w', encoding='utf-8') as file:
            file.write(SERVE.format(doomed=self.doomed, serve=harness.program('retort-serve')))
        os.chmod(self.serve, stat.S_IRWXU)
        with open(self.doomed, 'w', encoding='utf-8') as file:
            file.write('none\n')
        for agent in AGENTS:
            self.start_agent(agent)
        jobs = {name: self.submit(HEAD + recipe) for name, recipe in RECIPES.items()}
        self.sha = {name: fleet.job_done(job)['artifacts'][0]['sha256'] for name, job in jobs.items()}
        self.assertEqual(len(set(self.sha.values())), len(RECIPES))
        with open(self.doomed, 'w', encoding='utf-8') as file:
            file.write(self.sha['doomed'] + '\n')
        fleet.retort('class', 'assign', 'any', self.sha['first'])
        for agent in AGENTS:
            fleet.serving(agent, self.sha['first'])

    def start_agent(self, name):
        self.fleet.start_agent(name, '--probation-seconds', '1', serve=self.serve)

    def submit(self, text):
        path = self.fleet.path('recipe.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)
        return self.fleet.retort('job', 'submit', path)['id']

    def create(self, artifact, *options):
        return self.fleet.retort(
            'rollout', 'create', '--class', 'any=' + self.sha[artifact], '--stage', '1', '--stage', '100%', '--holdout', '1',
            '--soak', '1', '--canary', 'judged', '--min-agreement', '50', '--on-fail', 'rollback', *options)['id']

    def track(self, rollout):
        """The class's state, or {} while the coordinator is away."""
        run = self.fleet.run_retort('-o', 'json', 'rollout', 'show', rollout)
        if run.returncode != 0:
            return {}
        shown = json.loads(run.stdout)
        return {**shown['classes'][0], 'members': shown['members']}

    def ended(self, rollout, state, seconds=60):
        def probe():
            track = self.track(rollout)
            self.assertNotEqual(track.get('state'), 'paused', track)
            return track if track.get('state') in ('completed', 'rolled_back') else None

        track = self.fleet.wait(f'the end of {rollout}', probe, seconds=seconds)
        self.assertEqual(track['state'], state, track)
        return track

    def restart_coordinator(self):
        with contextlib.suppress(ProcessLookupError):
            self.fleet.coordinator.kill()
        self.fleet.coordinator.wait()
        self.fleet.start_coordinator('--heartbeat-millis', '1000')

    def devices(self):
        return {device['name']: device for device in self.fleet.retort('device', 'ls')}

    def test_good_and_bad(self):
        self.prepare()
        fleet = self.fleet
        # A good one, with the coordinator and an agent killed in its middle.
        rollout = self.create('good')
        fleet.wait('the first stage', lambda: self.track(rollout).get('state') == 'soaking')
        self.restart_coordinator()
        fleet.wait('the second stage', lambda: self.track(rollout).get('stage') == 2)
        victim = AGENTS[0]
        fleet.agents[victim].kill()
        fleet.agents[victim].wait()
        self.start_agent(victim)
        track = self.ended(rollout, 'completed')
        verdicts = {gate['gate']: gate['verdict'] for gate in track['gates']}
        self.assertEqual(verdicts, {'install': 'pass', 'canary': 'pass'}, track['gates'])
        for agent in AGENTS:
            fleet.serving(agent, self.sha['good'])
        self.assertEqual(fleet.retort('class', 'show', 'any')['artifact'], self.sha['good'])
        self.start_agent('late')  # joins the class afterwards
        fleet.serving('late', self.sha['good'])

        # Bad ones go no further than one device, and that one goes back; the holdout hears of nothing.
        for bad, gate in (('doomed', 'gate install'), ('stranger', 'gate canary')):
            before = {name: device['desired']['generation'] for name, device in self.devices().items()}
            rollout = self.create(bad)
            watch = fleet.run_retort('rollout', 'watch', rollout)
            self.assertEqual(watch.returncode, 1, watch.stdout + watch.stderr)
            track = self.ended(rollout, 'rolled_back')
            self.assertIn(gate, track['reason'])
            told = [member['name'] for member in track['members'] if member['told']]
            self.assertEqual(len(told), 1, track['members'])
            self.assertEqual([m['state'] for m in track['members'] if m['state'] != 'holdout'], ['returned'])
            for name, device in self.devices().items():
                fleet.serving(name, self.sha['good'])
                if name not in told:
                    self.assertEqual(device['desired']['generation'], before[name], name)
        with open(fleet.path(told[0] + '.log'), encoding='utf-8') as file:
            self.assertIn(' 0 B to pull', [line for line in file if ' to pull' in line][-1], 'the way back needs no download')

        # Killed at exact places, it ends alike.
        goal = 'first'
        for point in ('rolling.saved', 'completed.saved'):
            self.fleet.env['RETORT_FAIL_POINT'] = 'coordinator.rollout.' + point
            self.restart_coordinator()
            del self.fleet.env['RETORT_FAIL_POINT']
            fleet.wait('the fleet', lambda: len([d for d in self.devices().values() if d['online']]) == 7)
            rollout = self.create(goal)
            self.assertEqual(self.fleet.coordinator.wait(timeout=60), -signal.SIGKILL)
            self.fleet.start_coordinator('--heartbeat-millis', '1000')
            self.ended(rollout, 'completed')
            for name in self.devices():
                fleet.serving(name, self.sha[goal])
            goal = 'good' if goal == 'first' else 'first'

        # As a file: begun once, and its events are told.
        with open(fleet.path('rollout.yaml'), 'w', encoding='utf-8') as file:
            file.write(f'kind: Rollout\nname: filed\nclasses: {{any: {self.sha[goal][:16]}}}\nstages: [{{percent: 100}}]\n'
                       'soak_seconds: 1\n')
        with open(fleet.path('events'), 'wb') as out:
            watching = subprocess.Popen([harness.program('retort'), 'events', '--kinds', 'rollout', '-o', 'json'],
                                        stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=fleet.env)
        self.addCleanup(watching.wait)
        self.addCleanup(watching.kill)

        def apply(*options):
            run = fleet.run_retort('apply', '-f', fleet.path('rollout.yaml'), *options)
            self.assertEqual(run.returncode, 0, run.stderr)
            return run.stdout

        def told():
            with open(fleet.path('events'), encoding='utf-8') as file:
                return file.read()

        fleet.wait('the stream', lambda: 'hello' in told() or told())
        self.assertIn('would change', apply('--dry-run'))
        self.assertIn('applied', apply())
        self.ended('filed', 'completed')
        fleet.wait('the event', lambda: '"state":"completed"' in told().replace(' ', ''))
        self.assertEqual(apply(), 'rollout filed: unchanged\n')

    def test_commands(self):
        fleet = self.fleet
        fleet.start_coordinator()
        fleet.retort('class', 'set', 'any')
        self.assertEqual(fleet.run_retort('rollout', 'ls').stdout, 'no rollouts\n')
        for arguments, code, text in ((('create', '--class', 'any=0123456789'), 3, '0123456789'),
                                      (('create', '--class', 'any'), 3, 'CLASS=ARTIFACT'),
                                      (('create', '--class', 'any=0123456789', '--stage', 'all'), 3, 'PERCENT%'),
                                      (('pause', 'roll-000000000000'), 3, 'there is no rollout'),
                                      (('create', '--on-fail', 'explode'), 2, '--on-fail')):
            run = fleet.run_retort('rollout', *arguments)
            self.assertEqual(run.returncode, code, arguments)
            self.assertIn(text, run.stderr + run.stdout)
        for verb in ('create', 'pause', 'resume', 'abort', 'rollback', 'watch', 'ls', 'show'):
            self.assertEqual(fleet.run_retort('rollout', verb, '--help').returncode, 0, verb)


if __name__ == '__main__':
    harness.run()
