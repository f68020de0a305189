#!/usr/bin/env python3
"""One cut student, learning from labels alone, from soft targets, and from mixtures, same steps and seeds.

  distil_mixtures.py --work /tmp/bench [--tokens 100000] [--seeds 3]
"""
import statistics

from bench import Bench, table

WAYS = {
    'labels alone': 'train: {{{keys}}}',
    'soft': 'distil: {{{keys}, labels: 0.5, soft: 0.5}}',
    'soft, top 64': 'distil.soft: {{{keys}, alpha: 0.5, teacher_outputs: top_k, k: 64}}',
    'soft, 50 draws': 'distil.soft: {{{keys}, alpha: 0.5, teacher_outputs: sampled, k: 50}}',
    'soft, attention': 'distil: {{{keys}, labels: 0.5, soft: 0.5, attention: 30}}',
    'soft, hidden': 'distil: {{{keys}, labels: 0.5, soft: 0.5, hidden: 0.1}}',
    'soft, relations': 'distil: {{{keys}, labels: 0.5, soft: 0.5, relation: 1}}',
    'soft, relations 0.05': 'distil: {{{keys}, labels: 0.5, soft: 0.5, relation: 0.05}}',
    'reverse': 'distil: {{{keys}, labels: 0.5, soft: 0.5, divergence: reverse}}',
    'jsd, on policy': 'distil: {{{keys}, labels: 0.5, soft: 0.5, divergence: jsd, on_policy: 0.25}}',
    'sequence': 'distil.sequence: {{{keys}}}',
    'soft, a quarter sequence': 'distil: {{{keys}, labels: 0.5, soft: 0.5, teacher_text: 0.25}}',
}
bench = Bench(__doc__)
bench.parser.add_argument('--tokens', type=int, default=100000)
bench.parser.add_argument('--seeds', type=int, default=3)
bench.parser.add_argument('--cut', default='layers: 2, ffn: 512')
bench.parser.add_argument('--ways', default=';'.join(WAYS))
args = bench.start()
rows = []
for way in args.ways.split(';'):
    found = []
    for seed in range(1, args.seeds + 1):
        keys = f'tokens: {args.tokens}, learning_rate: 5e-4'
        artifacts, _, _ = bench.recipe([f'prune.structured: {{{args.cut}}}', WAYS[way].format(keys=keys),
                                        'export: {file: s.gguf, format: Q8_0}'], seed)
        found.append(artifacts['s.gguf']['evaluation'])
    ppl, kl = [f['perplexity'] for f in found], [f['kl_divergence'] for f in found]
    rows.append((way, f'{statistics.mean(ppl):.2f}', ', '.join(f'{p:.2f}' for p in ppl), f'{statistics.mean(kl):.4f}'))
    print('…', *rows[-1], flush=True)
table(('', 'perplexity', 'seeds', 'KL divergence'), rows)
