#!/usr/bin/env python3
"""The client of common/trust over HTTP, against metadata of a signer that shares no code with it: JSON made here, keys
and signatures by the openssl program (Ed25519, RSA-PSS, ECDSA)."""
import copy
import datetime
import hashlib
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

CLIENT = ''


def canonical(value):
    """OLPC canonical JSON."""
    if isinstance(value, str):
        return '"' + value.replace('\\', '\\\\').replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return '{' + ','.join(canonical(k) + ':' + canonical(value[k]) for k in sorted(value)) + '}'
    if isinstance(value, list):
        return '[' + ','.join(map(canonical, value)) + ']'
    return json.dumps(value)


def openssl(*arguments, data=None):
    return subprocess.run(['openssl', *arguments], input=data, capture_output=True, check=True).stdout


class Key:
    def __init__(self, folder, kind):
        self.kind = kind
        self.path = os.path.join(folder, f'{kind}-{os.urandom(4).hex()}.pem')
        if kind == 'ed25519':
            openssl('genpkey', '-algorithm', 'ed25519', '-out', self.path)
            public = openssl('pkey', '-in', self.path, '-pubout', '-outform', 'DER')[-32:].hex()
            self.public = {'keytype': 'ed25519', 'scheme': 'ed25519', 'keyval': {'public': public}}
        elif kind == 'rsa':
            openssl('genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048', '-out', self.path)
            self.public = {'keytype': 'rsa', 'scheme': 'rsassa-pss-sha256', 'keyval': {'public': self.pem()}}
        else:
            openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', self.path)
            self.public = {'keytype': 'ecdsa', 'scheme': 'ecdsa-sha2-nistp256', 'keyval': {'public': self.pem()}}
        self.id = hashlib.sha256(canonical(self.public).encode()).hexdigest()

    def pem(self):
        return openssl('pkey', '-in', self.path, '-pubout').decode()

    def sign(self, data):
        if self.kind == 'ed25519':
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                return openssl('pkeyutl', '-sign', '-rawin', '-inkey', self.path, '-in', file.name).hex()
        options = ['-sigopt', 'rsa_padding_mode:pss', '-sigopt', 'rsa_pss_saltlen:32'] if self.kind == 'rsa' else []
        return openssl('dgst', '-sha256', *options, '-sign', self.path, data=data).hex()


def signed(body, *keys):
    data = canonical(body).encode()
    return json.dumps({'signed': body, 'signatures': [{'keyid': k.id, 'sig': k.sign(data)} for k in keys]}).encode()


def describe(data, version):
    return {'version': version, 'length': len(data), 'hashes': {'sha256': hashlib.sha256(data).hexdigest()}}


def later(days=30):
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    return moment.strftime('%Y-%m-%dT%H:%M:%SZ')


class Repository:
    def __init__(self, folder, kinds=('ed25519',) * 4):
        self.folder = folder
        self.files, self.targets_files, self.slow = {}, {}, set()
        self.keys = dict(zip(('root', 'targets', 'snapshot', 'timestamp'), (Key(folder, kind) for kind in kinds)))
        head = {'spec_version': '1.0.31', 'version': 1}
        self.root = {**head, '_type': 'root', 'expires': later(), 'consistent_snapshot': True, 'keys': {}, 'roles': {}}
        for role, key in self.keys.items():
            self.put_key(role, key)
        self.targets = {**head, '_type': 'targets', 'expires': later(), 'targets': {}}
        self.snapshot = {**head, '_type': 'snapshot', 'expires': later(), 'meta': {}}
        self.timestamp = {**head, '_type': 'timestamp', 'expires': later(), 'meta': {}}
        self.publish_root()
        self.publish(bump=False)

    def put_key(self, role, key):
        self.keys[role] = key
        self.root['keys'][key.id] = key.public
        self.root['roles'][role] = {'keyids': [key.id], 'threshold': 1}

    def publish_root(self, *more):
        self.files[f"{self.root['version']}.root.json"] = signed(self.root, self.keys['root'], *more)

    def add(self, name, data):
        hashes = {'sha256': hashlib.sha256(data).hexdigest(), 'sha512': hashlib.sha512(data).hexdigest()}
        self.targets['targets'][name] = {'length': len(data), 'hashes': hashes}
        folder, _, base = name.rpartition('/')
        self.targets_files[(folder + '/' if folder else '') + hashes['sha256'] + '.' + base] = data

    def publish(self, bump=True):
        for body in (self.targets, self.snapshot, self.timestamp):
            body['version'] += bump
        data = signed(self.targets, self.keys['targets'])
        self.files[f"{self.targets['version']}.targets.json"] = data
        self.snapshot['meta']['targets.json'] = describe(data, self.targets['version'])
        data = signed(self.snapshot, self.keys['snapshot'])
        self.files[f"{self.snapshot['version']}.snapshot.json"] = data
        self.timestamp['meta']['snapshot.json'] = describe(data, self.snapshot['version'])
        self.sign_timestamp()

    def sign_timestamp(self, *keys):
        self.files['timestamp.json'] = signed(self.timestamp, *(keys or [self.keys['timestamp']]))


class Test(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.base = self.folder.name
        outer = self
        self.sent = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                kind, _, name = urllib.parse.unquote(self.path).lstrip('/').partition('/')
                files = outer.repository.files if kind == 'metadata' else outer.repository.targets_files
                data = files.get(name)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                outer.sent = 0
                try:
                    if name in outer.repository.slow:
                        for byte in data:
                            self.wfile.write(bytes([byte]))
                            time.sleep(0.05)
                    elif callable(data):
                        while True:
                            outer.sent += self.wfile.write(b' ' * 65536)
                    else:
                        self.wfile.write(data)
                except OSError:
                    pass

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.folder.cleanup)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def begin(self, **options):
        self.repository = Repository(self.base, **options)
        path = os.path.join(self.base, 'root.json')
        with open(path, 'wb') as file:
            file.write(self.repository.files['1.root.json'])
        self.assertEqual(self.client('init', path), '')

    def client(self, *words, target=''):
        url = f'http://127.0.0.1:{self.server.server_port}'
        done = subprocess.run([CLIENT, '--metadata-dir', os.path.join(self.base, 'trusted'), '--metadata-url', url + '/metadata',
                               '--target-name', target, '--target-base-url', url + '/targets/',
                               '--target-dir', os.path.join(self.base, 'got'), *words], capture_output=True, text=True)
        self.assertIn(done.returncode, (0, 1), done.stderr)
        self.assertEqual(done.returncode == 0, done.stderr == '')
        return done.stderr

    def version(self, role):
        with open(os.path.join(self.base, 'trusted', role + '.json'), encoding='utf-8') as file:
            return json.load(file)['signed']['version']

    def test_keys_of_each_kind(self):
        for kinds in [('rsa', 'ecdsa', 'ed25519', 'rsa'), ('ecdsa', 'rsa', 'rsa', 'ed25519'), ('ed25519', 'ed25519', 'ecdsa', 'ecdsa')]:
            with self.subTest(kinds):
                self.begin(kinds=kinds)
                self.repository.add('folder/a file é.bin', b'some bytes')
                self.repository.publish()
                self.assertEqual(self.client('refresh'), '')
                self.assertEqual(self.client('download', target='folder/a file é.bin'), '')
                self.assertIn(b'some bytes', [open(os.path.join(self.base, 'got', name), 'rb').read()
                                              for name in os.listdir(os.path.join(self.base, 'got'))])
                subprocess.run(['rm', '-r', os.path.join(self.base, 'trusted')], check=True)

    def test_attacks(self):
        self.begin()
        self.repository.add('a', b'1234')
        self.repository.publish()
        self.assertEqual(self.client('refresh'), '')
        good = copy.deepcopy(self.repository)

        def attack(expected, change):
            self.repository = copy.deepcopy(good)
            self.repository.timestamp['version'] += 5
            self.repository.snapshot['version'] += 5
            change(self.repository)
            subprocess.run(['rm', '-rf', os.path.join(self.base, 'trusted')], check=True)
            subprocess.run(['cp', '-r', os.path.join(self.base, 'kept'), os.path.join(self.base, 'trusted')], check=True)
            self.assertIn(expected, self.client('refresh') or 'it was taken')

        subprocess.run(['cp', '-r', os.path.join(self.base, 'trusted'), os.path.join(self.base, 'kept')], check=True)

        def rollback(r):
            r.timestamp['version'] = 1
            r.sign_timestamp()
        attack('rollback', rollback)

        def expired(r):
            r.timestamp['expires'] = later(-1)
            r.publish()
        attack('expired', expired)

        def mix(r):
            r.publish()
            r.files[f"{r.targets['version']}.targets.json"] = good.files['2.targets.json']
        attack('targets', mix)

        def arbitrary(r):
            r.keys['timestamp'] = Key(self.base, 'ed25519')
            r.publish()
        attack('signed by 0', arbitrary)

        def twice(r):
            r.root['version'] = 2
            r.root['roles']['timestamp']['threshold'] = 2
            r.publish_root()
            r.publish()
            r.sign_timestamp(r.keys['timestamp'], r.keys['timestamp'])
        attack('two signatures', twice)

        def version(r):
            r.timestamp['spec_version'] = '2.1.0'
            r.publish()
        attack('2.1.0', version)

        def endless(r):
            r.files['timestamp.json'] = lambda: None
        attack('longer than 16384', endless)
        self.assertLess(self.sent, 8 << 20, 'the client hung up')

        def slow(r):
            r.slow.add('timestamp.json')
            r.timestamp['padding'] = 'x' * 600
            r.publish()
        attack('too slow', slow)

    def test_targets_are_what_was_signed(self):
        self.begin()
        self.repository.add('a', b'1234')
        self.repository.publish()
        name = next(iter(self.repository.targets_files))
        self.repository.targets_files[name] = b'1235'
        self.assertIn('sha256', self.client('download', target='a'))
        self.repository.targets_files[name] = b'12345'
        self.assertIn('longer', self.client('download', target='a'))
        self.assertIn('lists this target', self.client('download', target='b'))
        self.repository.targets_files[name] = b'1234'
        self.assertEqual(self.client('download', target='a'), '')
        self.repository.targets_files.clear()
        self.assertEqual(self.client('download', target='a'), '', 'what is here is not downloaded again')

    def test_root_rotation(self):
        self.begin()
        for kind in ('rsa', 'ecdsa', 'ed25519'):
            old = self.repository.keys['root']
            self.repository.put_key('root', Key(self.base, kind))
            self.repository.root['version'] += 1
            self.repository.publish_root(old)
        self.repository.put_key('timestamp', Key(self.base, 'rsa'))
        self.repository.root['version'] += 1
        self.repository.publish_root()
        self.repository.publish()
        self.assertEqual(self.client('refresh'), '')
        self.assertEqual(self.version('root'), 5)
        self.repository.root['version'] += 1
        self.repository.keys['root'] = old
        self.repository.publish_root()
        self.assertIn('root before', self.client('refresh'))
        self.assertEqual(self.version('root'), 5)

    def test_delegations_and_their_names(self):
        self.begin()
        key = Key(self.base, 'ecdsa')
        name = 'a role/with é'
        self.repository.targets['delegations'] = {
            'keys': {key.id: key.public},
            'roles': [{'name': name, 'keyids': [key.id], 'threshold': 1, 'terminating': True, 'paths': ['d/*']}]}
        role = {'_type': 'targets', 'spec_version': '1.0.31', 'version': 3, 'expires': later(), 'targets': {}}
        top = self.repository.targets
        self.repository.targets = role
        self.repository.add('d/x', b'delegated')
        self.repository.add('e/x', b'not delegated')
        self.repository.targets = top
        self.repository.files[f'3.{name}.json'] = signed(role, key)
        self.repository.snapshot['meta'][name + '.json'] = describe(self.repository.files[f'3.{name}.json'], 3)
        self.repository.publish()
        self.assertEqual(self.client('download', target='d/x'), '')
        self.assertIn('lists this target', self.client('download', target='e/x'))

    def test_without_consistent_snapshots(self):
        self.begin()
        self.repository.root['consistent_snapshot'] = False
        self.repository.root['version'] = 2
        self.repository.publish_root()
        self.repository.add('f/a', b'1234')
        self.repository.publish()
        self.repository.files['snapshot.json'] = self.repository.files.pop('2.snapshot.json')
        self.repository.files['targets.json'] = self.repository.files.pop('2.targets.json')
        self.repository.targets_files = {'f/a': b'1234'}
        self.assertEqual(self.client('download', target='f/a'), '')


if __name__ == '__main__':
    CLIENT = sys.argv.pop(1)
    unittest.main(verbosity=2)
