"""Trust as an operator handles it: root taken off the coordinator, changes signed elsewhere, devices let in by hand, a
device's key changed, a device revoked; with real agents that follow all the while."""
import json
import os
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


if __name__ == '__main__':
    harness.run()
