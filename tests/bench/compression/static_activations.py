#!/usr/bin/env python3
"""W8A8: weights in Q8_0, inputs with scales found beforehand, of a Llama with outliers put in (some channels of its norms are
made so many times larger and the columns that read them smaller, so that the model stays the same): plain scales by each
method, and after SmoothQuant. Perplexity, KL divergence from the F32 file and top-1 agreement.

  static_activations.py --work /tmp/bench [--teacher DIR] [--outliers 8] [--factor 60]
"""
import array
import json
import os
import random
import shutil
import struct

from bench import Bench, table

bench = Bench(__doc__)
bench.parser.add_argument('--outliers', type=int, default=8, help='channels')
bench.parser.add_argument('--factor', type=float, default=60)
args = bench.start()

READERS = ('q_proj.weight', 'k_proj.weight', 'v_proj.weight', 'gate_proj.weight', 'up_proj.weight')


def inject(folder):
    path = os.path.join(folder, 'model.safetensors')
    with open(path, 'rb') as file:
        data = bytearray(file.read())
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + length])
    width = next(t['shape'][0] for name, t in header.items() if name.endswith('input_layernorm.weight'))
    channels = random.Random(1).sample(range(width), args.outliers)
    for name, tensor in header.items():
        norm = name.endswith('layernorm.weight')
        if not norm and not name.endswith(READERS):
            continue
        begin, end = (8 + length + offset for offset in tensor['data_offsets'])
        values = array.array('f', bytes(data[begin:end]))
        for first in range(0, len(values), width):
            for channel in channels:
                values[first + channel] *= args.factor if norm else 1 / args.factor
        data[begin:end] = values.tobytes()
    with open(path, 'wb') as file:
        file.write(data)


teacher = os.path.join(bench.work, f'outliers-{args.outliers}-{args.factor:g}')
if not os.path.exists(teacher):
    _, _, folder = bench.recipe(['export: {file: whole, kind: huggingface, dtype: F32}'])
    shutil.rmtree(teacher + '.part', ignore_errors=True)
    shutil.copytree(os.path.join(folder, 'whole'), teacher + '.part')
    inject(teacher + '.part')
    os.rename(teacher + '.part', teacher)
args.teacher = teacher

WAYS = {
    'F32': [],
    'inputs quantized block by block': [],
    'static, minmax': ['quantize.activations: {}'],
    'static, percentile 99.99': ['quantize.activations: {method: percentile}'],
    'static, mse': ['quantize.activations: {method: mse}'],
    'static, kl': ['quantize.activations: {method: kl}'],
    'smooth 0.5': ['quantize.activations: {smooth: 0.5}'],
    'smooth 0.5, down projections too': ['quantize.activations: {smooth: 0.5, dynamic: []}'],
    'smooth 0.8': ['quantize.activations: {smooth: 0.8}'],
}
rows, base = [], None
for name, passes in WAYS.items():
    last = 'F32' if name == 'F32' else 'Q8_0'
    artifacts, _, _ = bench.recipe([*passes, f'export: {{file: q.gguf, format: {last}}}'])
    figures = artifacts['q.gguf']['evaluation']
    base = base or figures['perplexity']
    rows.append((name, f'{figures["perplexity"]:.3f}', f'{figures["perplexity"] / base - 1:+.2%}',
                 f'{figures["kl_divergence"]:.5f}', f'{figures["top1_agreement"]:.1%}'))
table(('', 'perplexity', 'more', 'KL divergence', 'top-1'), rows)
