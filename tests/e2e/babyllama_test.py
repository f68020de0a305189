"""A real teacher of 0.94 million parameters to two classes of device: files of 1 MB and 350 KB at most.

With RETORT_SEEDS=N the students are also compared with the same cut trained on text alone for the same steps,
over N seeds (minutes); `python3 tests/e2e/babyllama_test.py build/release/bin` prints the table.
"""
import hashlib
import json
import os
import statistics
import unittest

import harness


def split_text(fleet):
    """Paragraphs of TinyStories, split by their hash: (train, judged) files."""
    with open(harness.asset('data/text/tinystories_944k.txt'), encoding='utf-8') as file:
        paragraphs = [p for p in (' '.join(q.split()) for q in file.read().split('\n\n')) if len(p) > 40]
    parts = {'train': [], 'judged': []}
    for paragraph in dict.fromkeys(paragraphs):
        first = hashlib.sha256(paragraph.encode()).digest()[0]
        parts['judged' if first < 16 else 'train'].append(paragraph)
    parts['judged'] = parts['judged'][:80]
    paths = {}
    for name, texts in parts.items():
        paths[name] = fleet.path(name + '.jsonl')
        with open(paths[name], 'w', encoding='utf-8') as file:
            file.writelines(json.dumps({'text': text}) + '\n' for text in texts)
    return paths


class BabyLlama(harness.FleetTest):
    def setUp(self):
        if not harness.asset('teachers/babyllama-936k') or not harness.asset('data/text/tinystories_944k.txt'):
            self.skipTest('the shared assets are not here')
        super().setUp()
        fleet = self.fleet
        fleet.start_coordinator('--job-threads', '2')
        fleet.retort('teacher', 'import', harness.asset('teachers/babyllama-936k'), '--name', 'baby')
        for name, path in split_text(fleet).items():
            fleet.retort('dataset', 'import', path, '--name', name)

    def test_two_classes(self):
        fleet = self.fleet
        fleet.retort('class', 'set', 'roomy', '--min-memory', '100MiB', '--file', '1000000')
        fleet.retort('class', 'set', 'tight', '--max-memory', '99MiB', '--file', '350000')
        for name, memory, wanted in (('a', '200MiB', 'roomy'), ('b', '64MiB', 'tight')):
            fleet.start_agent(name, '--memory-budget', memory)
            fleet.wait(f'{name} in class {wanted}', lambda n=name, w=wanted: fleet.status(n).get('class') == w, fleet.agents[name])
        watch = fleet.run_tailor('baby', ['roomy', 'tight'], tokens=60000)
        self.assertEqual(watch.returncode, 0, watch.stdout + watch.stderr + fleet.logs())
        students = {}
        for job in fleet.retort('job', 'ls'):
            job = fleet.job(job['id'])
            self.assertEqual(job['state'], 'succeeded')
            students[job['class']] = {a['label']: a for a in job['artifacts']}
        for name, limit in (('roomy', 1_000_000), ('tight', 350_000)):
            # All of the teacher in four bits goes into the larger one; the smaller one is cut as well.
            before = 'rounded only' if name == 'roomy' else 'cut only'
            distilled, plain = students[name]['distilled'], students[name][before]
            self.assertLessEqual(distilled['bytes'], limit)
            self.assertLess(distilled['evaluation']['perplexity'], plain['evaluation']['perplexity'])
            self.assertLess(distilled['evaluation']['kl_divergence'], plain['evaluation']['kl_divergence'])
            print(f"  {name}: {distilled['bytes']} bytes, perplexity {distilled['evaluation']['perplexity']:.3f}, "
                  f"{before} {plain['evaluation']['perplexity']:.3f}")
        computed = []
        for job in sorted(fleet.retort('job', 'ls'), key=lambda job: job['id']):
            with open(fleet.path('data', 'jobs', job['id'], 'progress.jsonl'), encoding='utf-8') as file:
                computed += [e['windows_computed'] for e in map(json.loads, file) if e['event'] == 'teacher_outputs']
        self.assertEqual(sorted(computed)[0], 0, 'the second class of one corpus runs no teacher')
        self.assertGreater(sorted(computed)[1], 0)
        self.assertNotEqual(students['roomy']['distilled']['sha256'], students['tight']['distilled']['sha256'])
        for agent, name in (('a', 'roomy'), ('b', 'tight')):
            status = fleet.serving(agent, students[name]['distilled']['sha256'])
            self.assertGreater(len(harness.complete(status['serve_url'], 'Once upon a time', 40)), 20)

    def test_distillation_against_text_alone(self):
        seeds = int(os.environ.get('RETORT_SEEDS', '0'))
        if not seeds:
            self.skipTest('set RETORT_SEEDS=3 to compare over three seeds (minutes)')
        tokens = int(os.environ.get('RETORT_TOKENS', '60000'))
        fleet = self.fleet
        ways = {
            'distilled': 'distil.soft: {tokens: %d, batch_tokens: 2048, temperature: 2.0, alpha: 0.5, learning_rate: 5e-4}' % tokens,
            'text alone': 'train: {tokens: %d, batch_tokens: 2048, learning_rate: 5e-4}' % tokens,
        }
        for size, cut in (('1 MB', 'layers: 4, ffn: 256'), ('350 KB', 'layers: 2, ffn: 160, heads: 4, kv_heads: 2')):
            results = {way: [] for way in ways}
            for seed in range(1, seeds + 1):
                for way, line in ways.items():
                    path = fleet.path('recipe.yaml')
                    with open(path, 'w', encoding='utf-8') as file:
                        file.write(f'version: 1\nseed: {seed}\nteacher: {{id: baby}}\ndata:\n  train: {{dataset: train}}\n'
                                   f'  held_out: {{dataset: judged}}\npasses:\n'
                                   f'  - prune.structured: {{{cut}, importance: activation, calibration_tokens: 8192}}\n'
                                   f'  - {line}\n  - quantize.weights: {{format: Q8_0}}\n'
                                   f'  - export: {{file: s.gguf, format: Q8_0, label: "{way}"}}\n')
                    job = fleet.job_done(fleet.retort('job', 'submit', path)['id'], seconds=600)
                    self.assertEqual(job['state'], 'succeeded', json.dumps(job) + fleet.logs())
                    results[way].append(job['artifacts'][-1]['evaluation']['perplexity'])
                    print(f'  {size}, seed {seed}, {way}: {job["artifacts"][-1]["bytes"]} bytes, '
                          f'perplexity {results[way][-1]:.4f}', flush=True)
            gains = [1 - a / b for a, b in zip(results['distilled'], results['text alone'])]
            print(f'  {size}: distilled {statistics.mean(results["distilled"]):.4f}, text alone '
                  f'{statistics.mean(results["text alone"]):.4f}, gain {statistics.mean(gains) * 100:.2f} %')
            self.assertGreater(min(gains), 0, f'{size}: {results}')


if __name__ == '__main__':
    harness.run()
