"""Sealed students (retort-agent run --seal): encrypted on the disk, the same answers, and back after a kill."""
import os
import signal
import unittest

import harness

RECIPE = 'version: 1\nteacher: {id: tiny}\npasses:\n  - export: {file: whole.gguf, format: FORMAT, label: whole}\n'


class Seal(harness.FleetTest):
    def completion_of_copy(self, sha256, name):
        """What the artifact says where it is served as it is."""
        fleet, copy, port_file = self.fleet, self.fleet.path(name + '.gguf'), self.fleet.path(name + '.port')
        self.assertEqual(fleet.run_retort('artifact', 'get', sha256, copy).returncode, 0)
        serve = fleet.start(name, [harness.program('retort-serve'), copy, '--port', '0', '--port-file', port_file])
        port = fleet.wait('the copy', lambda: os.path.exists(port_file) and open(port_file, encoding='ascii').read().strip(), serve)
        text = harness.complete(f'http://127.0.0.1:{port}', 'the small', 32)
        serve.kill()
        serve.wait()
        return text

    def test_same_answers_and_nothing_on_the_disk(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '1')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher'), hidden=128, layers=4, ffn=512), '--name', 'tiny')
        fleet.retort('class', 'set', 'any')
        fleet.start_agent('one', '--seal', '--probation-seconds', '0.3')
        packed = fleet.path('agent-one', 'packed')
        for kind in ('F16', 'Q8_0', 'Q4_0', 'F32'):
            recipe = fleet.path('recipe.yaml')
            with open(recipe, 'w', encoding='utf-8') as file:
                file.write(RECIPE.replace('FORMAT', kind))
            sha256 = fleet.job_done(fleet.retort('job', 'submit', recipe)['id'])['artifacts'][0]['sha256']
            fleet.retort('class', 'assign', 'any', sha256)
            text = harness.complete(fleet.serving('one', sha256)['serve_url'], 'the small', 32)
            self.assertEqual(self.completion_of_copy(sha256, kind), text)

            def settled():
                status = fleet.status('one')
                return status if status.get('state') == 'idle' and status.get('sealed') else None

            status = fleet.wait('the commit', settled)
            with open(fleet.path('agent-one', 'slots', status['slot'], 'model.gguf'), 'rb') as file:
                self.assertEqual(file.read(8), b'RTSEALED')
            self.assertEqual(os.listdir(packed) if os.path.exists(packed) else [], [])
            os.kill(status['serve_pid'], signal.SIGKILL)
            fleet.wait('another process', lambda old=status: fleet.status('one').get('serve_pid') not in (None, old['serve_pid']))
            self.assertEqual(harness.complete(fleet.serving('one', sha256)['serve_url'], 'the small', 32), text)


if __name__ == '__main__':
    harness.run()
