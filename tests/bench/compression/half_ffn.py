#!/usr/bin/env python3
"""Half of the FFN neurons cut, then distilled: how much of the loss that the cut caused comes back (bar: 80 %), beside the same shape
from random weights that learns from the same tokens, from the teacher and from the text alone. Losses are means per token of the
held-out text.

  half_ffn.py --work /tmp/bench [--tokens 200000] [--seeds 3]
"""
import math

from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--tokens', type=int, default=200000)
bench.parser.add_argument('--seeds', type=int, default=3)
args = bench.start()
tokenizer = args.teacher
init = f'init: {{hidden: 256, layers: 4, heads: 8, ffn: 384, context: 256, tokenizer: {tokenizer}}}'  # the demo teacher's, but for ffn
cut = 'prune.structured: {ffn: 384}'
ways = {
    'cut': [cut],
    'cut, distil.soft': [cut, f'distil.soft: {{tokens: {args.tokens}, learning_rate: 5e-4}}'],
    'random weights, text alone': [f'train: {{tokens: {args.tokens}, learning_rate: 2e-3, {init}}}'],
}
whole, _, _ = bench.recipe(['export: {file: F32.gguf, format: F32}'])
teacher = math.log(whole['F32.gguf']['evaluation']['perplexity'])
rows = [('teacher', '', f'{math.exp(teacher):.2f}', '')]
for seed in range(1, args.seeds + 1):
    lost = None
    for label, passes in ways.items():
        artifacts, _, _ = bench.recipe([*passes, 'export: {file: s.gguf, format: F32}'], seed=seed)
        loss = math.log(artifacts['s.gguf']['evaluation']['perplexity'])
        lost = lost or loss
        rows.append((label, str(seed), f'{math.exp(loss):.2f}', f'{(lost - loss) / (lost - teacher):.0%}'))
table(('student', 'seed', 'perplexity', 'of what the cut cost comes back'), rows)
