#!/usr/bin/env python3
"""Shows the whole of Retort on one machine, with the real programs and the standard library of Python alone.

Started by scripts/quickstart, which builds first. A coordinator, the demo teacher, three agents with unlike
allowances; one tailoring job for each class of device; each student pulled, verified, served and measured.
"""
import argparse
import ctypes
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MARK = 'RETORT_QUICKSTART'  # in the environment of everything we start, whatever its session or parent
MIB = 1 << 20

# What differs between the devices, and the classes they are to fall into.
DEVICES = [
    # name, class, memory, CPU
    ('gateway', 'large', 256 * MIB, 2.0),
    ('camera', 'medium', 128 * MIB, 1.0),
    ('sensor', 'small', 64 * MIB, 0.5),
]
CLASSES = [
    # name, options of `retort class set`: a rule over the memory budget, and what the student's file may take
    ('large', ['--min-memory', '192MiB', '--file', '3.8MiB']),
    ('medium', ['--min-memory', '96MiB', '--max-memory', '191MiB', '--file', '2.7MiB']),
    ('small', ['--max-memory', '95MiB', '--file', '1.8MiB']),
]


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP; raised once at most."""


class Failed(Exception):
    """What went wrong, for a person."""


def processes_with(mark):
    """Ids of living processes that carry our mark, and of descendants of ours, ourselves excepted."""
    found, parents = set(), {}
    wanted = f'{MARK}={mark}'.encode()
    for name in os.listdir('/proc'):
        if not name.isdigit():
            continue
        try:
            with open(f'/proc/{name}/stat', 'rb') as file:
                state, parent = file.read().rsplit(b')', 1)[1].split()[:2]
            if state == b'Z':
                continue
            parents[int(name)] = int(parent)
            with open(f'/proc/{name}/environ', 'rb') as file:
                if wanted in file.read().split(b'\0'):
                    found.add(int(name))
        except OSError:
            continue
    for pid in parents:
        above = parents.get(pid)
        while above and above != 1:
            if above == os.getpid():
                found.add(pid)
                break
            above = parents.get(above)
    found.discard(os.getpid())
    return found


def reap():
    """We adopt orphans (subreaper): take their exit statuses, or they stay zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def stop_all(mark, patience=8):
    """Asks every process of this run to end, after `patience` seconds makes it; returns when none is left."""
    asked, deadline = set(), time.monotonic() + patience
    while True:
        reap()
        left = processes_with(mark)
        if not left:
            return
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in left:
            if number == signal.SIGKILL or pid not in asked:
                asked.add(pid)
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        time.sleep(0.05)


class Cgroups:
    """A group for each agent with a memory limit and a CPU share, version 1 or 2, where we may make them."""

    def __init__(self, mark):
        self.folders = []  # to remove, children first
        self.of = {}  # agent -> files to write the process id to
        self.name = f'retort-quickstart-{mark[:8]}'
        self.reason = ''
        try:
            if os.path.exists('/sys/fs/cgroup/cgroup.controllers'):
                self.make = self.make_v2
                self.parent = os.path.join('/sys/fs/cgroup', self.name)
                self.folder(self.parent)
                self.write(self.parent, 'cgroup.subtree_control', '+memory +cpu')
                self.version = 2
            else:
                self.make = self.make_v1
                with open('/proc/self/cgroup', encoding='utf-8') as file:
                    mine = {c: path for line in file for _, cs, path in [line.rstrip('\n').split(':', 2)] for c in cs.split(',')}
                self.parents = {}
                for controller in ('memory', 'cpu'):
                    base = os.path.join('/sys/fs/cgroup', controller)
                    here = base + mine[controller]
                    self.parents[controller] = os.path.join(here if os.path.isdir(here) else base, self.name)
                    self.folder(self.parents[controller])
                self.version = 1
        except (OSError, KeyError) as error:
            self.reason = f'{error.strerror}' if isinstance(error, OSError) else f'no {error} controller'
            self.remove()
            self.version = 0

    def folder(self, path):
        os.mkdir(path)
        self.folders.insert(0, path)

    @staticmethod
    def write(folder, name, value):
        with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
            file.write(str(value))

    def make_v1(self, agent, memory, cpu):
        folders = {c: os.path.join(parent, agent) for c, parent in self.parents.items()}
        for folder in folders.values():
            self.folder(folder)
        self.write(folders['memory'], 'memory.limit_in_bytes', memory)
        self.write(folders['cpu'], 'cpu.cfs_period_us', 100000)
        self.write(folders['cpu'], 'cpu.cfs_quota_us', int(cpu * 100000))
        self.of[agent] = [os.path.join(folder, 'cgroup.procs') for folder in folders.values()]

    def make_v2(self, agent, memory, cpu):
        folder = os.path.join(self.parent, agent)
        self.folder(folder)
        self.write(folder, 'memory.max', memory)
        self.write(folder, 'cpu.max', f'{int(cpu * 100000)} 100000')
        self.of[agent] = [os.path.join(folder, 'cgroup.procs')]

    def remove(self):
        for folder in self.folders:
            for _ in range(20):  # the kernel needs a moment after the last process of a group is gone
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.05)
        self.folders = []


def human_bytes(n):
    return '-' if n is None else f'{n / MIB:.2f} MiB' if n >= 10000 else f'{n} B'


class Quickstart:
    def __init__(self, options, mark):
        self.options, self.mark = options, mark
        self.bin = options.bin
        self.times = []
        self.started = time.monotonic()
        self.cgroups = None
        self.children = {}  # name -> Popen
        self.temporary = options.data is None
        self.data = os.path.abspath(options.data) if options.data else tempfile.mkdtemp(prefix='retort-quickstart-')
        self.logs = os.path.join(self.data, 'logs')
        self.env = dict(os.environ)

    # -- small things

    def path(self, *parts):
        return os.path.join(self.data, *parts)

    def program(self, name):
        return os.path.join(self.bin, name)

    def part(self, title):
        now = time.monotonic()
        if self.times and self.times[-1][2] is None:
            self.times[-1][2] = now
            print(f'   {now - self.times[-1][1]:.1f} s', flush=True)
        if title:
            self.times.append([title, now, None])
            print(f'\n== {title}', flush=True)

    def start(self, name, arguments, procs_files=()):
        def enter_cgroup():
            for file in procs_files:
                with open(file, 'w', encoding='utf-8') as out:
                    out.write(str(os.getpid()))

        log = open(os.path.join(self.logs, name + '.log'), 'ab')
        self.children[name] = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=enter_cgroup if procs_files else None)
        log.close()

    def log_tail(self, name, lines=8):
        try:
            with open(os.path.join(self.logs, name + '.log'), encoding='utf-8', errors='replace') as file:
                return ''.join('    ' + line for line in file.readlines()[-lines:])
        except OSError:
            return ''

    def check_children(self):
        for name, child in self.children.items():
            if child.poll() is not None:
                raise Failed(f'{name} ended with status {child.returncode}; its last lines:\n{self.log_tail(name)}')

    def wait_for(self, what, seconds, probe):
        """Asks `probe` until it gives something; raises with `what` when it never does, or a process ended."""
        deadline = time.monotonic() + seconds
        while True:
            found = probe()
            if found:
                return found
            self.check_children()
            if time.monotonic() > deadline:
                raise Failed(f'waited {seconds} s in vain for {what}; logs are in {self.logs}')
            time.sleep(0.1)

    def retort(self, *arguments, as_json=True):
        """Runs the CLI; its answer, parsed."""
        command = [self.program('retort'), *(['-o', 'json'] if as_json else []), *arguments]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.env)
        if run.returncode != 0:
            raise Failed(f'`retort {" ".join(arguments)}` ended with status {run.returncode}: {run.stderr.strip()}')
        return json.loads(run.stdout) if as_json else run.stdout

    @staticmethod
    def read_json(path):
        try:
            with open(path, encoding='utf-8') as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    # -- the parts

    def run(self):
        print(f'Data folder: {self.data}{" (temporary)" if self.temporary else ""}')
        os.makedirs(self.logs, exist_ok=True)
        self.part('Text to learn from: Debian package descriptions, from apt-cache')
        self.texts()
        self.part('Coordinator')
        self.coordinator()
        self.part('Demo teacher')
        self.teacher()
        self.part('Three devices')
        self.devices()
        self.part(f'Tailoring: one student a class, each distilled on {self.options.tokens:,} tokens')
        self.tailor()
        self.part('Students reach their devices')
        self.rollout()
        self.part('Measuring, now that no job runs')
        rows, texts = self.measure()
        self.part(None)
        self.report(rows, texts)

    def texts(self):
        out = self.path('texts')
        if not os.path.exists(os.path.join(out, 'held_out.jsonl')):
            command = [os.path.join(ROOT, 'scripts/debian-descriptions'), out]
            run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if run.returncode != 0 and os.geteuid() == 0:
                print('   apt-cache has no descriptions yet: apt-get update')
                subprocess.run(['apt-get', 'update', '-q'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
                run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if run.returncode != 0:
                raise Failed('no package descriptions: ' + (run.stderr.strip() or 'run apt-get update as root, then try again'))
        # The judged text is a part of the held-out split: enough for a figure, little enough for a minute.
        with open(os.path.join(out, 'held_out.jsonl'), encoding='utf-8') as file:
            lines = file.readlines()
        self.judged = os.path.join(out, 'judged.jsonl')
        with open(self.judged, 'w', encoding='utf-8') as file:
            file.writelines(lines[:self.options.judge])
        with open(os.path.join(out, 'distil.jsonl'), encoding='utf-8') as file:
            distil = sum(1 for _ in file)
        self.distil = os.path.join(out, 'distil.jsonl')
        if not lines or not distil:
            raise Failed(f'scripts/debian-descriptions found no text: see {out}')
        print(f'   {distil:,} descriptions to distil on, {min(len(lines), self.options.judge):,} others to judge on')

    def coordinator(self):
        ready = self.path('coordinator.json')
        if os.path.exists(ready):
            os.remove(ready)
        self.start('coordinator', [
            self.program('retort-coordinator'), 'serve', '--data', self.path('coordinator'),
            '--rest-listen', '127.0.0.1:0', '--fleet-listen', 'tcp://127.0.0.1:*', '--ready-file', ready,
            '--worker-binary', self.program('retort-worker'), '--serve-binary', self.program('retort-serve')])
        info = self.wait_for('the coordinator', 30, lambda: self.read_json(ready))
        rest = info['rest'] if '://' in info['rest'] else 'http://' + info['rest']
        self.fleet = info['fleet']
        with open(self.path('coordinator', 'operator.token'), encoding='utf-8') as file:
            first = file.read().strip()
        self.env.update(RETORT_SERVER=rest, RETORT_TOKEN=first)
        self.env['RETORT_TOKEN'] = self.retort('token', 'create', '--kind', 'operator', '--name', 'quickstart')['token']
        self.token_file = self.path('operator.token')
        self.write_secret(self.token_file, self.env['RETORT_TOKEN'])
        enrol = self.retort('token', 'create', '--kind', 'enrolment', '--name', 'quickstart', '--uses', str(len(DEVICES)))
        self.enrolment_file = self.path('enrolment.token')
        self.write_secret(self.enrolment_file, enrol['token'])
        print(f'   REST {rest}, fleet link {self.fleet}; made an operator token and an enrolment token')

    @staticmethod
    def write_secret(path, text):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as file:
            file.write(text + '\n')

    def teacher(self):
        known = [t for t in self.items('teacher') if t.get('name') == 'demo']
        self.teacher_record = known[0] if known else self.retort('teacher', 'import', self.options.teacher, '--name', 'demo')
        self.retort('teacher', 'serve', 'demo')

        def up():
            serve = self.retort('status').get('teacher_serve') or {}
            return serve if serve.get('url') and self.health(serve['url']) else None

        self.teacher_url = self.wait_for("the teacher's retort-serve", 30, up)['url']
        for path, name in ((self.distil, 'distil'), (self.judged, 'judged')):
            if not any(d.get('name') == name for d in self.items('dataset')):
                self.retort('dataset', 'import', path, '--name', name)
        self.teacher_file = self.find_teacher_file()
        print(f'   {self.teacher_record.get("parameters", 0) / 1e6:.2f} M parameters, '
              f'{human_bytes(os.path.getsize(self.teacher_file))} as F16; served at {self.teacher_url}')

    def items(self, noun):
        answer = self.retort(noun, 'ls')
        return answer['items'] if isinstance(answer, dict) else answer

    def find_teacher_file(self):
        folder = self.path('coordinator', 'teachers', self.teacher_record['id'])
        files = [os.path.join(folder, n) for n in os.listdir(folder) if n.endswith('.gguf')]
        if not files:
            raise Failed(f'no GGUF in {folder}')
        return files[0]

    def devices(self):
        for name, rules in CLASSES:
            self.retort('class', 'set', name, *rules)
        self.cgroups = Cgroups(self.mark)
        if self.cgroups.version:
            for name, _, memory, cpu in DEVICES:
                self.cgroups.make(name, memory, cpu)
            print(f'   each in a cgroup (version {self.cgroups.version}) of its own, which limits its memory and CPU')
        else:
            print(f'   cgroups cannot be made here ({self.cgroups.reason}): the agents are told their budgets')
        for name, _, memory, cpu in DEVICES:
            declared = [] if self.cgroups.version else [
                '--memory-budget', str(memory), '--cpu-threads', str(cpu)]
            self.start(name, [
                self.program('retort-agent'), 'run', '--state', self.path('agents', name), '--coordinator', self.fleet,
                '--token-file', self.enrolment_file, '--name', name, '--label', f'device={name}',
                '--serve-binary', self.program('retort-serve'), '--serve-port', '0',
                '--status-file', self.path(name + '.json'), *declared], self.cgroups.of.get(name, ()))

        def enrolled():
            found = {}
            for name, _, _, _ in DEVICES:
                status = self.read_json(self.path(name + '.json'))
                if status and status.get('class') and status.get('device_id'):
                    found[name] = status
            return found if len(found) == len(DEVICES) else None

        statuses = self.wait_for('three agents to enrol', 60, enrolled)
        for name, wanted, _, _ in DEVICES:
            if statuses[name]['class'] != wanted:
                raise Failed(f'{name} fell into class {statuses[name]["class"]}, not {wanted}')
        print(self.indent(self.retort('device', 'ls', as_json=False)))

    @staticmethod
    def indent(text):
        return ''.join('   ' + line + '\n' for line in text.splitlines()).rstrip('\n')

    def tailor(self):
        before = {job['id'] for job in self.items('job')}
        command = [self.program('retort'), 'tailor', '--teacher', 'demo', '--train', 'distil', '--held-out', 'judged',
                   '--tokens', str(self.options.tokens), '--watch']
        for name, _ in CLASSES:
            command += ['--class', name]
        watch = subprocess.run(command, stdin=subprocess.DEVNULL, env=self.env)
        self.jobs = {}
        for job in self.items('job'):
            if job['id'] not in before:
                self.jobs[job['class']] = self.with_artifacts(self.retort, self.retort('job', 'show', job['id']))
        if watch.returncode != 0:
            reasons = [f'{j["class"]}: {(j.get("error") or {}).get("message", j["state"])}'
                       for j in self.jobs.values() if j['state'] != 'succeeded']
            raise Failed(f'tailoring failed (status {watch.returncode}); ' + '; '.join(reasons))

    @staticmethod
    def with_artifacts(retort, job):
        """The job with the records of its artifacts in the place of their names."""
        job['artifacts'] = [retort('artifact', 'show', a) if isinstance(a, str) else a for a in job.get('artifacts') or []]
        return job

    def students(self, device_class):
        """(distilled, before that) artifacts of a class's job: the latter cut, or, where all of the teacher fits, rounded only."""
        artifacts = self.jobs[device_class]['artifacts']
        distilled = [a for a in artifacts if a['label'] == 'distilled']
        before = [a for a in artifacts if a['label'] in ('cut only', 'rounded only')]
        if not distilled:
            raise Failed(f'the job of class {device_class} made no distilled student')
        return distilled[-1], before[-1] if before else None

    def rollout(self):
        wanted = {name: self.students(device_class)[0]['sha256'] for name, device_class, _, _ in DEVICES}
        seen = set()

        def serving():
            for name in wanted:
                status = self.read_json(self.path(name + '.json')) or {}
                if name not in seen and status.get('artifact') == wanted[name] and status.get('serve_url') and \
                        self.health(status['serve_url']):
                    seen.add(name)
                    print(f'   {name} serves {wanted[name][:12]} at {status["serve_url"]}', flush=True)
            return len(seen) == len(wanted)

        self.wait_for('the agents to serve their students', 90, serving)

    @staticmethod
    def health(url):
        try:
            parts = urllib.parse.urlsplit(url)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=2)
            connection.request('GET', '/health')
            return connection.getresponse().status == 200
        except OSError:
            return False

    def complete(self, url, prompt, tokens):
        """Streams a completion: (text, seconds to the first token, seconds for each that followed)."""
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        body = json.dumps({'prompt': prompt, 'max_tokens': tokens, 'temperature': 0, 'stream': True})
        start = time.perf_counter()
        connection.request('POST', '/v1/completions', body, {'Content-Type': 'application/json'})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Failed(f'{url} answered {answer.status}: {answer.read(500).decode(errors="replace")}')
        text, times, generated = '', [], 0
        for line in answer:
            if not line.startswith(b'data: ') or line.strip() == b'data: [DONE]':
                continue
            event = json.loads(line[6:])
            for choice in event.get('choices') or []:
                if choice.get('text'):
                    text += choice['text']
                    times.append(time.perf_counter())
            generated = max(generated, (event.get('usage') or {}).get('completion_tokens', 0))
        connection.close()
        if not times:
            return text, None, None
        first = times[0] - start
        count = generated or len(times)
        return text, first, (times[-1] - times[0]) / (count - 1) if count > 1 else None

    def serve_pid(self, name, url):
        status = self.read_json(self.path(name + '.json')) if name else None
        if status and status.get('serve_pid'):
            return status['serve_pid']
        port = urllib.parse.urlsplit(url).port
        for pid in processes_with(self.mark):
            try:
                with open(f'/proc/{pid}/cmdline', 'rb') as file:
                    arguments = file.read().decode(errors='replace').split('\0')
                if os.path.basename(arguments[0]) == 'retort-serve' and self.teacher_record['id'] in ' '.join(arguments):
                    return pid
            except OSError:
                continue
        return port and None

    @staticmethod
    def pss(pid):
        try:
            with open(f'/proc/{pid}/smaps_rollup', encoding='ascii') as file:
                for line in file:
                    if line.startswith('Pss:'):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass
        return None

    def measure(self):
        judged = subprocess.run(
            [self.program('retort-serve'), 'eval', self.teacher_file, '--data', self.judged],
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if judged.returncode != 0:
            raise Failed(f'the teacher could not be judged: {judged.stderr.strip()}')
        figures = json.loads(judged.stdout)
        info = json.loads(subprocess.run([self.program('retort-serve'), 'info', self.teacher_file, '--json'],
                                         stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout)
        rows, texts = [], []

        def token_time(url):
            """(seconds, tokens) that serve itself has counted: a client sees small models' events in bursts."""
            parts = urllib.parse.urlsplit(url)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
            connection.request('GET', '/metrics')
            found = dict(line.rsplit(' ', 1) for line in connection.getresponse().read().decode().splitlines()
                         if line.startswith('retort_serve_token_seconds_'))
            connection.close()
            return float(found['retort_serve_token_seconds_sum']), int(found['retort_serve_token_seconds_count'])

        def timed(name, url):
            self.complete(url, self.options.prompt, 48)  # warms up
            before = token_time(url)
            runs = [self.complete(url, self.options.prompt, 48) for _ in range(3)]
            after = token_time(url)
            firsts = sorted(r[1] for r in runs if r[1])
            tokens = after[1] - before[1]
            pid = self.serve_pid(name, url)
            return (runs[-1][0], firsts[len(firsts) // 2] if firsts else None,
                    (after[0] - before[0]) / tokens if tokens else None, self.pss(pid) if pid else None)

        def row(who, where, artifact, evaluation, first, each, memory):
            evaluation = evaluation or {}

            def number(value, form):
                return '-' if value is None else form.format(value)

            rows.append([
                who, where, number(artifact.get('parameters'), '{:,}'), human_bytes(artifact.get('bytes')),
                number(artifact.get('bits_per_weight'), '{:.2f}'), number(evaluation.get('perplexity'), '{:.2f}'),
                number(evaluation.get('kl_divergence'), '{:.3f}'),
                number(evaluation.get('top1_agreement') and evaluation['top1_agreement'] * 100, '{:.1f} %'),
                number(first and first * 1000, '{:.1f} ms'), number(each and each * 1000, '{:.2f} ms'),
                human_bytes(memory) if memory else '-'])

        text, first, each, memory = timed(None, self.teacher_url)
        row('teacher', 'coordinator', {'parameters': info.get('parameters'), 'bytes': os.path.getsize(self.teacher_file),
                                       'bits_per_weight': os.path.getsize(self.teacher_file) * 8 / info['parameters']},
            {**figures, 'kl_divergence': 0.0, 'top1_agreement': 1.0}, first, each, memory)
        texts.append(('teacher', text))
        for name, device_class, _, _ in DEVICES:
            student, before = self.students(device_class)
            status = self.read_json(self.path(name + '.json'))
            text, first, each, memory = timed(name, status['serve_url'])
            row(f'{device_class} student', name, student, student.get('evaluation'), first, each, memory)
            if before:
                what = before['label'].removesuffix(' only')
                row(f'  {what}, not distilled', '', before, before.get('evaluation'), None, None, None)
            texts.append((f'{device_class} student', text))
        return rows, texts

    def report(self, rows, texts):
        headings = ['', 'on', 'parameters', 'file', 'bits/weight', 'perplexity', 'KL', 'top-1', 'first token', 'per token', 'memory']
        widths = [max(len(line[i]) for line in [headings, *rows]) for i in range(len(headings))]
        print()
        for line in [headings, *rows]:
            print('  '.join(cell.ljust(width) if i < 2 else cell.rjust(width)
                            for i, (cell, width) in enumerate(zip(line, widths))).rstrip())
        print(f'\nPerplexity, KL divergence from the teacher and top-1 agreement with it: on {self.options.judge} descriptions '
              'of packages\nthat neither teacher nor students saw. The teacher learnt from long descriptions too; a student that '
              'keeps most\nof it can beat it on these short ones. First token: median of three greedy runs over HTTP, on that '
              'device;\nper token: the mean that its retort-serve counted in them. Bits/weight: of the whole file.')
        print(f'\nWhat each writes after "{self.options.prompt}":')
        for who, text in texts:
            print(f'  {who}: {" ".join(text.split())}')
        print('\nTime:')
        setup = os.environ.get('RETORT_QUICKSTART_SETUP', '').split()
        if len(setup) == 2:
            print(f'  {setup[0]:>6} s  packages\n  {setup[1]:>6} s  build')
        for title, start, end in self.times:
            print(f'  {end - start:6.1f} s  {title.split(":")[0]}')
        print(f'  {time.monotonic() - self.started:6.1f} s  in all, from the built tree')
        print('\nWhat to try next:')
        print('  scripts/quickstart --tokens 500000       longer distillation, better students')
        print('  scripts/quickstart --keep --data ./try   leave it all running and drive it with build/release/bin/retort')
        print('  build/release/bin/retort --help          import your own teacher, define your own classes')
        if self.options.keep:
            print(f'\nIt goes on running. To use it:\n  export RETORT_SERVER={self.env["RETORT_SERVER"]} '
                  f'RETORT_TOKEN_FILE={self.token_file}\n  {os.path.relpath(self.program("retort"))} status\n'
                  f'To stop it:\n  scripts/quickstart --stop --data {self.data}')

    def finish(self, kept):
        if kept:
            with open(self.path('running.json'), 'w', encoding='utf-8') as file:
                json.dump({'mark': self.mark, 'cgroups': self.cgroups.folders if self.cgroups else []}, file)
            return
        stop_all(self.mark)
        if self.cgroups:
            self.cgroups.remove()
        if self.temporary and not self.options.keep:
            shutil.rmtree(self.data, ignore_errors=True)


def stop_kept(data):
    path = os.path.join(data, 'running.json')
    kept = Quickstart.read_json(path)
    if not kept:
        print(f'quickstart: nothing was left running from {data}', file=sys.stderr)
        return 3
    stop_all(kept['mark'])
    groups = Cgroups.__new__(Cgroups)
    groups.folders = kept['cgroups']
    groups.remove()
    os.remove(path)
    print('Stopped.')
    return 0


def main():
    parser = argparse.ArgumentParser(
        prog='scripts/quickstart', description='From one teacher to three students on three unlike devices, on this machine.',
        epilog='Needs Debian 12; installs packages when it may. Under five minutes from a built tree on two cores.')
    parser.add_argument('--tokens', type=int, default=100_000, help='token budget of each distillation (default: %(default)s)')
    parser.add_argument('--data', metavar='DIR', help='keep everything in this folder (default: a temporary one)')
    parser.add_argument('--keep', action='store_true', help='leave it running at the end')
    parser.add_argument('--stop', action='store_true', help='stop what --keep left running from --data DIR')
    parser.add_argument('--teacher', metavar='DIR', default=os.path.join(ROOT, 'scripts/demo-teacher/model'),
                        help='a Hugging Face folder to start from (default: the demo teacher)')
    parser.add_argument('--prompt', default='python3-weather: ', help='what teacher and students continue (default: "%(default)s")')
    parser.add_argument('--judge', type=int, default=300, metavar='N', help='held-out descriptions to judge on (default: %(default)s)')
    parser.add_argument('--bin', default=os.path.join(ROOT, 'build/release/bin'), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    if options.tokens < 1 or options.judge < 1:
        parser.error('--tokens and --judge must be positive')
    if options.stop:
        if not options.data:
            parser.error('--stop needs --data DIR')
        return stop_kept(os.path.abspath(options.data))
    if MARK not in os.environ:
        # The mark must be in the environment that /proc shows of us, so that a child between fork and exec has it.
        os.environ[MARK] = uuid.uuid4().hex
        os.execv(sys.executable, [sys.executable, *sys.argv])
    mark = os.environ[MARK]
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of ours come to us

    raised = False

    def interrupt(number, _):
        nonlocal raised
        if not raised:  # a second Ctrl-C must not cut the cleaning short
            raised = True
            raise Interrupted(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    quickstart, code, kept = None, 1, False
    try:
        try:
            quickstart = Quickstart(options, mark)
            quickstart.run()
            code, kept = 0, options.keep
        except Failed as error:
            print(f'\nquickstart: {error}', file=sys.stderr)
            if quickstart.temporary:
                quickstart.options.keep = True  # the folder, for its logs; nothing goes on running
                print(f'The data folder stays for a look: {quickstart.data}', file=sys.stderr)
        except (OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
            print(f'\nquickstart: {type(error).__name__}: {error}', file=sys.stderr)
        if quickstart:
            quickstart.finish(kept)
    except Interrupted:
        print('\nInterrupted: stopping everything …', file=sys.stderr, flush=True)
        if quickstart:
            quickstart.options.keep = False
            quickstart.finish(False)
        else:
            stop_all(mark)
        code = 130
    return code


if __name__ == '__main__':
    sys.exit(main())
