#!/usr/bin/env python3
"""A format for each matrix under a budget of bits, beside one format for all at the same bits.

  mixed_formats.py --work /tmp/bench
"""
from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--method', default='nearest', choices=('nearest', 'importance', 'gptq'))
args = bench.start()
rows = []
for name, bits in (('Q3_K', 3.4375), ('Q4_K', 4.5), ('Q5_K', 5.5), ('Q6_K', 6.5625)):
    for label, what in ((name, f'format: {name}'), (f'bits: {bits}', f'bits: {bits}')):
        artifacts, _, _ = bench.recipe([f'quantize.weights: {{{what}, method: {args.method}}}', 'export: {file: q.gguf}'])
        a = artifacts['q.gguf']
        rows.append((label, f'{a["bytes"]:,}', f'{a["evaluation"]["perplexity"]:.3f}',
                     f'{a["evaluation"]["kl_divergence"]:.5f}', f'{a["evaluation"]["top1_agreement"]:.1%}'))
table(('', 'bytes', 'perplexity', 'KL divergence', 'top-1'), rows)
