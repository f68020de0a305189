#!/usr/bin/env python3
"""The HWU64 recipes of docs/recipes with several seeds: a BERT teacher, a student of at most an eighth of its parameters distilled from
it, and the same student from the labels alone (bars: a point above the labels, 97 % of the teacher).

  hwu64_seeds.py --work /tmp/bench --assets ../shared/assets [--seeds 3]
"""
import json
import os
import statistics

from bench import ROOT, Bench, run, table

bench = Bench(__doc__)
bench.parser.add_argument('--assets', required=True)
bench.parser.add_argument('--seeds', type=int, default=3)
args = bench.start()
rows, figures = [], {}
for seed in range(1, args.seeds + 1):
    folder = os.path.join(bench.work, f'hwu64-{seed}')
    if not os.path.exists(os.path.join(folder, 'data')):
        os.makedirs(folder, exist_ok=True)
        run([os.path.join(ROOT, 'docs/recipes/make_data.py'), 'hwu64', 'data', '--from', os.path.join(os.path.abspath(args.assets), 'data/hwu64')],
            cwd=folder)
    for name in ('teacher', 'student', 'labels'):
        out = os.path.join(folder, 'work', 'hwu64-' + name)
        with open(os.path.join(ROOT, f'docs/recipes/hwu64-{name}.yaml'), encoding='utf-8') as file:
            recipe = file.read().replace('seed: 1', f'seed: {seed}')
        with open(os.path.join(folder, f'hwu64-{name}.yaml'), 'w', encoding='utf-8') as file:
            file.write(recipe)
        run([os.path.join(args.retort, 'retort-worker'), 'run', os.path.join(folder, f'hwu64-{name}.yaml'), '--out', out, '--threads',
             args.threads])
        with open(os.path.join(out, 'result.json'), encoding='utf-8') as file:
            judged = [a for a in json.load(file)['artifacts'] if a.get('evaluation')][-1]
        e = judged['evaluation']
        figures.setdefault(name, []).append(e['accuracy'])
        rows.append((name, str(seed), f"{judged['parameters']:,}", f"{e['accuracy']:.2%}", f"{e['macro_f1']:.3f}"))
table(('', 'seed', 'parameters', 'accuracy', 'macro-F1'), rows)
mean = {name: statistics.mean(values) for name, values in figures.items()}
gains = [a - b for a, b in zip(figures['student'], figures['labels'])]
print(f"\nstudent over labels {100 * statistics.mean(gains):+.2f} points (least {100 * min(gains):+.2f}); "
      f"{mean['student'] / mean['teacher']:.1%} of the teacher")
