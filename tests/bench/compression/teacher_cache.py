#!/usr/bin/env python3
"""Cost against the number of classes of one corpus: CPU time of each class's whole run (pruning, distilling, quantizing, judging),
beside the same run that learns from the text alone and pays no teacher.

  teacher_cache.py --work /tmp/bench [--classes 10] [--tokens 200000] [--hidden 96] [--outputs top_k] [--text train]

Shared part: what the first class with an empty cache takes more than again with the full one. A class's own training: its recipe
with 'train' for 'distil.soft'.
"""
import os
import resource
import shutil

from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--classes', type=int, default=10)
bench.parser.add_argument('--tokens', type=int, default=200000)
bench.parser.add_argument('--hidden', type=int, default=96, help="students' width; 96 of the demo teacher's 256: ≤⅙ of its parameters")
bench.parser.add_argument('--outputs', default='top_k', choices=['top_k', 'sampled'])
bench.parser.add_argument('--text', default='distil', choices=['distil', 'train'], help='some 310,000 or a million tokens')
args = bench.start()
cache = os.path.join(bench.work, 'cache')
shutil.rmtree(cache, ignore_errors=True)


def cost(index, learn, options=()):
    """CPU seconds, windows that the teacher computed, parameters and perplexity of one class's run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    artifacts, events, folder = bench.recipe(
        [f'prune.structured: {{layers: 1, hidden: {args.hidden}, ffn: {64 + 16 * index}, heads: 2}}', learn,
         'quantize.weights: {format: Q8_0}', 'export: {file: s.gguf}'], options=options, learn_from=args.text)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder)
    told = [e for e in events if e['event'] == 'teacher_outputs']
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (seconds, told[-1]['windows_computed'] if told else 0, artifacts['s.gguf']['parameters'],
            artifacts['s.gguf']['evaluation']['perplexity'])


rest = f'tokens: {args.tokens}, learning_rate: 5e-4'
distil = f'distil.soft: {{{rest}, alpha: 0.5, teacher_outputs: {args.outputs}}}'
rows, total, own, first = [], 0, 0, 0
for i in range(args.classes):
    distilled = cost(i, distil, ['--cache', cache])
    alone = cost(i, f'train: {{{rest}}}')
    if i == 0:
        first = distilled[0]
        shared = first - cost(i, distil, ['--cache', cache])[0]
    total += distilled[0]
    own += alone[0]
    rows.append((str(i + 1), f'{distilled[2]:,}', str(distilled[1]), f'{distilled[0]:.1f} s', f'{alone[0]:.1f} s',
                 f'{distilled[3]:.1f}', f'{alone[3]:.1f}', f'{total / first:.2f}', f'{total / (shared + own):.2f}'))
table(('classes', 'parameters', 'windows through the teacher', 'CPU', 'CPU, text alone', 'perplexity', 'text alone',
       'all so far / one class', 'all so far / (shared + own)'), rows)
print(f'shared part {shared:.1f} s')
