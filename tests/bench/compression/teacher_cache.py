#!/usr/bin/env python3
"""Students of several classes of one corpus: the teacher's work and the time, with and without a cache of its outputs.

  teacher_cache.py --work /tmp/bench [--classes 3] [--tokens 60000]
"""
import os
import shutil

from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--classes', type=int, default=3)
bench.parser.add_argument('--tokens', type=int, default=60000)
args = bench.start()
rows = []
cache = os.path.join(bench.work, 'cache')
for label, options, outputs in (('whole distribution', [], ''), ('top 64, no cache', [], ', teacher_outputs: top_k'),
                                ('top 64, cache', ['--cache', cache], ', teacher_outputs: top_k')):
    shutil.rmtree(cache, ignore_errors=True)
    for index in range(args.classes):
        artifacts, events, folder = bench.recipe(
            [f'prune.structured: {{layers: 1, ffn: {256 + 32 * index}, heads: 4}}',
             f'distil.soft: {{tokens: {args.tokens}, alpha: 0.5, learning_rate: 5e-4{outputs}}}',
             'export: {file: s.gguf, format: Q8_0}'], options=options)
        told = [e for e in events if e['event'] == 'teacher_outputs']
        steps = [e for e in events if e['event'] == 'progress']
        rows.append((label, str(index + 1), str(told[-1]['windows_computed']) if told else 'all',
                     f'{steps[-1]["tokens_per_second"]:.0f}', f'{artifacts["s.gguf"]["evaluation"]["perplexity"]:.2f}'))
        shutil.rmtree(folder)
table(('teacher outputs', 'class', "windows through the teacher", 'tokens/s', 'perplexity'), rows)
