#!/usr/bin/env python3
"""The MiniLM-L6 shape (22 M parameters, random weights), INT8: retort-serve's Q8_0 beside ONNX Runtime's dynamic INT8, in turns.

  npm install --ignore-scripts onnxruntime-node     (in a folder of its own: NODE)
  tests/bench/encoder/encoder_vs_onnxruntime.py --build build/release --node NODE [--rounds 5]

The ONNX model is written here, with the operators that ONNX Runtime's dynamic quantization makes of a BERT and that its
optimiser makes of those: DynamicQuantizeLinear, MatMulInteger, and after them one scale and the bias (which it fuses
again), MultiHeadAttention, SkipLayerNormalization and Gelu in one node each. Medians of milliseconds a text."""
import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile

LAYERS, WIDTH, HEADS, FFN, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30522, 512
FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7


def varint(n):
    out = b''
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    """A protobuf field: an int as a varint, text and bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def attribute(name, value):
    if isinstance(value, float):
        return field(5, field(1, name) + varint(2 << 3 | 5) + struct.pack('<f', value) + field(20, 1))
    return field(5, field(1, name) + field(3, value) + field(20, 2))


class Graph:
    def __init__(self):
        self.nodes, self.tensors, self.count = b'', b'', 0

    def name(self):
        self.count += 1
        return f't{self.count}'

    def node(self, op, inputs, outputs=1, domain='', **attributes):
        names = [self.name() for _ in range(outputs)]
        body = b''.join(field(1, i) for i in inputs) + b''.join(field(2, o) for o in names) + field(4, op)
        body += b''.join(attribute(k, v) for k, v in attributes.items())
        self.nodes += field(1, body + (field(7, domain) if domain else b''))
        return names[0] if outputs == 1 else names

    def tensor(self, kind, shape, raw):
        name = self.name()
        self.tensors += field(5, b''.join(field(1, d) for d in shape) + field(2, kind) + field(8, name) + field(9, raw))
        return name

    def floats(self, shape, center=0.0, spread=0.05):
        n = 1
        for d in shape:
            n *= d
        raw = os.urandom(n)
        table = [struct.pack('<f', center + spread * (b / 127.5 - 1)) for b in range(256)]
        return self.tensor(FLOAT, shape, b''.join(table[b] for b in raw))

    def dense(self, x, rows, columns):
        """x, quantized as it comes, times an INT8 matrix with one scale, plus a bias."""
        q, scale, zero = self.node('DynamicQuantizeLinear', [x], 3)
        weight = self.tensor(INT8, [columns, rows], os.urandom(rows * columns))
        product = self.node('MatMulInteger', [q, weight, zero, self.tensor(INT8, [], b'\0')])
        real = self.node('Cast', [product], to=FLOAT)
        scales = self.node('Mul', [scale, self.tensor(FLOAT, [], struct.pack('<f', 0.001))])
        return self.node('Add', [self.node('Mul', [real, scales]), self.floats([rows])])


def value(name, kind, shape):
    dims = b''.join(field(1, field(2, d) if isinstance(d, str) else field(1, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def write_onnx(path):
    g = Graph()
    ms = 'com.microsoft'
    norm = lambda: [g.floats([WIDTH], 1.0), g.floats([WIDTH])]
    words = g.node('Gather', [g.floats([VOCABULARY, WIDTH]), 'input_ids'])
    x = g.node('Add', [words, g.node('Gather', [g.floats([POSITIONS, WIDTH]), 'position_ids'])])
    x = g.node('LayerNormalization', [g.node('Add', [x, g.floats([WIDTH])]), *norm()], axis=-1 & (1 << 64) - 1, epsilon=1e-12)
    for _ in range(LAYERS):
        q, k, v = (g.dense(x, WIDTH, WIDTH) for _ in range(3))
        attended = g.node('MultiHeadAttention', [q, k, v], domain=ms, num_heads=HEADS)
        x = g.node('SkipLayerNormalization', [g.dense(attended, WIDTH, WIDTH), x, *norm()], domain=ms, epsilon=1e-12)
        inner = g.node('Gelu', [g.dense(x, FFN, WIDTH)], domain=ms)
        x = g.node('SkipLayerNormalization', [g.dense(inner, WIDTH, FFN), x, *norm()], domain=ms, epsilon=1e-12)
    out = g.node('ReduceMean', [x, g.tensor(INT64, [1], struct.pack('<q', 1))], keepdims=0)
    graph = g.nodes + field(2, 'encoder') + g.tensors
    graph += field(11, value('input_ids', INT64, ['batch', 'tokens'])) + field(11, value('position_ids', INT64, ['batch', 'tokens']))
    graph += field(12, value(out, FLOAT, ['batch', WIDTH]))
    opsets = field(8, field(1, '') + field(2, 18)) + field(8, field(1, ms) + field(2, 1))
    path.write_bytes(field(1, 8) + field(2, 'retort bench') + field(7, graph) + opsets)


PEER = r'''
const { createRequire } = require('module');
const ort = createRequire(process.argv[1] + '/x.js')('onnxruntime-node');
const [, node, model, threads, repeat] = process.argv;
(async () => {
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: +threads, interOpNumThreads: 1, graphOptimizationLevel: 'all' });
  const out = {};
  for (const tokens of [32, 128]) {
    const ids = BigInt64Array.from({ length: tokens }, (_, i) => BigInt((i * 7919 + 13) % 30522));
    const places = BigInt64Array.from({ length: tokens }, (_, i) => BigInt(i));
    const feed = { input_ids: new ort.Tensor('int64', ids, [1, tokens]), position_ids: new ort.Tensor('int64', places, [1, tokens]) };
    const times = [];
    for (let i = 0; i < +repeat + 3; ++i) {
      const begin = process.hrtime.bigint();
      await session.run(feed);
      if (i >= 3) times.push(Number(process.hrtime.bigint() - begin) / 1e6);
    }
    times.sort((a, b) => a - b);
    out[tokens] = times[times.length >> 1];
  }
  console.log(JSON.stringify({ ms: out, resident: process.memoryUsage().rss, version: require(process.argv[1] + '/node_modules/onnxruntime-node/package.json').version }));
})();
'''


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--build', default='build/release', type=pathlib.Path)
    parser.add_argument('--node', required=True, type=pathlib.Path, help="folder with onnxruntime-node in node_modules")
    parser.add_argument('--rounds', default=5, type=int)
    parser.add_argument('--repeat', default=30, type=int, help='texts of each length in a round')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_onnx(folder / 'm.onnx')
        subprocess.run([options.build / 'bin/bench_model', 'MiniLM-L6', 'Q8_0', folder / 'm.gguf'], check=True)
        ours, theirs, used, version = {}, {}, {}, ''
        for _ in range(options.rounds):
            for threads in (1, 2):
                mine = json.loads(subprocess.run(
                    [options.build / 'bin/retort-serve', 'bench', folder / 'm.gguf', '--json', '--pack-cache', folder / 'cache',
                     '--threads', str(threads), '--repeat', str(options.repeat)], check=True, capture_output=True).stdout)
                peer = json.loads(subprocess.run(
                    ['node', '-e', PEER, options.node.resolve(), folder / 'm.onnx', str(threads), str(options.repeat)],
                    check=True, capture_output=True).stdout)
                version = peer['version']
                for text in mine['texts']:
                    key = text['tokens'], threads
                    ours.setdefault(key, []).append(text['ms'])
                    used.setdefault(key, []).append(text['peak_used'])
                    theirs.setdefault(key, []).append(peer['ms'][str(text['tokens'])])
        print(f'ONNX Runtime {version}; medians of {options.rounds} rounds of {options.repeat}')
        print('tokens  threads  retort ms  ONNX Runtime ms  ratio  of INT8 peak')
        for key in sorted(ours):
            a, b = statistics.median(ours[key]), statistics.median(theirs[key])
            print(f'{key[0]:6}  {key[1]:7}  {a:9.2f}  {b:15.2f}  {b / a:5.2f}  {100 * statistics.median(used[key]):11.0f} %')


sys.exit(main())
