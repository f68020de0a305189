"""What the compression benchmarks share: a working folder with text and recipes that are run once. Results are kept in the
folder, so that a benchmark that was stopped goes on where it was.

Text: scripts/debian-descriptions (a Debian machine's own package descriptions): distil.jsonl to learn and calibrate from
(train.jsonl is what the demo teacher learnt from), 300 of held_out.jsonl to judge on.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..'))


def run(command, **more):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return done.stdout


class Bench:
    def __init__(self, description):
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument('--retort', default=os.path.join(ROOT, 'build/release/bin'), help='folder of the programs')
        parser.add_argument('--work', required=True, help='folder for text, students and results; kept')
        parser.add_argument('--teacher', default=os.path.join(ROOT, 'scripts/demo-teacher/model'))
        parser.add_argument('--threads', default='2')
        self.parser = parser

    def start(self):
        self.args = self.parser.parse_args()
        self.work = os.path.abspath(self.args.work)
        text = os.path.join(self.work, 'text')
        if not os.path.exists(os.path.join(text, 'judged.jsonl')):
            run([os.path.join(ROOT, 'scripts/debian-descriptions'), text])
            with open(os.path.join(text, 'held_out.jsonl'), encoding='utf-8') as held_out:
                lines = [line for line, _ in zip(held_out, range(300))]
            with open(os.path.join(text, 'judged.jsonl'), 'w', encoding='utf-8') as out:
                out.writelines(lines)
        return self.args

    def recipe(self, passes, seed=1, options=(), learn_from='distil'):
        """Runs passes (a list of 'name: {…}') and returns (artifacts by file, events, folder)."""
        text = os.path.join(self.work, 'text')
        recipe = (f'version: 1\nseed: {seed}\nteacher: {{model: {os.path.abspath(self.args.teacher)}}}\ndata:\n'
                  f'  train: {{file: {text}/{learn_from}.jsonl}}\n  held_out: {{file: {text}/judged.jsonl}}\npasses:\n'
                  + ''.join(f'  - {line}\n' for line in passes))
        name = hashlib.sha256((recipe + ' '.join(options)).encode()).hexdigest()[:16]
        folder = os.path.join(self.work, name)
        os.makedirs(folder, exist_ok=True)
        path = folder + '.yaml'
        with open(path, 'w', encoding='utf-8') as out:
            out.write(recipe)
        run([os.path.join(self.args.retort, 'retort-worker'), 'run', path, '--out', folder, '--threads', self.args.threads,
             *options])
        with open(os.path.join(folder, 'result.json'), encoding='utf-8') as file:
            artifacts = {a['file']: a for a in json.load(file)['artifacts']}
        with open(os.path.join(folder, 'progress.jsonl'), encoding='utf-8') as file:
            events = [json.loads(line) for line in file]
        return artifacts, events, folder

    def judge(self, file, against):
        """Perplexity, KL divergence and top-1 agreement by retort-serve, for files that no recipe exported."""
        return json.loads(run([os.path.join(self.args.retort, 'retort-serve'), 'eval', file, '--data',
                               os.path.join(self.work, 'text/judged.jsonl'), '--teacher', against]))


def table(columns, rows):
    print('| ' + ' | '.join(columns) + ' |\n|' + '---|' * len(columns))
    for row in rows:
        print('| ' + ' | '.join(row) + ' |', flush=True)
