#!/usr/bin/env python3
"""The demo teacher's shape from random weights in F32 and in BF16, same steps and seeds: speed and final held-out perplexity.

  mixed_precision.py --work /tmp/bench [--tokens 300000] [--seeds 3]

Without AVX512-BF16 the products in BF16 are emulated: slow, and of the same result.
"""
import statistics

from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--tokens', type=int, default=300000)
bench.parser.add_argument('--seeds', type=int, default=3)
args = bench.start()
init = f'init: {{hidden: 256, layers: 4, heads: 8, ffn: 768, context: 256, tokenizer: {args.teacher}}}'
rows = []
for seed in range(1, args.seeds + 1):
    for precision in ('f32', 'bf16'):
        artifacts, events, _ = bench.recipe([f'train: {{tokens: {args.tokens}, learning_rate: 2e-3, precision: {precision}, {init}}}',
                                             'export: {file: s.gguf, format: F32}'], seed=seed)
        speed = statistics.median(e['tokens_per_second'] for e in events if e['event'] == 'progress')
        rows.append((precision, str(seed), f'{speed:,.0f}', f"{artifacts['s.gguf']['evaluation']['perplexity']:.3f}"))
table(('products in', 'seed', 'tokens/s', 'perplexity'), rows)
