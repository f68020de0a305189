"""Trust as an operator handles it: root taken off the coordinator, changes signed elsewhere, devices let in by hand, a
device's key changed, a device revoked; with real agents that follow all the while."""
import json
import os
import signal
import subprocess
import unittest

import harness

WHOLE = 'version: 1\nteacher: {id: tiny}\npasses:\n  - export: {file: whole.gguf, format: F16, label: whole}\n'


class Trust(harness.FleetTest):
    def whole(self):
        """The hash of an artifact, made by a job."""
        path = self.fleet.path('recipe.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(WHOLE)
        job = self.fleet.job_done(self.fleet.retort('job', 'submit', path)['id'])
        self.assertEqual(job['state'], 'succeeded', self.fleet.logs())
        return job['artifacts'][0]['sha256']

    def text(self, *arguments):
        run = self.fleet.run_retort(*arguments)
        self.assertEqual(run.returncode, 0, run.stderr)
        return run.stdout

    def test_root_in_other_hands(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '1')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher')), '--name', 'tiny')
        fleet.retort('class', 'set', 'any')
        fleet.start_agent('one')
        sha256 = self.whole()
        fleet.retort('class', 'assign', 'any', sha256)
        fleet.serving('one', sha256)
        status = self.text('trust', 'status')
        self.assertIn('(here)', status)
        self.assertIn('a root key is on this machine', status)

        # Alice is here, of Bob only the public half.
        alice, bob = fleet.path('alice.key'), fleet.path('bob.key')
        public = self.text('trust', 'keygen', bob).strip()
        self.assertEqual(len(public), 64)
        out = self.text('trust', 'init', alice, bob + '.pub', '--threshold', '2')
        self.assertIn('waits for 1 more signature', out)
        draft = fleet.path('root.json')
        with open(draft, 'w', encoding='utf-8') as file:
            file.write(self.text('trust', 'export', 'root'))
        signed = subprocess.run([harness.program('retort'), 'trust', 'sign', draft, '--key', bob], capture_output=True, text=True)
        self.assertEqual(signed.returncode, 0, signed.stderr)
        self.assertIn('root version 2', signed.stderr)
        self.assertIn('published', self.text('trust', 'import', draft))
        status = self.text('trust', 'status')
        self.assertNotIn('a root key is on this machine', status)
        self.assertEqual(json.loads(self.text('trust', 'root', 'show'))['signed']['version'], 2)

        # The coordinator cannot change root alone any more; both together can.
        self.assertIn('waits for', self.text('trust', 'rotate', 'assignment'))
        for key in (alice, bob):
            with open(draft, 'w', encoding='utf-8') as file:
                file.write(self.text('trust', 'export', 'root'))
            subprocess.run([harness.program('retort'), 'trust', 'sign', draft, '--key', key], capture_output=True, check=True)
            out = self.text('trust', 'import', draft)
        self.assertIn('published', out)
        self.assertEqual(fleet.run_retort('trust', 'import', draft).returncode, 3)

        # A device follows both changes: its next assignment is signed with the new key.
        fleet.retort('class', 'assign', 'any', 'none')
        fleet.wait('the device to serve nothing', lambda: not fleet.status('one').get('artifact'))
        fleet.retort('class', 'assign', 'any', sha256)
        fleet.serving('one', sha256)

    def test_devices_by_hand(self):
        fleet = self.fleet
        fleet.start_coordinator()
        token = fleet.retort('token', 'create', '--kind', 'enrolment', '--approve', 'manual')['token']
        with open(fleet.path('enrol'), 'w', encoding='utf-8') as file:
            file.write(token)
        fleet.start_agent('one')

        def devices():
            return fleet.retort('device', 'ls')
        device = fleet.wait('a device that waits', devices)[0]
        self.assertTrue(device['pending'])
        fleet.retort('device', 'accept', device['id'])
        fleet.wait('it to be let in', lambda: fleet.status('one').get('link') == 'up')
        self.assertFalse(devices()[0]['pending'])

        fleet.retort('device', 'rotate', device['id'])
        changed = fleet.wait('a new key', lambda: devices()[0]['public_key'] != device['public_key'] and devices()[0])
        self.assertEqual(changed['id'], device['id'])
        fleet.wait('it to come with it', lambda: fleet.status('one').get('link') == 'up' and devices()[0]['online'])
        with open(fleet.path('agent-one', 'keys', 'curve'), encoding='utf-8') as file:
            self.assertEqual(file.readline().strip(), changed['public_key'])

        # Only the device that the token names comes in with it.
        identity = json.loads(subprocess.run(
            [harness.program('retort-agent'), 'identity', '--state', fleet.path('agent-two'), '--json'],
            capture_output=True, text=True, check=True).stdout)
        token = fleet.retort('token', 'create', '--kind', 'enrolment', '--uses', '5', '--device', identity['public_key'])['token']
        with open(fleet.path('enrol'), 'w', encoding='utf-8') as file:
            file.write(token)
        fleet.start_agent('three', '--hardware-id', 'another')
        fleet.wait('the other one to be refused', lambda: fleet.status('three').get('error_code') == 'denied')
        fleet.start_agent('two')
        fleet.wait('the named one', lambda: fleet.status('two').get('link') == 'up')

        fleet.retort('device', 'revoke', device['id'])
        fleet.wait('the first one to be cut off', lambda: fleet.status('one').get('link') == 'revoked', seconds=5)
        self.assertTrue(os.path.exists(fleet.path('agent-one', 'state.db')))

    def killed_at(self, point, cause):
        """A coordinator that ends at `point`, which `cause` brings about; what it leaves is whole, and another goes on."""
        fleet = self.fleet
        if fleet.coordinator and fleet.coordinator.poll() is None:
            fleet.coordinator.terminate()
            fleet.coordinator.wait()
        fleet.env['RETORT_FAIL_POINT'] = 'coordinator.' + point
        fleet.start_coordinator()
        del fleet.env['RETORT_FAIL_POINT']
        cause()
        self.assertEqual(fleet.coordinator.wait(timeout=60), -signal.SIGKILL, point)
        check = subprocess.run([harness.program('retort-coordinator'), 'check', '--data', fleet.path('data')],
                               capture_output=True, text=True)
        self.assertEqual(check.returncode, 0, point + check.stdout + check.stderr)
        fleet.start_coordinator()

    def test_killed_at_each_note(self):
        fleet = self.fleet

        def devices():
            return fleet.retort('device', 'ls')

        def try_both(noun, cause, wanted):
            """`wanted` after a kill before the note, and after one behind it, once the same was asked for again."""
            for moment in ('saving', 'saved'):
                self.killed_at(f'{noun}.{moment}', cause)
                cause()
                fleet.wait(f'{noun}.{moment}', wanted)

        with self.subTest('the first metadata'):
            for moment in ('saving', 'saved'):
                fleet.env['RETORT_FAIL_POINT'] = 'coordinator.trust.created.' + moment
                with self.assertRaises(AssertionError):
                    fleet.start_coordinator()
                self.assertEqual(fleet.coordinator.wait(timeout=60), -signal.SIGKILL)
            del fleet.env['RETORT_FAIL_POINT']
            fleet.start_coordinator()
            fleet.retort('class', 'set', 'any')

        def let_in(uses, *options):
            token = fleet.retort('token', 'create', '--kind', 'enrolment', '--uses', str(uses), *options)['token']
            with open(fleet.path('enrol'), 'w', encoding='utf-8') as file:
                file.write(token)

        with self.subTest('devices'):
            for moment in ('saving', 'saved'):
                let_in(2)  # a use that was spent before a kill is spent
                self.killed_at('device.enrolled.' + moment, lambda moment=moment: fleet.start_agent(moment))
                fleet.wait('it to be let in', lambda moment=moment: fleet.status(moment).get('link') == 'up')
            self.assertEqual(len(devices()), 2)
            for moment in ('saving', 'saved'):
                let_in(1, '--approve', 'manual')
                name = 'waits-' + moment
                fleet.start_agent(name)
                fleet.wait('a device that waits', lambda name=name: [d for d in devices() if d['name'] == name and d['pending']])
                self.killed_at('device.accepted.' + moment, lambda name=name: fleet.run_retort('device', 'accept', name))
                if moment == 'saving':
                    fleet.retort('device', 'accept', name)
                fleet.wait('it to be let in', lambda name=name: fleet.status(name).get('link') == 'up', seconds=100)

        with self.subTest('a change of key'):
            for point in ('rotate.saving', 'rotate.saved', 'key.saving', 'key.saved'):
                before = next(d for d in devices() if d['name'] == 'saved')
                fleet.wait('the device', lambda: next(d for d in devices() if d['name'] == 'saved')['online'])
                self.killed_at('device.' + point, lambda: fleet.run_retort('device', 'rotate', 'saved'))
                if point == 'rotate.saving':
                    fleet.retort('device', 'rotate', 'saved')

                def changed(key=before['public_key']):
                    device = next(d for d in devices() if d['name'] == 'saved')
                    return device['public_key'] != key and device['online']
                fleet.wait('a new key', changed)

        with self.subTest('revocation'):
            for moment in ('saving', 'saved'):
                name = 'waits-' + moment
                self.killed_at('device.revoked.' + moment, lambda name=name: fleet.run_retort('device', 'revoke', name))
                if moment == 'saving':
                    fleet.retort('device', 'revoke', name)
                self.assertTrue(next(d for d in devices() if d['name'] == name)['revoked'])
                # Told so, or refused at its next handshake.
                fleet.wait('it to be cut off', lambda name=name: fleet.status(name).get('link') != 'up')

        def version(role):
            return next(r for r in fleet.retort('trust', 'status')['roles'] if r['role'] == role)['version']

        with self.subTest('metadata'):
            before = version('root')
            try_both('trust.published', lambda: fleet.run_retort('trust', 'rotate', 'timestamp'), lambda: version('root') > before)
            self.text('trust', 'init', fleet.path('alice.key'))
            try_both('trust.waiting', lambda: fleet.run_retort('trust', 'rotate', 'timestamp'),
                     lambda: [d['role'] for d in fleet.retort('trust', 'status')['drafts']] == ['root'])
            for moment in ('saving', 'saved'):
                fleet.run_retort('trust', 'rotate', 'timestamp')
                self.killed_at('trust.dropped.' + moment, lambda: fleet.run_retort('trust', 'drop', 'root'))
                self.assertEqual(len(fleet.retort('trust', 'status')['drafts']), 1 if moment == 'saving' else 0)


if __name__ == '__main__':
    harness.run()
