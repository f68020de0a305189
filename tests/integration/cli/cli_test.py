#!/usr/bin/env python3
"""The program `retort` against a server that answers from a script: what it sends, prints and exits with.

tests/e2e runs it against the real coordinator.
"""
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

RETORT = ''


class Server:
    """answers: (method, path) -> (status, body[, headers]), or a function of the handler that returns one."""

    def __init__(self, answers):
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get('Content-Length') or 0)
                self.body = self.rfile.read(length)
                outer.requests.append((self.command, self.path, self.body, dict(self.headers)))
                found = answers.get((self.command, self.path), (404, {'title': 'Not found', 'status': 404, 'code': 'not_found',
                                                                      'detail': f'there is no {self.path}'}))
                status, body, *headers = found(self) if callable(found) else found
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class Cli(unittest.TestCase):
    def serve(self, answers):
        self.server = Server(answers)
        self.addCleanup(self.server.close)

    def retort(self, *arguments, status=0):
        run = subprocess.run([RETORT, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
                             env={'RETORT_SERVER': self.server.url, 'RETORT_TOKEN': 'secret', 'HOME': '/nonexistent'})
        self.assertEqual(run.returncode, status, run.stdout + run.stderr)
        return run.stdout if status == 0 else run.stderr

    def test_lists_over_pages_in_both_forms(self):
        self.serve({('GET', '/v1/devices?limit=1000'): (200, {'items': [{'id': 'dev-1', 'online': True}], 'next': 'a b'}),
                    ('GET', '/v1/devices?limit=1000&cursor=a%20b'): (200, {'items': [{'id': 'dev-2', 'name': '\x1b[2J'}], 'next': None})})
        table = self.retort('device', 'ls')
        self.assertIn('dev-1', table)
        self.assertIn('dev-2', table)
        self.assertNotIn('\x1b', table)
        self.assertEqual([d['id'] for d in json.loads(self.retort('device', 'ls', '-o', 'json'))], ['dev-1', 'dev-2'])
        self.assertTrue(all(r[3]['Authorization'] == 'Bearer secret' for r in self.server.requests))

    def test_devices_that_are_not_let_in_say_so(self):
        state = {'actual': {'state': 'serving'}, 'online': False}
        items = [{'id': 'dev-1', **state, 'pending': True}, {'id': 'dev-2', **state, 'revoked': True}, {'id': 'dev-3', **state}]
        self.serve({('GET', '/v1/devices?limit=1000'): (200, {'items': items, 'next': None}),
                    ('GET', '/v1/devices?pending=true&limit=1000'): (200, {'items': items[:1], 'next': None}),
                    ('GET', '/v1/devices?revoked=true&limit=1000'): (200, {'items': items[1:2], 'next': None})})
        rows = [line.split() for line in self.retort('device', 'ls').splitlines()]
        column = rows[0].index('STATE')
        self.assertEqual([row[column] for row in rows[1:]], ['pending', 'revoked', 'serving'])
        self.assertEqual(len(self.retort('device', 'ls', '--pending').splitlines()), 2)
        self.assertIn('dev-2', self.retort('device', 'ls', '--revoked'))

    def test_small_words_are_right(self):
        self.serve({('POST', '/v1/teachers'): (201, {'id': 't1', 'served': False}),
                    ('POST', '/v1/teachers/t1/serve'): (200, {'id': 't1', 'served': True}),
                    ('GET', '/v1/devices?class=small&limit=1'): (200, {'items': [], 'next': None}),
                    ('POST', '/v1/tailor'): (201, {'jobs': [], 'dry_run': False})})
        self.assertEqual(json.loads(self.retort('teacher', 'import', '/x', '--serve', '-o', 'json'))['served'], True)
        run = subprocess.run([RETORT, '--server', self.server.url, 'tailor', '--teacher', 't', '--class', 'small', '--train', 'a',
                              '--held-out', 'b'], capture_output=True, text=True, timeout=30)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("no device is in class 'small'", run.stderr)

    def test_errors_and_exit_statuses(self):
        def problem(status, code):
            return status, {'title': 'T', 'status': status, 'code': code, 'detail': f'detail of {code}'}

        self.serve({('GET', f'/v1/jobs/{code}'): problem(status, code) for status, code in
                    ((401, 'denied'), (400, 'invalid'), (507, 'out_of_budget'), (503, 'unavailable'), (500, 'internal'),
                     (409, 'conflict'))} | {('GET', '/v1/jobs/html'): (502, b'<html>'), ('GET', '/v1/jobs/odd'): (200, b'{"a":')})
        for code, status in (('denied', 6), ('invalid', 3), ('out_of_budget', 4), ('unavailable', 5), ('internal', 1),
                             ('conflict', 3), ('missing', 3), ('html', 5), ('odd', 3)):
            message = self.retort('job', 'show', code, status=status)
            if code not in ('missing', 'html', 'odd'):
                self.assertIn('detail of ' + code, message)
        self.assertIn('--token-file', self.retort('job', 'show', 'denied', status=6))
        self.retort('job', 'show', status=2)
        self.retort('job', 'shwo', 'x', status=2)
        self.retort('class', 'set', 'x', '--file', 'lots', status=2)
        self.retort('token', 'create', '--uses', '0', status=2)

    def test_class_set_keeps_what_is_not_given(self):
        before = {'name': 'small', 'priority': 3, 'rules': {'min_cpu': 1.0}, 'budgets': {'artifact_bytes': 5}, 'generation': 2}
        self.serve({('GET', '/v1/classes/small'): (200, before),
                    ('PUT', '/v1/classes/small'): lambda h: (200, json.loads(h.body)),
                    ('PUT', '/v1/classes/new'): lambda h: (200, json.loads(h.body))})
        self.retort('class', 'set', 'small', '--max-memory', '48MiB', '--label', 'site=hall')
        self.assertEqual(json.loads(self.server.requests[-1][2]),
                         {'priority': 3, 'rules': {'min_cpu': 1.0, 'max_memory_bytes': 48 << 20, 'labels': {'site': 'hall'}},
                          'budgets': {'artifact_bytes': 5}})
        self.retort('class', 'set', 'new', '--file', '1.5K')
        self.assertEqual(json.loads(self.server.requests[-1][2]), {'rules': {}, 'budgets': {'artifact_bytes': 1536}})

    def classes(self, **there):
        """Answers of a coordinator that keeps classes as the real one does: a PUT says all of rules and budgets."""
        empty = {'rules': {'min_memory_bytes': 0, 'max_memory_bytes': 0, 'min_cpu': 0.0, 'max_cpu': 0.0, 'architecture': '',
                           'labels': {}},
                 'budgets': {'artifact_bytes': 0, 'serving_memory_bytes': 0, 'p95_token_seconds': 0.0}}
        kept, versions = {}, {}

        def put(name, body):
            kept[name] = {'name': name, 'priority': body.get('priority') or 0,
                          **{part: {**default, **{k: v for k, v in (body.get(part) or {}).items() if v is not None}}
                             for part, default in empty.items()},
                          'artifact': kept.get(name, {}).get('artifact'), 'generation': 1}
            versions[name] = versions.get(name, 0) + 1

        def answer(name):
            return 200, kept[name], {'ETag': f'"{versions[name]}"'}

        def conflict():
            return 412, {'title': 'precondition failed', 'status': 412, 'code': 'conflict',
                         'detail': 'it is not what it was when you looked'}

        def on_get(handler):
            name = handler.path.rsplit('/', 1)[1]
            if name not in kept:
                return 404, {'title': 'not found', 'status': 404, 'code': 'not_found', 'detail': f"there is no class '{name}'"}
            return answer(name)

        def on_put(handler):
            name = handler.path.rsplit('/', 1)[1]
            match, none = handler.headers['If-Match'], handler.headers['If-None-Match']
            if (match and (name not in kept or match != f'"{versions[name]}"')) or (none == '*' and name in kept):
                return conflict()
            put(name, json.loads(handler.body))
            return answer(name)

        def on_assign(handler):
            name = handler.path.split('/')[3]
            if handler.headers['If-Match'] and handler.headers['If-Match'] != f'"{versions[name]}"':
                return conflict()
            kept[name]['artifact'] = json.loads(handler.body)['artifact']
            versions[name] += 1
            return answer(name)

        for name, body in there.items():
            put(name, body)
        answers = {}
        for name in (*there, 'new'):
            path = f'/v1/classes/{name}'
            answers.update({('GET', path): on_get, ('PUT', path): on_put, ('POST', path + '/assign'): on_assign})
        return kept, answers

    def apply(self, text, *options, status=0):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'fleet.yaml')
            with open(path, 'w', encoding='utf-8') as file:
                file.write(text)
            return self.retort('apply', '-f', path, *options, status=status)

    def test_apply_compares_labels_both_ways(self):
        kept, answers = self.classes(cam={'rules': {'labels': {'site': 'hall', 'floor': '1'}, 'min_cpu': 2.0}})
        self.serve(answers)

        def document(rules):
            return f'kind: Class\nname: cam\nrules: {rules}\n'

        def takes_away(rules, lines, labels):
            told = '  ' + '\n  '.join(lines) + '\n'
            self.assertEqual(self.apply(document(rules), '--dry-run'), 'class cam: would change\n' + told)
            self.assertEqual(self.apply(document(rules)), 'class cam: applied\n' + told)
            self.assertEqual(kept['cam']['rules']['labels'], labels)
            self.assertEqual(self.apply(document(rules)), 'class cam: unchanged\n')

        takes_away('{labels: {site: hall}}', ['- rules.labels.floor: "1"'], {'site': 'hall'})
        takes_away('{labels: {}}', ['- rules.labels.site: "hall"'], {})
        takes_away('{labels: {a: "1"}}', ['+ rules.labels.a: "1"'], {'a': '1'})
        takes_away('{labels: {}, min_cpu: 0.5}',
                   ['- rules.labels.a: "1"', '- rules.min_cpu: 2', '+ rules.min_cpu: 0.5'], {})
        takes_away('{labels: {a: "1"}, min_cpu: 3}',
                   ['+ rules.labels.a: "1"', '- rules.min_cpu: 0.5', '+ rules.min_cpu: 3'], {'a': '1'})
        takes_away('{labels: null, min_cpu: null}', ['- rules.labels.a: "1"', '- rules.min_cpu: 3'], {})

    def test_apply_makes_a_class_that_asks_for_nothing(self):
        kept, answers = self.classes()
        self.serve(answers)
        self.assertIn('+ name: "new"', self.apply('kind: Class\nname: new\n'))
        self.assertIn('new', kept)
        self.assertEqual(self.apply('kind: Class\nname: new\n'), 'class new: unchanged\n')

    def test_changes_say_which_version_they_are_of(self):
        kept, answers = self.classes(cam={'rules': {'labels': {'site': 'hall'}}})
        looked, theirs = answers[('GET', '/v1/classes/cam')], {'priority': 7}

        def look(handler):
            seen = json.loads(json.dumps(looked(handler)))
            answers[('PUT', '/v1/classes/cam')](type('Other', (), {'path': handler.path, 'headers': {'If-Match': None, 'If-None-Match': None},
                                                                  'body': json.dumps(theirs)}))
            return seen

        self.serve({**answers, ('GET', '/v1/classes/cam'): look})
        self.assertIn('not what it was', self.apply('kind: Class\nname: cam\nrules: {min_cpu: 1}\n', status=3))
        self.assertIn('not what it was', self.retort('class', 'set', 'cam', '--min-cpu', '1', status=3))
        self.assertEqual(kept['cam']['priority'], 7)
        self.assertEqual(kept['cam']['rules']['min_cpu'], 0)

    def test_apply_assigns_the_version_that_it_put(self):
        kept, answers = self.classes(cam={})
        self.serve({**answers, ('GET', '/v1/artifacts/abcdef123456'): (200, {'sha256': 'abcdef123456'})})
        self.apply('kind: Class\nname: cam\npriority: 2\nartifact: abcdef123456\n')
        self.assertEqual(kept['cam']['artifact'], 'abcdef123456')
        self.assertTrue(self.server.requests[-1][3]['If-Match'])

    def test_class_set_adds_and_drops_labels(self):
        kept, answers = self.classes(cam={'rules': {'labels': {'site': 'hall', 'floor': '1'}}})
        self.serve(answers)
        self.retort('class', 'set', 'cam', '--label', 'site=', '--label', 'room=9')
        self.assertEqual(kept['cam']['rules']['labels'], {'floor': '1', 'room': '9'})
        self.retort('class', 'set', 'cam', '--label', 'site', status=3)
        self.assertIn('KEY= drops', self.retort('class', 'set', '--help'))

    def test_apply_says_where_it_went_wrong(self):
        kept, answers = self.classes(cam={})
        self.serve({**answers, ('GET', '/v1/rollouts'): (200, {'items': [], 'next': None}),
                    ('GET', '/v1/artifacts/abcdef123456'): (200, {'sha256': 'abcdef123456'})})
        made = 'kind: Class\nname: new\n---\n'
        rollout = 'kind: Rollout\nname: november\nclasses: {%s: %s}\n'
        for text, message in (
                (made + rollout % ('missing', 'abcdef123456'), "document 2 (Rollout november): there is no /v1/classes/missing"),
                (made + rollout % ('new', '4f2a91c07be3'), "document 2 (Rollout november): there is no /v1/artifacts/4f2a91c07be3"),
                (made + 'kind: Site\n', "document 2 (Site): 'name' is missing"),
                (made + 'kind: Class\nname: cam\nrules: {max_memory_bytes: lots}\n', 'document 2 (Class cam): '),
                (made + 'kind: Pod\n', "document 2: 'Pod' is not a kind"),
                ('kind: Class\nname: cam\nartifact: 4f2a91c07be3\n', 'document 1 (Class cam): there is no'),
                (rollout % ('new', 'abcdef123456') + '---\n' + made, "document 1 (Rollout november): there is no class 'new'")):
            self.assertIn('fleet.yaml, ' + message, self.apply(text, '--dry-run', status=3))
        self.assertEqual(list(kept), ['cam'])
        self.assertIn('would change', self.apply(made + rollout % ('new', 'abcdef123456'), '--dry-run'))
        self.assertIn('fleet.yaml, document 1 (Rollout november): ', self.apply(rollout % ('cam', 'x'), status=3))

    def test_artifact_get_checks_the_bytes(self):
        data = os.urandom(5_000_000)
        sha256 = hashlib.sha256(data).hexdigest()

        def content(handler):
            first, last = map(int, handler.headers['Range'].removeprefix('bytes=').split('-'))
            return 206, data[first:last + 1]

        self.serve({('GET', '/v1/artifacts/good'): (200, {'sha256': sha256, 'bytes': len(data)}),
                    ('GET', '/v1/artifacts/good/content'): content,
                    ('GET', '/v1/artifacts/bad'): (200, {'sha256': 'f' * 64, 'bytes': len(data)}),
                    ('GET', '/v1/artifacts/bad/content'): content})
        with tempfile.TemporaryDirectory() as folder:
            good, bad = os.path.join(folder, 'good'), os.path.join(folder, 'bad')
            self.retort('artifact', 'get', 'good', good)
            with open(good, 'rb') as file:
                self.assertEqual(file.read(), data)
            self.assertIn('hash', self.retort('artifact', 'get', 'bad', bad, status=3))
            self.assertEqual(os.listdir(folder), ['good'])

    def test_site_set_keeps_what_is_not_given(self):
        self.serve({('GET', '/v1/sites/hall'): (200, {'name': 'hall', 'mirrors': ['http://a']}),
                    ('PUT', '/v1/sites/hall'): lambda h: (200, json.loads(h.body)),
                    ('PUT', '/v1/sites/new'): lambda h: (200, json.loads(h.body))})
        self.retort('site', 'set', 'hall')
        self.assertEqual(json.loads(self.server.requests[-1][2])['mirrors'], ['http://a'])
        self.retort('site', 'set', 'hall', '--mirror', 'none')
        self.assertEqual(json.loads(self.server.requests[-1][2])['mirrors'], [])
        self.retort('site', 'set', 'hall', '--bytes-per-second', '2MiB', '--transfers', '4')
        self.assertEqual(json.loads(self.server.requests[-1][2]),
                         {'name': 'hall', 'mirrors': ['http://a'], 'bytes_per_second': 2 << 20, 'transfers': 4})
        self.retort('site', 'set', 'new', '--mirror', 'http://b', '--mirror', 'https://c')
        self.assertEqual(json.loads(self.server.requests[-1][2]), {'mirrors': ['http://b', 'https://c']})

    def test_artifact_mirror_keeps_nothing_wrong(self):
        data = os.urandom(100_000)
        sha256 = hashlib.sha256(data).hexdigest()
        listed = [{'sha256': sha256, 'bytes': len(data)}, {'sha256': 'f' * 64, 'bytes': len(data)}]
        self.serve({('GET', '/v1/artifacts?limit=1000'): lambda h: (200, {'items': listed, 'next': None}),
                    ('GET', f'/v1/artifacts/{sha256}/content'): (206, data),
                    ('GET', '/v1/artifacts/' + 'f' * 64 + '/content'): (206, data)})
        with tempfile.TemporaryDirectory() as folder:
            self.assertIn('hash', self.retort('artifact', 'mirror', folder, status=3))
            self.assertEqual(os.listdir(os.path.join(folder, sha256[:2])), [sha256])
            self.assertEqual(os.listdir(os.path.join(folder, 'ff')), [])
            listed[1]['sha256'] = '../../../../etc/passwd'
            self.assertIn('not a SHA-256', self.retort('artifact', 'mirror', folder, status=3))

    def test_dataset_is_sent_by_path_or_by_bytes(self):
        self.serve({('POST', '/v1/datasets'): (201, {'id': 'x'}), ('POST', '/v1/datasets?name=a%20b'): (201, {'id': 'x'})})
        with tempfile.NamedTemporaryFile(suffix='.jsonl') as file:
            file.write(b'{"text":"a"}\n')
            file.flush()
            self.retort('dataset', 'import', file.name)
            self.assertEqual(json.loads(self.server.requests[-1][2]), {'path': file.name})
            self.retort('dataset', 'import', file.name, '--name', 'a b', '--upload')
            self.assertEqual(self.server.requests[-1][2], b'{"text":"a"}\n')
            self.assertEqual(self.server.requests[-1][3]['Content-Type'], 'application/jsonl')

    def log_of(self, events):
        """Answers for one job whose log grows by an event a look, and which then ends."""
        text = ''.join(json.dumps(e) + '\n' for e in events).encode()
        seen = {'n': 0}

        def logs(handler):
            offset = int(handler.path.split('=')[1])
            piece = text[offset:offset + 70]  # lines come broken
            seen['n'] = offset + len(piece)
            return 200, piece, {'Next-Offset': str(seen['n'])}

        answers = {('GET', f'/v1/jobs/job-1/logs?offset={i}'): logs for i in range(len(text) + 1)}
        return text, seen, answers

    EVENTS = [{'event': 'pass_start', 'pass': 'distil.soft', 'pass_index': 0, 'pass_count': 2},
              {'event': 'progress', 'pass': 'distil.soft', 'pass_index': 0, 'pass_count': 2, 'step': 5, 'steps': 10,
               'loss': 1.25, 'tokens_per_second': 900, 'seconds_left': 3},
              {'event': 'exported', 'file': 's.gguf', 'bytes': 100}, {'event': 'warning', 'message': 'BLAS is slow'}]

    def test_watch_to_the_end(self):
        text, seen, answers = self.log_of(self.EVENTS)

        def job(_):
            done = seen['n'] >= len(text)
            return 200, {'id': 'job-1', 'class': 'small', 'state': 'succeeded' if done else 'running'}

        self.serve({**answers, ('GET', '/v1/jobs/job-1'): job, ('POST', '/v1/tailor'): (201, {'jobs': [{'id': 'job-1'}]})})
        output = self.retort('tailor', '--teacher', 't', '--class', 'small', '--train', 'a', '--held-out', 'b', '--watch')
        self.assertIn('pass 1/2: distil.soft', output)
        self.assertIn('wrote s.gguf', output)
        self.assertIn('BLAS is slow', output)
        self.assertIn('succeeded', output.splitlines()[-1])
        self.assertNotIn('\x1b', output)

    def test_watch_fails_with_the_job(self):
        self.serve({('GET', '/v1/jobs/job-1'): (200, {'id': 'job-1', 'state': 'failed', 'error': {
            'code': 'out_of_budget', 'message': 'needs 3 GiB', 'where': 'plan'}}),
                    ('GET', '/v1/jobs/job-1/logs?offset=0'): (200, b'', {'Next-Offset': '0'})})
        run = subprocess.run([RETORT, '--server', self.server.url, 'job', 'watch', 'job-1'], capture_output=True, text=True,
                             timeout=30)
        self.assertEqual(run.returncode, 4)
        self.assertIn('needs 3 GiB', run.stdout)

    def test_interrupting_a_watch_leaves_the_job(self):
        self.serve({('GET', '/v1/jobs/job-1'): (200, {'id': 'job-1', 'state': 'running'}),
                    ('GET', '/v1/jobs/job-1/logs?offset=0'): (200, b'', {'Next-Offset': '0'})})
        process = subprocess.Popen([RETORT, '--server', self.server.url, 'job', 'watch', 'job-1'], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        while not self.server.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)
        self.assertIn('retort job watch job-1', errors)
        self.assertFalse(any('cancel' in request[1] for request in self.server.requests))

    def test_completion_knows_the_commands(self):
        self.serve({})
        script = self.retort('completion', 'bash')
        for words, expect in ((['retort', 'te'], 'teacher'), (['retort', 'teacher', 'im'], 'import'),
                              (['retort', 'class', 'set', 'x', '--max-m'], '--max-memory')):
            line = ' '.join(f"'{w}'" for w in words)
            run = subprocess.run(['bash', '-c', f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _retort; '
                                  'echo "${COMPREPLY[@]}"'], capture_output=True, text=True)
            self.assertIn(expect, run.stdout, run.stderr)


if __name__ == '__main__':
    RETORT = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
