#!/usr/bin/env python3
"""What an operator does with the real coordinator: TLS, scopes, files, audit log, events, backup and restore."""
import json
import os
import shutil
import subprocess
import time
import unittest

import harness

FLEET = '''kind: Class
name: small
priority: 10
rules: {max_memory_bytes: 64MiB, labels: {site: hall}}
budgets: {artifact_bytes: 1200KiB}
---
kind: Token
name: dashboard
scope: viewer
expires: 90d
'''


class Operator(unittest.TestCase):
    def setUp(self):
        self.fleet = harness.Fleet()
        self.addCleanup(self.fleet.close)
        self.fleet.env['HOME'] = self.fleet.path('home')

    def plain(self, *arguments, status=0):
        run = self.fleet.run_retort(*arguments)
        self.assertEqual(run.returncode, status, run.stdout + run.stderr)
        return run.stdout if status == 0 else run.stderr

    def coordinator(self, *arguments, status=0):
        run = subprocess.run([harness.program('retort-coordinator'), *arguments], capture_output=True, text=True,
                             stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(run.returncode, status, run.stdout + run.stderr)
        return run.stdout + run.stderr

    def test_tls_is_pinned(self):
        fleet = self.fleet
        fleet.start_coordinator('--tls', 'on')
        fingerprint = fleet.info['fingerprint']
        self.assertTrue(fleet.rest.startswith('https://'))
        self.assertIn(fingerprint, self.plain('status', status=6))  # no authority vouches for it
        self.plain('--fingerprint', fingerprint, 'status')
        self.plain('--fingerprint', fingerprint.removeprefix('sha256:').upper(), 'status')
        self.assertIn('not the pinned one', self.plain('--fingerprint', 'sha256:' + '0' * 64, 'status', status=6))
        self.plain('status', status=6)  # nothing was kept
        self.plain('--trust-new', 'status')
        self.plain('status')  # kept
        fleet.coordinator.terminate()
        fleet.coordinator.wait()
        for name in ('server.crt', 'server.key'):
            os.remove(fleet.path('data', 'tls', name))
        fleet.start_coordinator('--tls', 'on')
        self.assertNotEqual(fleet.info['fingerprint'], fingerprint)
        told = self.plain('status', status=6)
        self.assertIn(fingerprint, told)
        self.assertIn(fleet.info['fingerprint'], told)
        self.plain('--trust-new', 'status', status=6)  # a changed certificate is not new
        refused = self.coordinator('serve', '--data', fleet.path('other'), '--rest-listen', '0.0.0.0:0', '--tls', 'off',
                                   status=3)
        self.assertIn('loopback', refused)

    def test_files_scopes_and_the_audit_log(self):
        fleet = self.fleet
        fleet.start_coordinator()
        with open(fleet.path('fleet.yaml'), 'w', encoding='utf-8') as file:
            file.write(FLEET)
        shown = self.plain('apply', '-f', fleet.path('fleet.yaml'), '--dry-run')
        self.assertIn('+ rules.max_memory_bytes: 67108864', shown)
        self.assertEqual(fleet.retort('class', 'ls'), [])
        token = [line for line in self.plain('apply', '-f', fleet.path('fleet.yaml')).splitlines() if '.' in line][-1]
        self.assertEqual(self.plain('apply', '-f', fleet.path('fleet.yaml')),
                         'class small: unchanged\ntoken dashboard (viewer): unchanged\n')
        self.assertIn('max_memory_bytes: 67108864', self.plain('-o', 'yaml', 'class', 'show', 'small'))
        self.plain('--token', token, 'class', 'ls')
        self.assertIn("scope 'operator'", self.plain('--token', token, 'class', 'set', 'small', '--priority', '2', status=6))
        head = fleet.path('head.json')
        self.plain('audit', 'verify', '--write-head', head)
        self.plain('class', 'set', 'small', '--priority', '3')
        self.plain('audit', 'verify', '--head', head)
        self.assertIn('setClass', self.plain('audit', 'ls'))
        with open(head, encoding='utf-8') as file:
            kept = json.load(file)
        kept['head']['hash'] = '0' * 64
        with open(head, 'w', encoding='utf-8') as file:
            json.dump(kept, file)
        self.assertIn('written anew', self.plain('audit', 'verify', '--head', head, status=3))

    def test_backup_while_running_and_restore(self):
        fleet = self.fleet
        fleet.start_coordinator()
        self.plain('class', 'set', 'small', '--max-memory', '1MiB')
        self.plain('backup', 'create', fleet.path('backup'))
        self.plain('class', 'set', 'later', '--max-memory', '2MiB')
        self.assertIn('retort backup create', self.coordinator('backup', '--data', fleet.path('data'), '--to',
                                                               fleet.path('other'), status=3))
        key = fleet.info['server_key']
        fleet.coordinator.kill()
        fleet.coordinator.wait()
        self.assertIn('whole', self.coordinator('check', '--data', fleet.path('data')))
        os.rename(fleet.path('data'), fleet.path('lost'))
        self.assertIn('whole', self.coordinator('restore', '--from', fleet.path('backup'), '--data', fleet.path('data')))
        # A backup holds no token in the clear: operators have theirs.
        shutil.copy(fleet.path('lost/operator.token'), fleet.path('data/operator.token'))
        fleet.start_coordinator()
        self.assertEqual(fleet.info['server_key'], key)
        self.assertEqual([c['name'] for c in fleet.retort('class', 'ls')], ['small'])
        self.plain('audit', 'verify')

    def test_events_show_a_device_as_it_enrols(self):
        fleet = self.fleet
        fleet.start_coordinator()
        self.plain('class', 'set', 'any')
        with open(fleet.path('events'), 'wb') as out:
            watching = subprocess.Popen([harness.program('retort'), 'events', '--kinds', 'device', '-o', 'json'],
                                        stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=fleet.env)
        self.addCleanup(watching.wait)
        self.addCleanup(watching.kill)
        time.sleep(0.5)
        fleet.start_agent('camera')

        def seen():
            with open(fleet.path('events'), encoding='utf-8') as file:
                return '"online":true' in file.read()
        fleet.wait('the event', seen, fleet.agents['camera'])


if __name__ == '__main__':
    harness.run()
