"""scripts/quickstart stopped at different moments leaves no process, cgroup or folder behind."""
import glob
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

import harness


class Interrupt(unittest.TestCase):
    def interrupted_at(self, moment, number=signal.SIGINT, more_seconds=0.0):
        """Runs until a line that holds `moment` was printed, then sends the signal."""
        mark = uuid.uuid4().hex
        with tempfile.TemporaryDirectory() as temporary:
            process = subprocess.Popen(
                [sys.executable, os.path.join(harness.ROOT, 'scripts/quickstart.py'), '--bin', harness.BIN, '--tokens', '50000'],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True, env={**os.environ, harness.quickstart.MARK: mark, 'TMPDIR': temporary})
            output = ''
            try:
                for line in process.stdout:
                    output += line
                    if moment in line:
                        break
                else:
                    self.fail(f'"{moment}" never came:\n{output}')
                time.sleep(more_seconds)
                started = time.monotonic()
                os.killpg(process.pid, number)
                output += process.communicate(timeout=30)[0]
                self.assertEqual(process.returncode, 130, output)
                print(f'  stopped in {time.monotonic() - started:.1f} s', flush=True)
                self.assertEqual(harness.quickstart.processes_with(mark), set(), output)
                self.assertEqual(glob.glob(f'/sys/fs/cgroup/**/retort-quickstart-{mark[:8]}', recursive=True), [])
                self.assertEqual(os.listdir(temporary), [], output)
            finally:
                if process.poll() is None:
                    process.kill()
                harness.quickstart.stop_all(mark)

    def setUp(self):
        if not os.path.exists(os.path.join(harness.ROOT, 'scripts/demo-teacher/model/model.safetensors')):
            self.skipTest('the demo teacher is not here')
        if subprocess.run(['apt-cache', 'show', 'bash'], capture_output=True).returncode != 0:
            self.skipTest('apt-cache knows no packages here')

    def test_at_the_start(self):
        self.interrupted_at('Data folder')

    def test_while_the_coordinator_starts(self):
        self.interrupted_at('== Coordinator', more_seconds=0.05)

    def test_while_the_teacher_is_imported(self):
        self.interrupted_at('== Demo teacher', signal.SIGTERM, more_seconds=0.2)

    def test_while_the_agents_start(self):
        self.interrupted_at('== Three devices', more_seconds=0.3)

    def test_while_a_job_runs(self):
        self.interrupted_at('distil.soft', more_seconds=1)


if __name__ == '__main__':
    harness.run()
