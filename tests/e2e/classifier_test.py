"""A classifier of numbers: a teacher by hand, imported, tailored to a class by its file, pulled by an agent and asked there."""
import json
import os
import random
import struct
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
        request = urllib.request.Request(status['serve_url'] + '/v1/classify', json.dumps({'input': [0.1, 0.9, 0.3]}).encode(),
                                         {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=10) as answer:
            self.assertEqual(json.load(answer)['data'][0]['label'], 'b')


if __name__ == '__main__':
    harness.run()
