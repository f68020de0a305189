"""scripts/debian-descriptions and train_tokenizer.py on a made-up apt-cache: split, text, tokens that spell the text."""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..')


class Descriptions(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        stanzas = ''.join(f'Package: tool{i}\nSection: non-free/utils\nDescription: tool number {i} for the café\n'
                          f'Description-md5: {i}\nTag: a,\n b\n\n' for i in range(400))
        with open(os.path.join(self.folder, 'apt-cache'), 'w', encoding='utf-8') as file:
            file.write(f"#!/bin/sh\ncat <<'END'\n{stanzas}END\n")
        os.chmod(file.name, 0o755)

    def run_script(self, *command):
        environment = dict(os.environ, PATH=self.folder + ':' + os.environ['PATH'])
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)

    def lines(self, name):
        with open(os.path.join(self.folder, 'out', name + '.jsonl'), encoding='utf-8') as file:
            return [json.loads(line) for line in file]

    def test_split_and_tokenizer(self):
        out = os.path.join(self.folder, 'out')
        self.run_script(os.path.join(ROOT, 'scripts/debian-descriptions'), out)
        splits = {name: self.lines(name) for name in ('train', 'distil', 'held_out')}
        self.assertEqual(sum(map(len, splits.values())), 400)
        for name, members in splits.items():
            for member in members:
                first = hashlib.sha256(member['key'].encode()).digest()[0]
                self.assertEqual(name, 'held_out' if first < 8 else 'distil' if first < 64 else 'train')
        some = splits['train'][0]
        self.assertEqual(some['label'], 'utils')
        self.assertEqual(some['text'], f"{some['key']}: tool number {some['key'][4:]} for the café\n")

        self.run_script(os.path.join(ROOT, 'scripts/demo-teacher/train_tokenizer.py'), os.path.join(out, 'train.jsonl'),
                        os.path.join(out, 'tok'), '--vocabulary', '300')
        with open(os.path.join(out, 'tok/tokenizer.json'), encoding='utf-8') as file:
            model = json.load(file)['model']
        self.assertLessEqual(len(model['vocab']), 300)
        self.assertEqual(sorted(model['vocab'].values()), list(range(len(model['vocab']))))
        self.assertEqual(model['vocab']['<|endoftext|>'], 0)
        for merge in model['merges']:
            left, right = merge.split(' ')
            self.assertTrue({left, right, left + right} <= model['vocab'].keys(), merge)
        self.assertIn('Ġnumber', model['vocab'])


if __name__ == '__main__':
    unittest.main()
