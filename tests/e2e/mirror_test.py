"""A mirror near the devices: a folder that `retort artifact mirror` made, served by nginx.

The agent is killed in mid-pull, then the mirror; what is served in the end is the right file, and what the mirror brought
was not asked of the coordinator again.
"""
import hashlib
import os
import re
import signal
import socket
import urllib.request

import harness

LARGE = '''version: 1
seed: 5
data:
  train: {{dataset: train}}
passes:
  - train: {{init: {{hidden: 512, layers: 8, heads: 8, kv_heads: 8, ffn: 1536, context: 64, tokenizer: {tokenizer}}}, tokens: 128, batch_tokens: 64, learning_rate: 1e-4}}
  - export: {{file: large.gguf, format: F16, label: large}}
'''
SITE = '''kind: Site
name: hall
mirrors: [{url}]
'''


class Mirror(harness.FleetTest):
    def start_nginx(self, root):
        """nginx at 1 MB/s; its address."""
        own = self.fleet.path('nginx')
        os.makedirs(own)
        for _ in range(5):
            with socket.create_server(('127.0.0.1', 0)) as free:
                port = free.getsockname()[1]
            paths = ' '.join(f'{what}_temp_path {own}/{what};' for what in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
            with open(os.path.join(own, 'nginx.conf'), 'w', encoding='utf-8') as file:
                file.write(f'daemon off; master_process off; pid {own}/pid; error_log {own}/error.log; events {{}}\n'
                           f'http {{ access_log {own}/access.log; {paths}\n'
                           f'server {{ listen 127.0.0.1:{port}; root {root}; limit_rate 1m; }} }}\n')
            nginx = self.fleet.start('nginx-' + str(port), ['/usr/sbin/nginx', '-c', os.path.join(own, 'nginx.conf')])
            while nginx.poll() is None:
                try:
                    socket.create_connection(('127.0.0.1', port), timeout=1).close()
                    return nginx, f'http://127.0.0.1:{port}'
                except OSError:
                    pass
        self.fail('nginx does not start (scripts/bootstrap installs it):\n' + self.fleet.logs())

    def sent_by_coordinator(self):
        with open(self.fleet.path('data', 'operator.token'), encoding='utf-8') as file:
            request = urllib.request.Request(self.fleet.rest + '/metrics',
                                             headers={'Authorization': 'Bearer ' + file.read().strip()})
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        return float(re.search(r'^retort_fleet_chunk_bytes_total (\S+)$', text, re.M).group(1))

    def test_kills_in_mid_pull(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2')
        tokenizer = harness.make_teacher(fleet.path('teacher'))
        fleet.retort('dataset', 'import', harness.make_texts(fleet.path('train.jsonl'), 300, 1), '--name', 'train')
        fleet.retort('class', 'set', 'any')
        with open(fleet.path('recipe.yaml'), 'w', encoding='utf-8') as file:
            file.write(LARGE.format(tokenizer=tokenizer))
        job = fleet.job_done(fleet.retort('job', 'submit', fleet.path('recipe.yaml'))['id'], seconds=240)
        self.assertEqual(job['state'], 'succeeded', str(job) + fleet.logs())
        artifact = job['artifacts'][-1]
        self.assertGreater(artifact['bytes'], 12 << 20)

        tree = fleet.path('tree')
        self.assertEqual(fleet.retort('artifact', 'mirror', tree), {'brought': 1, 'there': 0})
        path = os.path.join(tree, artifact['sha256'][:2], artifact['sha256'])
        with open(path, 'rb') as file:
            self.assertEqual(hashlib.sha256(file.read()).hexdigest(), artifact['sha256'])
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o644)
        self.assertEqual(fleet.retort('artifact', 'mirror', tree), {'brought': 0, 'there': 1})
        self.assertEqual(sorted(os.listdir(os.path.dirname(path))), [artifact['sha256']])

        nginx, url = self.start_nginx(tree)
        with open(fleet.path('site.yaml'), 'w', encoding='utf-8') as file:
            file.write(SITE.format(url=url))
        applied = fleet.run_retort('apply', '-f', fleet.path('site.yaml'))
        self.assertEqual((applied.returncode, applied.stderr), (0, ''))
        self.assertEqual(fleet.run_retort('apply', '-f', fleet.path('site.yaml')).stdout, 'site hall: unchanged\n')
        self.assertIn(url, fleet.run_retort('site', 'ls').stdout)

        fleet.start_agent('one', '--label', 'site=hall')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'any', fleet.agents['one'])
        fleet.retort('class', 'assign', 'any', artifact['sha256'])

        def done():
            return fleet.status('one').get('bytes_done', 0)

        fleet.wait('some of the pull', lambda: done() > 2 << 20, fleet.agents['one'])
        self.assertEqual(fleet.status('one')['mirror'], url)
        os.kill(fleet.agents['one'].pid, signal.SIGKILL)
        fleet.agents['one'].wait()
        before = done()
        os.remove(fleet.path('one.json'))
        fleet.start_agent('one', '--label', 'site=hall')
        fleet.wait('the pull to go on', lambda: done() >= before + (2 << 20), fleet.agents['one'])
        self.assertEqual(self.sent_by_coordinator(), 0)
        nginx.kill()
        nginx.wait()
        after = done()
        fleet.serving('one', artifact['sha256'])
        self.assertLessEqual(self.sent_by_coordinator(), artifact['bytes'] - after + (512 << 10))
        self.assertGreater(self.sent_by_coordinator(), 0)


if __name__ == '__main__':
    harness.run()
