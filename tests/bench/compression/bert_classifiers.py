#!/usr/bin/env python3
"""A small BERT that classifies HWU64's commands: with and without learning hidden tokens of unlabelled commands first, and
what four bits a weight cost it, by rounding method. Texts come from the shared assets (HWU64, SNIPS, CLINC150).

  bert_classifiers.py --work /tmp/bench --assets ../shared/assets [--tokens 4000000 --examples 30000]
"""
import argparse
import json
import os
import random
import sys

from bench import ROOT, run, table

SHAPE = 'hidden: 128, layers: 2, heads: 4, ffn: 256, context: 32, tokenizer: hwu64-tokenizer'
EMBEDDING = 'formats: [{match: "*word_embeddings*", format: F16}]'
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--retort', default=os.path.join(ROOT, 'build/release/bin'), help='folder of the programs')
parser.add_argument('--work', required=True, help='folder for data, models and results; kept')
parser.add_argument('--assets', default=os.path.join(ROOT, '../shared/assets'))
parser.add_argument('--tokens', type=int, default=4000000, help='to learn hidden tokens from')
parser.add_argument('--examples', type=int, default=30000, help='to learn labels from')
parser.add_argument('--threads', default='1')
args = parser.parse_args()
work, data = os.path.abspath(args.work), os.path.join(os.path.abspath(args.assets), 'data')
os.makedirs(work, exist_ok=True)
run([sys.executable, '-B', os.path.join(ROOT, 'docs/recipes/make_data.py'), 'hwu64', work, '--from', os.path.join(data, 'hwu64')])


def texts_of(name, *files):
    with open(os.path.join(work, name), 'w', encoding='utf-8') as out:
        for path in files:
            with open(os.path.join(data, path), encoding='utf-8') as file:
                out.writelines(json.dumps({'text': json.loads(line)['text']}) + '\n' for line in file)


texts_of('texts.jsonl', 'hwu64/train.jsonl', 'clinc150/train.jsonl', 'snips/train.jsonl')
texts_of('judged.jsonl', 'hwu64/test.jsonl')
with open(os.path.join(work, 'hwu64-train.jsonl'), encoding='utf-8') as file:
    lines = file.readlines()
random.Random(1).shuffle(lines)
with open(os.path.join(work, 'few.jsonl'), 'w', encoding='utf-8') as file:
    file.writelines(lines[:640])


def worker(name, head, passes):
    """Runs a recipe in work/name, or takes what an earlier run left; its events."""
    path = os.path.join(work, name + '.yaml')
    with open(path, 'w', encoding='utf-8') as file:
        file.write('version: 1\nseed: 1\n' + head + 'passes:\n' + ''.join(f'  - {line}\n' for line in passes))
    run([os.path.join(args.retort, 'retort-worker'), 'run', path, '--out', os.path.join(work, name), '--threads', args.threads])
    with open(os.path.join(work, name, 'progress.jsonl'), encoding='utf-8') as file:
        return [json.loads(line) for line in file]


def judged(events):
    return [e for e in events if e['event'] == 'evaluation'][-1]


masked = worker('masked', 'data: {train: {file: texts.jsonl}, held_out: {file: judged.jsonl}}\n', [
    f'train: {{tokens: {args.tokens}, learning_rate: 1e-3, init: {{family: bert, {SHAPE}}}}}',
    'export: {file: m, kind: huggingface, dtype: F32}', 'export: {file: m.gguf, format: F32}'])
print(f"hidden tokens of HWU64's test: perplexity {judged(masked)['perplexity']:.1f}, told {judged(masked)['accuracy']:.1%}\n")
rows = []
for count, file, examples in (('640', 'few', args.examples // 3), ('9,960', 'hwu64-train', args.examples)):
    for begins, init in (('random weights', SHAPE), ('hidden tokens', 'model: masked/m')):
        found = judged(worker(f'{file}-{begins.split()[0]}',
                              f'task: classification\ndata: {{train: {{file: {file}.jsonl}}, held_out: {{file: hwu64-test.jsonl}}}}\n',
                              [f'train: {{examples: {examples}, batch_examples: 32, learning_rate: 1e-3, init: {{family: bert, {init}}}}}',
                               'export: {file: m, kind: huggingface, dtype: F32}', 'export: {file: m.gguf, format: F32}']))
        rows.append((count, begins, f"{found['accuracy']:.2%}", f"{found['macro_f1']:.3f}", f"{found['nll']:.3f}"))
table(('labelled commands', 'begins with', 'accuracy', 'macro-F1', 'cross-entropy'), rows)
print()
rows = []
for label, keys in (('nearest', 'format: Q4_0'), ('importance', 'format: Q4_0, method: importance'), ('gptq', 'format: Q4_0, method: gptq'),
                    ('gptq, 5 bits of Q4_0 and Q8_0', 'bits: 5.0, candidates: [Q4_0, Q8_0], method: gptq'),
                    ('nearest, embedding in F16', f'format: Q4_0, {EMBEDDING}'),
                    ('gptq, embedding in F16', f'format: Q4_0, {EMBEDDING}, method: gptq')):
    events = worker('rounded-' + '-'.join(label.replace(',', '').split()),
                    'task: classification\nteacher: {model: hwu64-train-hidden/m}\n'
                    'data: {train: {file: hwu64-train.jsonl}, held_out: {file: hwu64-test.jsonl}}\n',
                    [f'quantize.weights: {{{keys}}}', 'export: {file: m.gguf}'])
    told = [e for e in events if e['event'] == 'quantized'][-1]
    errors = [t['output_error'] for t in told['tensors'] if 'output_error' in t]
    found = judged(events)
    rows.append((label, f"{told['bits_per_weight']:.2f}", f'{sum(errors) / len(errors):.5f}' if errors else '', f"{found['accuracy']:.2%}",
                 f"{found['macro_f1']:.3f}", f"{found['nll']:.4f}"))
table(('method', 'bits a weight', 'mean output error', 'accuracy', 'macro-F1', 'cross-entropy'), rows)
