#!/usr/bin/env python3
"""The students that `retort tailor` makes for classes of device beside llama.cpp's formats of the whole teacher, at equal size: a
class's budget is the size of llama.cpp's file, and both are judged by retort-serve on the same held-out text.

  tailored_vs_llama_cpp.py --work /tmp/bench --llama-cpp DIR [--formats Q6_K,Q4_K,Q3_K,Q2_K] [--tokens 100000]

DIR holds llama-quantize. A format that retort-serve does not read (Q2_K) is judged by DIR/llama-perplexity where it is there.
"""
import json
import os
import shutil
import statistics
import sys

from bench import ROOT, Bench, run, table

sys.path.insert(0, os.path.join(ROOT, 'tests/e2e'))
import harness  # noqa: E402

LLAMA_CPP = {'Q8_0': 'Q8_0', 'Q6_K': 'Q6_K', 'Q5_K': 'Q5_K_S', 'Q4_K': 'Q4_K_S', 'Q4_0': 'Q4_0', 'Q3_K': 'Q3_K_S'}

bench = Bench(__doc__)
bench.parser.add_argument('--llama-cpp', required=True)
bench.parser.add_argument('--formats', default='Q8_0,Q6_K,Q5_K,Q4_K,Q3_K')
bench.parser.add_argument('--tokens', default='100000')
args = bench.start()
harness.BIN = os.path.abspath(args.retort)
artifacts, _, folder = bench.recipe(['export: {file: whole.gguf, format: F32}'])
whole = os.path.join(folder, 'whole.gguf')


def speeds(*files):
    """Tokens a second of each, medians of five turns: what others do on the machine meanwhile falls on all alike."""
    told = {file: [] for file in files}
    for _ in range(5):
        for file in files:
            out = run([os.path.join(args.retort, 'retort-serve'), 'bench', file, '--threads', '1', '--pack-cache', 'none', '--json'])
            told[file].append(json.loads(out)['generate_tokens_per_second'])
    return [statistics.median(told[file]) for file in files]


peers = {}
for kind in args.formats.split(','):
    file = os.path.join(bench.work, f'llama-cpp-{kind}.gguf')
    run([os.path.join(args.llama_cpp, 'llama-quantize'), '--pure', whole, file, LLAMA_CPP[kind]])
    peers[kind] = (file, bench.judge(file, whole))

fleet = harness.Fleet()
rows = []
try:
    fleet.start_coordinator('--job-threads', args.threads)
    fleet.retort('teacher', 'import', os.path.abspath(args.teacher), '--name', 'teacher')
    for name, source in (('train', 'distil'), ('judged', 'judged')):
        fleet.retort('dataset', 'import', os.path.join(bench.work, f'text/{source}.jsonl'), '--name', name)
    for kind, (file, theirs) in peers.items():
        # Retort's files say where they come from, which takes a kilobyte more.
        fleet.retort('class', 'set', kind.lower(), '--file', str(os.path.getsize(file) + 1024))
        watch = fleet.run_tailor('teacher', [kind.lower()], tokens=int(args.tokens))
        if watch.returncode != 0:
            sys.exit(watch.stdout + watch.stderr + fleet.logs())
        job = next(fleet.job(j['id']) for j in fleet.retort('job', 'ls') if j['class'] == kind.lower())
        ours = [a for a in job['artifacts'] if a['label'] == 'distilled'][-1]
        copy = os.path.join(bench.work, f'tailored-{kind}.gguf')
        shutil.copyfile(fleet.path('data', 'blobs', ours['sha256'][:2], ours['sha256']), copy)
        mine = bench.judge(copy, whole)
        their_speed, our_speed = speeds(file, copy)
        rows.append((kind, f'{os.path.getsize(file):,}', f"{theirs['perplexity']:.2f}", f"{theirs['kl_divergence']:.4f}",
                     f'{their_speed:,.0f}', f"{ours['format']}, {ours['parameters']:,}", f"{ours['bytes']:,}",
                     f"{mine['perplexity']:.2f}", f"{mine['kl_divergence']:.4f}", f'{our_speed:,.0f}'))
finally:
    fleet.close()
table(("llama.cpp's format", 'bytes', 'perplexity', 'KL', 'tokens/s', 'tailored: format, parameters', 'bytes', 'perplexity', 'KL', 'tokens/s'), rows)
