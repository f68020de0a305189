"""What the end-to-end tests share: the real programs, a teacher of our own making, and ways to kill.

A test file runs under ctest as `python3 FILE BIN_FOLDER`; see run() at the end. Standard library only.
"""
import contextlib
import ctypes
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse
import uuid

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '../..'))
sys.dont_write_bytecode = True


def _load_quickstart():
    spec = importlib.util.spec_from_file_location('quickstart', os.path.join(ROOT, 'scripts/quickstart.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = _load_quickstart()
BIN = ''  # set by run()


def program(name):
    return os.path.join(BIN, name)


def asset(name):
    """A folder or file of the shared assets, or None where they are absent."""
    root = os.environ.get('RETORT_ASSETS_DIR', os.path.join(ROOT, '../shared/assets'))
    path = os.path.join(root, name)
    return path if os.path.exists(path) else None


# -- a teacher: a Llama of random weights, whose vocabulary is the 256 bytes and two marks

def _byte_characters():
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


def make_teacher(folder, hidden=64, layers=3, heads=4, kv_heads=2, ffn=128, context=128, seed=1):
    os.makedirs(folder)
    rng = random.Random(seed)
    vocabulary = {character: byte for byte, character in _byte_characters().items()}
    vocabulary['<s>'], vocabulary['</s>'] = 256, 257
    marks = [{'id': i, 'content': c, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
              'special': True} for c, i in (('<s>', 256), ('</s>', 257))]
    size = len(vocabulary) + 30  # 288: a multiple of 32; the last ids stand for nothing
    for i in range(258, size):
        vocabulary[f'<unused{i}>'] = i
    tokenizer = {
        'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': marks, 'normalizer': None,
        'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
        'post_processor': None, 'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
                  'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False, 'vocab': vocabulary, 'merges': []}}
    config = {
        'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'hidden_size': hidden, 'intermediate_size': ffn,
        'num_hidden_layers': layers, 'num_attention_heads': heads, 'num_key_value_heads': kv_heads,
        'vocab_size': size, 'max_position_embeddings': context, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
        'tie_word_embeddings': True, 'bos_token_id': 256, 'eos_token_id': 257, 'torch_dtype': 'float32', 'hidden_act': 'silu'}
    head = hidden // heads
    shapes = {'model.embed_tokens.weight': (size, hidden), 'model.norm.weight': (hidden,)}
    for layer in range(layers):
        base = f'model.layers.{layer}.'
        shapes.update({
            base + 'input_layernorm.weight': (hidden,), base + 'post_attention_layernorm.weight': (hidden,),
            base + 'self_attn.q_proj.weight': (heads * head, hidden), base + 'self_attn.k_proj.weight': (kv_heads * head, hidden),
            base + 'self_attn.v_proj.weight': (kv_heads * head, hidden), base + 'self_attn.o_proj.weight': (hidden, heads * head),
            base + 'mlp.gate_proj.weight': (ffn, hidden), base + 'mlp.up_proj.weight': (ffn, hidden),
            base + 'mlp.down_proj.weight': (hidden, ffn)})
    header, data = {}, bytearray()
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * count if len(shape) == 1 else [rng.gauss(0, 0.05) for _ in range(count)]
        begin = len(data)
        data += struct.pack(f'<{count}f', *values)
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text + data)
    for name, value in (('config.json', config), ('tokenizer.json', tokenizer),
                        ('tokenizer_config.json', {'bos_token': '<s>', 'eos_token': '</s>'})):
        with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
            json.dump(value, file)
    return folder


def make_texts(path, documents, seed):
    """Sentences of a small grammar: something to learn, different for each seed."""
    rng = random.Random(seed)
    with open(path, 'w', encoding='utf-8') as file:
        for _ in range(documents):
            words = [rng.choice(['the', 'a']), rng.choice(['small', 'fast', 'old', 'green']),
                     rng.choice(['library', 'server', 'tool', 'font']), rng.choice(['reads', 'writes', 'shows']),
                     rng.choice(['files', 'maps', 'pages', 'names'])]
            file.write(json.dumps({'text': ' '.join(words) + '.'}) + '\n')
    return path


class Fleet:
    """One coordinator and its agents in a temporary folder; everything is gone after close()."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix='retort-e2e-')
        self.mark = uuid.uuid4().hex
        self.env = {**os.environ, quickstart.MARK: self.mark}
        self.coordinator, self.agents = None, {}
        self.info = None

    def close(self):
        quickstart.stop_all(self.mark)
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def start(self, name, arguments):
        with open(self.path(name + '.log'), 'ab') as log:
            return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env,
                                    start_new_session=True)

    def start_coordinator(self, *options, link='tcp://127.0.0.1:*'):
        """Starts it, or starts it again on the same ports."""
        ready = self.path('ready.json')
        with contextlib.suppress(FileNotFoundError):
            os.remove(ready)
        rest = '127.0.0.1:0'
        if self.info:
            rest, link = urllib.parse.urlsplit(self.rest).netloc, self.info['fleet']
        self.coordinator = self.start('coordinator', [
            program('retort-coordinator'), 'serve', '--data', self.path('data'), '--rest-listen', rest,
            '--fleet-listen', link, '--ready-file', ready, '--worker-binary', program('retort-worker'),
            '--serve-binary', program('retort-serve'), *options])
        self.info = self.wait('the coordinator', lambda: quickstart.Quickstart.read_json(ready), self.coordinator)
        self.rest = self.info['rest'] if '://' in self.info['rest'] else 'http://' + self.info['rest']
        self.env.update(RETORT_SERVER=self.rest, RETORT_TOKEN_FILE=self.path('data', 'operator.token'))

    def start_agent(self, name, *options, serve=None, inside=()):
        """`inside`: a command that runs it, such as `ip netns exec NAME`."""
        if not os.path.exists(self.path('enrol')):
            token = self.retort('token', 'create', '--kind', 'enrolment', '--uses', '10')['token']
            with open(self.path('enrol'), 'w', encoding='utf-8') as file:
                file.write(token)
        self.agents[name] = self.start(name, [
            *inside, program('retort-agent'), 'run', '--state', self.path('agent-' + name), '--coordinator', self.info['fleet'],
            '--token-file', self.path('enrol'), '--name', name, '--serve-binary', serve or program('retort-serve'),
            '--serve-port', '0', '--status-file', self.path(name + '.json'), *options])

    def status(self, name):
        return quickstart.Quickstart.read_json(self.path(name + '.json')) or {}

    def run_retort(self, *arguments):
        return subprocess.run([program('retort'), *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, env=self.env, timeout=60)

    def retort(self, *arguments):
        run = self.run_retort('-o', 'json', *arguments)
        if run.returncode != 0:
            raise AssertionError(f'retort {" ".join(arguments)}: status {run.returncode}: {run.stderr}\n{self.logs()}')
        return json.loads(run.stdout) if run.stdout.strip() else None

    def job(self, job_id):
        """The job, with the records of its artifacts."""
        return quickstart.Quickstart.with_artifacts(self.retort, self.retort('job', 'show', job_id))

    def run_tailor(self, teacher, classes, tokens, seconds=400):
        """`retort tailor --watch` on the datasets train and judged."""
        command = [program('retort'), 'tailor', '--teacher', teacher, '--train', 'train', '--held-out', 'judged',
                   '--tokens', str(tokens), '--watch']
        for name in classes:
            command += ['--class', name]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.env, timeout=seconds)

    def wait(self, what, probe, *processes, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = probe()
            if found:
                return found
            for process in processes:
                if process.poll() is not None:
                    raise AssertionError(f'{what}: the process ended with {process.returncode}\n{self.logs()}')
            time.sleep(0.02)
        raise AssertionError(f'waited {seconds} s in vain for {what}\n{self.logs()}')

    def logs(self):
        out = ''
        for name in sorted(os.listdir(self.folder)):
            if name.endswith('.log'):
                with open(self.path(name), encoding='utf-8', errors='replace') as file:
                    out += f'--- {name}\n' + ''.join(file.readlines()[-15:])
        return out

    def pids(self, name):
        """Living processes of this fleet that run the program `name`."""
        found = []
        for pid in quickstart.processes_with(self.mark):
            try:
                with open(f'/proc/{pid}/cmdline', 'rb') as file:
                    if os.path.basename(file.read().split(b'\0')[0]).decode() == name:
                        found.append(pid)
            except OSError:
                pass
        return found

    def job_done(self, job_id, seconds=120):
        def ended():
            run = self.run_retort('-o', 'json', 'job', 'show', job_id)
            if run.returncode == 0:
                job = json.loads(run.stdout)
                return job if job['state'] in ('succeeded', 'failed', 'cancelled') else None
            return None

        self.wait(f'job {job_id}', ended, seconds=seconds)
        return self.job(job_id)

    def serving(self, agent, sha256, seconds=60):
        """Waits until the agent serves the artifact; its status."""
        def probe():
            status = self.status(agent)
            good = status.get('artifact') == sha256 and status.get('serve_url')
            return status if good and get(status['serve_url'] + '/health') else None

        return self.wait(f'{agent} to serve {sha256[:12]}', probe, seconds=seconds)


def get(url):
    """The JSON that a URL answers with, or None."""
    parts = urllib.parse.urlsplit(url)
    try:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
        connection.request('GET', parts.path)
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None


def complete(url, prompt, tokens=16):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request('POST', '/v1/completions', json.dumps({'prompt': prompt, 'max_tokens': tokens, 'temperature': 0}),
                       {'Content-Type': 'application/json'})
    answer = connection.getresponse()
    body = json.loads(answer.read())
    if answer.status != 200:
        raise AssertionError(f'{url} answered {answer.status}: {body}')
    return body['choices'][0]['text']


class FleetTest(unittest.TestCase):
    def setUp(self):
        self.fleet = Fleet()
        self.addCleanup(self.fleet.close)


def run():
    """main of a test file: exit status 77 when every test of it was skipped."""
    global BIN
    # `import harness` and the running file share this module, so BIN is set for both.
    BIN = os.path.abspath(sys.argv.pop(1))
    sys.modules['harness'].BIN = BIN
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans of killed programs come to us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = unittest.main(module='__main__', verbosity=2, exit=False).result
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if result.testsRun and len(result.skipped) == result.testsRun else 0)
