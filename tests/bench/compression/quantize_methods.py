#!/usr/bin/env python3
"""Rounding to nearest, importance, GPTQ and AWQ at the same bytes: perplexity, KL divergence from the F32 file and top-1
agreement, and how much of nearest's KL divergence and perplexity loss each recovers. With --llama-cpp DIR also llama-quantize
--pure without and with an importance matrix (llama-imatrix over the same text).

  quantize_methods.py --work /tmp/bench [--formats Q4_0,Q4_K,Q3_K] [--llama-cpp DIR]
"""
import os

from bench import Bench, run, table

METHODS = {
    'nearest': '', 'importance': ', method: importance', 'gptq': ', method: gptq',
    'gptq, act_order': ', method: gptq, act_order: true', 'awq': ', awq: true',
    'awq, importance': ', awq: true, method: importance', 'awq, gptq': ', awq: true, method: gptq',
}
THEIRS = {'Q5_K': 'Q5_K_S', 'Q4_K': 'Q4_K_S', 'Q3_K': 'Q3_K_S'}

bench = Bench(__doc__)
bench.parser.add_argument('--formats', default='Q4_0,Q4_K,Q3_K')
bench.parser.add_argument('--methods', default=';'.join(METHODS), help='of those, with ; between')
bench.parser.add_argument('--calibration-tokens', default='16384')
bench.parser.add_argument('--llama-cpp', help='folder of llama-quantize and llama-imatrix')
args = bench.start()

whole, _, folder = bench.recipe(['export: {file: F32.gguf, format: F32}'])
base = whole['F32.gguf']['evaluation']['perplexity']
f32 = os.path.join(folder, 'F32.gguf')
print(f'F32: perplexity {base:.3f}; calibrated on {args.calibration_tokens} tokens\n')
rows = []


def add(name, method, size, figures, nearest):
    def share(have, lost):
        return f'{1 - have / lost:.0%}' if lost > 0 else '–'
    rows.append((name, method, f'{size:,}', f'{figures["perplexity"]:.3f}', f'{figures["kl_divergence"]:.5f}',
                 f'{figures["top1_agreement"]:.1%}', share(figures['kl_divergence'], nearest['kl_divergence']),
                 share(figures['perplexity'] - base, nearest['perplexity'] - base)))


for name in args.formats.split(','):
    nearest = None
    for method in args.methods.split(';'):
        extra = METHODS[method]
        if extra:
            extra += f', calibration_tokens: {args.calibration_tokens}'
        artifacts, _, _ = bench.recipe([f'quantize.weights: {{format: {name}{extra}}}', 'export: {file: q.gguf}'])
        figures = artifacts['q.gguf']['evaluation']
        nearest = nearest or figures
        add(name, method, artifacts['q.gguf']['bytes'], figures, nearest)
    if args.llama_cpp:
        import json
        matrix, text = os.path.join(bench.work, 'imatrix.gguf'), os.path.join(bench.work, 'calibration.txt')
        if not os.path.exists(matrix):
            with open(os.path.join(bench.work, 'text/distil.jsonl'), encoding='utf-8') as lines, \
                    open(text, 'w', encoding='utf-8') as out:
                out.writelines(json.loads(line)['text'] + '\n' for line, _ in zip(lines, range(1500)))
            run([os.path.join(args.llama_cpp, 'llama-imatrix'), '-m', f32, '-f', text, '-o', matrix, '-c', '256',
                 '--process-output'])
        for label, option in (('llama.cpp', []), ('llama.cpp, imatrix', ['--imatrix', matrix])):
            file = os.path.join(bench.work, 'peer.gguf')
            run([os.path.join(args.llama_cpp, 'llama-quantize'), '--pure', *option, f32, file, THEIRS.get(name, name)])
            add(name, label, os.path.getsize(file), bench.judge(file, f32), nearest)
table(('format', 'method', 'bytes', 'perplexity', 'KL divergence', 'top-1', "of nearest's KL recovered",
       "of its perplexity loss"), rows)
