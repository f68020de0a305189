#!/usr/bin/env python3
"""Is a distilled student better than the same student trained on the text alone, for the same steps?

    tests/bench/distil_vs_text/distil_vs_text.py BIN_DIR ASSETS_DIR [--seeds 3] [--tokens 200000] [--threads 2]

Cuts babyllama-936k to files of at most 1 MB and 350 KB, then trains each cut both ways from the same seed, in the same
order of data, and judges the Q8_0 files with retort-serve on held-out stories. Prints a Markdown table.
"""
import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile

CLASSES = {'1 MB': (1_000_000, 'ffn: 288'), '350 KB': (350_000, 'layers: 3, ffn: 192, heads: 4, kv_heads: 2')}
WAYS = {'distilled': 'distil.soft: {{tokens: {tokens}, batch_tokens: 2048, learning_rate: 2e-4, temperature: 2.0, alpha: 0.9}}',
        'text alone': 'train: {{tokens: {tokens}, batch_tokens: 2048, learning_rate: 2e-4}}'}


def split_text(assets, folder):
    with open(os.path.join(assets, 'data/text/tinystories_944k.txt'), encoding='utf-8') as file:
        paragraphs = [p for p in (' '.join(q.split()) for q in file.read().split('\n\n')) if len(p) > 40]
    for name, held_out in (('train', False), ('held_out', True)):
        with open(os.path.join(folder, name + '.jsonl'), 'w', encoding='utf-8') as file:
            for paragraph in dict.fromkeys(paragraphs):
                if (hashlib.sha256(paragraph.encode()).digest()[0] < 16) == held_out:
                    file.write(json.dumps({'text': paragraph}) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bin_dir')
    parser.add_argument('assets_dir')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--tokens', type=int, default=200000)
    parser.add_argument('--judge', type=int, default=8000)
    parser.add_argument('--threads', type=int, default=2)
    options = parser.parse_args()
    teacher = os.path.abspath(os.path.join(options.assets_dir, 'teachers/babyllama-936k'))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        split_text(options.assets_dir, folder)
        for size, (limit, cut) in CLASSES.items():
            perplexity = {way: [] for way in WAYS}
            for seed in range(1, options.seeds + 1):
                for way, line in WAYS.items():
                    recipe = os.path.join(folder, 'recipe.yaml')
                    with open(recipe, 'w', encoding='utf-8') as file:
                        file.write(f'version: 1\nseed: {seed}\nteacher: {{model: {teacher}}}\ndata:\n  train: {{file: train.jsonl}}\n'
                                   f'  held_out: {{file: held_out.jsonl, max_tokens: {options.judge}}}\npasses:\n'
                                   f'  - prune.structured: {{{cut}}}\n  - {line.format(tokens=options.tokens)}\n'
                                   '  - export: {file: s.gguf, format: Q8_0}\n')
                    out = os.path.join(folder, f'{limit}-{seed}-{way.replace(" ", "-")}')
                    subprocess.run([os.path.join(options.bin_dir, 'retort-worker'), 'run', recipe, '--out', out, '--threads',
                                    str(options.threads)], check=True, stdout=subprocess.DEVNULL)
                    with open(os.path.join(out, 'result.json'), encoding='utf-8') as file:
                        artifact = json.load(file)['artifacts'][0]
                    if artifact['bytes'] > limit:
                        sys.exit(f'{size}: the file has {artifact["bytes"]} bytes')
                    perplexity[way].append(artifact['evaluation']['perplexity'])
                    print(f'{size}, seed {seed}, {way}: {artifact["bytes"]} bytes, perplexity {perplexity[way][-1]:.4f}, '
                          f'KL {artifact["evaluation"]["kl_divergence"]:.4f}', file=sys.stderr, flush=True)
            gains = [100 * (1 - a / b) for a, b in zip(perplexity['distilled'], perplexity['text alone'])]
            rows.append((size, statistics.mean(perplexity['distilled']), statistics.mean(perplexity['text alone']),
                         statistics.mean(gains), min(gains), max(gains)))
    print('| class | distilled | text alone | perplexity lower by (mean; least; most) |\n|---|---|---|---|')
    for row in rows:
        print('| {} | {:.4f} | {:.4f} | {:.2f} %; {:.2f} %; {:.2f} % |'.format(*row))


if __name__ == '__main__':
    main()
