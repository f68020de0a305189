#!/usr/bin/env python3
"""scripts/quickstart finds and ends everything that it started, whatever session or parent it has by then."""
import importlib.util
import os
import subprocess
import sys
import time
import unittest
import uuid

sys.dont_write_bytecode = True
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '../../..'))
SPEC = importlib.util.spec_from_file_location('quickstart', os.path.join(ROOT, 'scripts/quickstart.py'))
quickstart = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(quickstart)


class Stop(unittest.TestCase):
    def start(self, script):
        """Runs a shell script under a mark of its own until it has said that it is ready."""
        mark = uuid.uuid4().hex
        shell = subprocess.Popen(['bash', '-c', script], stdout=subprocess.PIPE, env={**os.environ, quickstart.MARK: mark})
        self.addCleanup(shell.stdout.close)
        self.addCleanup(shell.wait)
        self.assertEqual(shell.stdout.readline(), b'ready\n')
        return mark

    def test_sessions_and_orphans_are_found(self):
        mark = self.start('(setsid sleep 300 > /dev/null & setsid bash -c "sleep 301 & sleep 302" > /dev/null &) ; '
                          'sleep 0.3; echo ready; exec sleep 303 > /dev/null')
        found = quickstart.processes_with(mark)
        self.assertGreaterEqual(len(found), 4)
        quickstart.stop_all(mark)
        self.assertEqual(quickstart.processes_with(mark), set())
        for pid in found:
            with self.assertRaises((FileNotFoundError, ProcessLookupError)):
                with open(f'/proc/{pid}/stat', encoding='ascii') as file:
                    if file.read().rsplit(')', 1)[1].split()[0] == 'Z':  # an orphan that nobody reaped yet
                        raise ProcessLookupError

    def test_one_that_does_not_listen_is_killed(self):
        mark = self.start('trap "" TERM; echo ready; while :; do sleep 0.1; done > /dev/null')
        started = time.monotonic()
        quickstart.stop_all(mark, patience=1)
        self.assertGreaterEqual(time.monotonic() - started, 1)
        self.assertEqual(quickstart.processes_with(mark), set())

    def test_others_are_left_alone(self):
        other = self.start('echo ready; exec sleep 300 > /dev/null')
        mine = self.start('echo ready; exec sleep 300 > /dev/null')
        bystander = quickstart.processes_with(other) - {os.getpid()}
        self.assertTrue(bystander)
        # Both are children of this process, so each stop sees them: the mark of a stranger is what counts
        # for a process that is not ours.
        stranger = subprocess.run(
            [sys.executable, '-c', 'import importlib.util, sys; sys.dont_write_bytecode = True\n'
             f's = importlib.util.spec_from_file_location("q", {os.path.join(ROOT, "scripts/quickstart.py")!r})\n'
             'q = importlib.util.module_from_spec(s); s.loader.exec_module(q)\n'
             f'q.stop_all({mine!r})'], check=True)
        self.assertEqual(stranger.returncode, 0)
        self.assertTrue(any(open(f'/proc/{pid}/cmdline', 'rb').read().startswith(b'sleep') for pid in bystander))
        quickstart.stop_all(other)


if __name__ == '__main__':
    unittest.main(verbosity=2)
