"""Classifiers, of numbers and of texts: a teacher imported, tailored to a class by its file, pulled by an agent and asked there."""
import importlib.util
import json
import os
import random
import struct
import subprocess
import unittest
import urllib.request

import harness


def make_teacher(folder, copies=256):
    """Which of three numbers is the largest: each hidden neuron passes one of them on, in `copies` copies."""
    os.makedirs(folder)
    hidden = 3 * copies
    tensors = {
        'dense.0.weight': ((hidden, 3), [float(row % 3 == column) for row in range(hidden) for column in range(3)]),
        'dense.0.bias': ((hidden,), [0.0] * hidden),
        'dense.1.weight': ((3, hidden), [8.0 / copies * (column % 3 == row) for row in range(3) for column in range(hidden)]),
        'dense.1.bias': ((3,), [0.0] * 3)}
    header, data = {}, b''
    for name, (shape, values) in tensors.items():
        packed = struct.pack(f'<{len(values)}f', *values)
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text + data)
    with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump({'model_type': 'retort-mlp', 'input_shape': [3], 'hidden_sizes': [hidden], 'hidden_act': 'relu',
                   'id2label': {'0': 'a', '1': 'b', '2': 'c'}}, file)
    return folder


def make_examples(path, count, seed):
    rng = random.Random(seed)
    with open(path, 'w', encoding='utf-8') as file:
        for _ in range(count):
            values = [round(rng.random(), 4) for _ in range(3)]
            file.write(json.dumps({'input': values, 'label': 'abc'[values.index(max(values))]}) + '\n')
    return path


WORDS = {'on': ['turn on the {} {}', 'switch the {} {} on', 'please put on the {} {}'],
         'off': ['turn off the {} {}', 'switch the {} {} off', 'the {} {} should be off please'],
         'ask': ['is the {} {} still burning', 'what does the {} {} say', 'tell me how the {} {} does']}


def make_sentences(path, count, seed):
    rng = random.Random(seed)
    with open(path, 'w', encoding='utf-8') as file:
        for _ in range(count):
            label = rng.choice(sorted(WORDS))
            text = rng.choice(WORDS[label]).format(rng.choice(['kitchen', 'bath', 'hall', 'cellar', 'garden']),
                                                   rng.choice(['light', 'lamp', 'heater', 'fan', 'radio']))
            file.write(json.dumps({'text': text, 'label': label}) + '\n')
    return path


def make_text_teacher(folder, train, judged):
    """A BERT that retort-worker trains on the sentences, over a vocabulary of their words; its folder."""
    spec = importlib.util.spec_from_file_location('make_data', os.path.join(harness.ROOT, 'docs/recipes/make_data.py'))
    make_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_data)
    os.makedirs(folder)
    for name, path in (('train', train), ('test', judged)):
        os.symlink(path, os.path.join(folder, name + '.jsonl'))
    make_data.hwu64(folder, folder)
    recipe = os.path.join(folder, 'recipe.yaml')
    with open(recipe, 'w', encoding='utf-8') as file:
        file.write('''version: 1
task: classification
data: {train: {file: train.jsonl}}
passes:
  - train:
      examples: 4000
      batch_examples: 32
      init: {family: bert, hidden: 64, layers: 2, heads: 2, ffn: 256, context: 32, tokenizer: hwu64-tokenizer}
  - export: {file: teacher, kind: huggingface}
''')
    out = os.path.join(folder, 'out')
    subprocess.run([harness.program('retort-worker'), 'run', recipe, '--out', out, '--threads', '1'], check=True,
                   capture_output=True, timeout=200)
    return os.path.join(out, 'teacher')


def classify(url, value):
    """The likeliest label."""
    request = urllib.request.Request(url + '/v1/classify', json.dumps({'input': value}).encode(),
                                     {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)['data'][0]['label']


class Classifier(harness.FleetTest):
    def test_teacher_to_served_classifier(self):
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '1')
        teacher = fleet.retort('teacher', 'import', make_teacher(fleet.path('teacher')), '--name', 'largest')
        self.assertEqual(teacher['family'], 'mlp')
        for name, count, seed in (('train', 2000, 1), ('judged', 400, 2)):
            fleet.retort('dataset', 'import', make_examples(fleet.path(name + '.jsonl'), count, seed), '--name', name)
        with open(fleet.path('bad.jsonl'), 'w', encoding='utf-8') as file:
            file.write('{"input": [1, 2, 3], "label": "a"}\n{"input": [1, 2, 3]}\n')
        bad = fleet.run_retort('dataset', 'import', fleet.path('bad.jsonl'))
        self.assertEqual(bad.returncode, 3, bad.stderr)
        self.assertIn("line:2", bad.stderr)
        fleet.retort('class', 'set', 'small', '--file', '12KiB')
        fleet.start_agent('one')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'small', fleet.agents['one'])

        command = ['tailor', '--teacher', 'largest', '--class', 'small', '--train', 'train', '--held-out', 'judged']
        wrong = fleet.run_retort(*command, '--tokens', '1000')
        self.assertEqual(wrong.returncode, 3, wrong.stderr)
        self.assertIn("'examples'", wrong.stderr)
        watch = fleet.run_retort(*command, '--examples', '20000', '--watch')
        self.assertEqual(watch.returncode, 0, watch.stdout + watch.stderr + fleet.logs())
        self.assertIn('accuracy', watch.stdout)
        job = fleet.job(fleet.retort('job', 'ls')[0]['id'])
        student = [a for a in job['artifacts'] if a['label'] == 'distilled'][-1]
        self.assertLessEqual(student['bytes'], 12 << 10)
        self.assertLess(student['parameters'], teacher['parameters'])
        self.assertGreater(student['evaluation']['accuracy'], 0.95)
        status = fleet.serving('one', student['sha256'])
        self.assertEqual(classify(status['serve_url'], [0.1, 0.9, 0.3]), 'b')

    def test_teacher_to_served_text_classifier(self):
        fleet = self.fleet
        train, judged = (make_sentences(fleet.path(name + '.jsonl'), count, seed)
                         for name, count, seed in (('train', 1000, 1), ('judged', 200, 2)))
        folder = make_text_teacher(fleet.path('made'), train, judged)
        fleet.start_coordinator('--job-threads', '1')
        teacher = fleet.retort('teacher', 'import', folder, '--name', 'home')
        self.assertEqual(teacher['family'], 'bert')
        for name, path in (('train', train), ('judged', judged)):
            fleet.retort('dataset', 'import', path, '--name', name)
        size = os.path.getsize(os.path.join(folder, 'model.safetensors'))  # F16
        fleet.retort('class', 'set', 'small', '--file', f'{size // 6144}KiB')  # below a third of F16's: four bits alone do not do
        fleet.start_agent('one')
        fleet.wait('enrolment', lambda: fleet.status('one').get('class') == 'small', fleet.agents['one'])

        tailor = fleet.run_retort('tailor', '--teacher', 'home', '--class', 'small', '--train', 'train', '--held-out', 'judged',
                                  '--examples', '4000')
        self.assertEqual(tailor.returncode, 0, tailor.stdout + tailor.stderr + fleet.logs())
        job = fleet.job_done(fleet.retort('job', 'ls')[0]['id'], seconds=300)
        self.assertEqual(job['state'], 'succeeded', job)
        cut, student = ([a for a in job['artifacts'] if a['label'] == label][-1] for label in ('cut only', 'distilled'))
        self.assertLessEqual(student['bytes'], size // 6144 << 10)
        self.assertLess(student['parameters'], teacher['parameters'])
        self.assertGreater(student['evaluation']['accuracy'], 0.95)
        self.assertGreaterEqual(student['evaluation']['accuracy'], cut['evaluation']['accuracy'])
        url = fleet.serving('one', student['sha256'])['serve_url']
        for text, label in (('turn off the cellar fan', 'off'), ('please put on the hall radio', 'on'),
                            ('what does the bath heater say', 'ask')):
            self.assertEqual(classify(url, text), label)


if __name__ == '__main__':
    harness.run()
