#!/usr/bin/env python3
"""Rounding to nearest, and the same after quantize.aware: how much of rounding's loss distillation with rounded weights recovers
(bar: a third), beside the same steps of distillation without rounding.

  quantize_aware.py --work /tmp/bench [--formats Q4_0,Q3_K] [--tokens 100000]
"""
from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--formats', default='Q4_0,Q3_K')
bench.parser.add_argument('--tokens', type=int, default=100000)
bench.parser.add_argument('--learning-rate', default='5e-5')
args = bench.start()
whole, _, _ = bench.recipe(['export: {file: F32.gguf, format: F32}'])
base = whole['F32.gguf']['evaluation']['perplexity']
print(f'F32: perplexity {base:.3f}\n')
rows = []
for name in args.formats.split(','):
    keys = f'tokens: {args.tokens}, alpha: 1, temperature: 1, learning_rate: {args.learning_rate}'
    nearest = None
    for label, before in (('nearest', []), ('distil.soft, then nearest', [f'distil.soft: {{{keys}}}']),
                          ('quantize.aware', [f'quantize.aware: {{{keys}, format: {name}}}'])):
        artifacts, _, _ = bench.recipe([*before, f'quantize.weights: {{format: {name}}}', 'export: {file: q.gguf}'])
        e = artifacts['q.gguf']['evaluation']
        nearest = nearest or e
        lost = nearest['perplexity'] - base
        rows.append((name, label, f'{e["perplexity"]:.3f}', f'{e["kl_divergence"]:.5f}',
                     f'{1 - e["kl_divergence"] / nearest["kl_divergence"]:.0%}',
                     f'{1 - (e["perplexity"] - base) / lost:.0%}' if lost > 0 else '–'))
table(('format', '', 'perplexity', 'KL divergence', "of nearest's KL recovered", 'of its perplexity loss'), rows)
