#!/usr/bin/env python3
"""Peak memory of calibration and rounding for a Llama of 110 million random weights: 12 layers of 768, FFN 2048, 32,000 tokens (the
demo teacher's tokenizer, filled up). Memory and time do not depend on what the weights say.

  quantize_memory.py --work /tmp/bench [--formats Q4_K] [--methods nearest,importance,gptq]
"""
import array
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import time

from bench import Bench, table

WIDTH, LAYERS, FFN, HEADS, VOCABULARY = 768, 12, 2048, 12, 32000
SHAPES = {'model.embed_tokens.weight': (VOCABULARY, WIDTH), 'model.norm.weight': (WIDTH,)}
for layer in range(LAYERS):
    prefix = f'model.layers.{layer}.'
    SHAPES |= {prefix + f'self_attn.{name}_proj.weight': (WIDTH, WIDTH) for name in 'qkvo'}
    SHAPES |= {prefix + f'mlp.{name}_proj.weight': (FFN, WIDTH) for name in ('gate', 'up')}
    SHAPES |= {prefix + 'mlp.down_proj.weight': (WIDTH, FFN), prefix + 'input_layernorm.weight': (WIDTH,),
               prefix + 'post_attention_layernorm.weight': (WIDTH,)}


def make_model(folder, like):
    os.makedirs(folder)
    with open(os.path.join(like, 'tokenizer.json'), encoding='utf-8') as file:
        tokenizer = json.load(file)
    vocabulary = tokenizer['model']['vocab']
    vocabulary |= {f'<filled{i}>': i for i in range(len(vocabulary), VOCABULARY)}
    with open(os.path.join(folder, 'tokenizer.json'), 'w', encoding='utf-8') as file:
        json.dump(tokenizer, file)
    with open(os.path.join(like, 'config.json'), encoding='utf-8') as file:
        config = json.load(file)
    config |= {'vocab_size': VOCABULARY, 'hidden_size': WIDTH, 'intermediate_size': FFN, 'num_hidden_layers': LAYERS,
               'num_attention_heads': HEADS, 'num_key_value_heads': HEADS, 'head_dim': WIDTH // HEADS}
    with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump(config, file)
    rng = random.Random(1)
    normal = array.array('f', (rng.gauss(0, 0.02) for _ in range(1 << 20)))
    header, at = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name, shape in SHAPES.items():
            for _ in range(shape[0]):
                if len(shape) == 1:
                    file.write(struct.pack('<f', 1))
                else:
                    begin = rng.randrange(len(normal) - shape[1])
                    file.write(normal[begin:begin + shape[1]].tobytes())


bench = Bench(__doc__)
bench.parser.add_argument('--formats', default='Q4_K')
bench.parser.add_argument('--methods', default='nearest,importance,gptq')
bench.parser.add_argument('--calibration-tokens', default='16384')
args = bench.start()
teacher = os.path.join(bench.work, '110M')
if not os.path.exists(teacher):
    make_model(teacher + '.part', args.teacher)
    os.rename(teacher + '.part', teacher)
rows = []
for kind in args.formats.split(','):
    for method in args.methods.split(','):
        extra = '' if method == 'nearest' else f', calibration_tokens: {args.calibration_tokens}'
        recipe, out = os.path.join(bench.work, '110M.yaml'), os.path.join(bench.work, '110M-out')
        shutil.rmtree(out, ignore_errors=True)
        with open(recipe, 'w', encoding='utf-8') as file:
            file.write(f'version: 1\nteacher: {{model: {teacher}}}\ndata: {{train: {{file: {bench.work}/text/distil.jsonl}}}}\n'
                       f'passes:\n  - quantize.weights: {{format: {kind}, method: {method}{extra}}}\n'
                       '  - export: {file: q.gguf}\n')
        command = [os.path.join(args.retort, 'retort-worker'), 'run', recipe, '--threads', args.threads]
        planned = subprocess.run(command + ['--dry-run'], check=True, capture_output=True, text=True).stdout
        start = time.monotonic()
        process = subprocess.Popen(command + ['--out', out], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f'{method} failed')
        rows.append((kind, method, re.search(r'peak memory about ([^,]+),', planned).group(1),
                     f'{used.ru_maxrss / 1024:.0f} MiB', f'{time.monotonic() - start:.0f} s'))
        shutil.rmtree(out)
table(('format', 'method', 'planned', 'peak', 'time'), rows)
