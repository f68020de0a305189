#!/usr/bin/env python3
"""Half of the layers' weights to zero, by Wanda and by magnitude, with and without a distillation that keeps the zeros; files as
SPARSE_Q8 beside the dense Q8_0 (bars: Wanda better than magnitude, at most 1.4 times the dense perplexity, a smaller file).

  sparse.py --work /tmp/bench [--tokens 100000] [--sparsity 0.5] [--seeds 3]

The cut itself does not depend on the seed but by the text that Wanda looks at; the distillation does.
"""
from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--tokens', type=int, default=100000)
bench.parser.add_argument('--sparsity', default='0.5')
bench.parser.add_argument('--seeds', type=int, default=3)
args = bench.start()
dense = bench.recipe(['quantize.weights: {format: Q8_0}', 'export: {file: s.gguf}'])[0]['s.gguf']
base = dense['evaluation']['perplexity']
rows = [('dense, Q8_0', '', f"{dense['bytes']:,}", f'{base:.2f}', '', f"{dense['evaluation']['kl_divergence']:.4f}")]
for learnt in ('', f'distil.soft: {{tokens: {args.tokens}, learning_rate: 5e-4}}'):
    for method in ('magnitude', 'wanda'):
        for seed in range(1, args.seeds + 1):
            cut = f'prune.unstructured: {{sparsity: {args.sparsity}, method: {method}}}'
            stored = 'quantize.weights: {format: Q8_0, formats: [{match: "*layers*", format: SPARSE_Q8}]}'
            made = bench.recipe([cut] + ([learnt] if learnt else []) + [stored, 'export: {file: s.gguf}'], seed=seed)[0]['s.gguf']
            e = made['evaluation']
            rows.append((method + (', distilled' if learnt else ''), str(seed), f"{made['bytes']:,}", f"{e['perplexity']:.2f}",
                         f"{e['perplexity'] / base:.2f}", f"{e['kl_divergence']:.4f}"))
table(('', 'seed', 'bytes', 'perplexity', 'of dense', 'KL divergence'), rows)
