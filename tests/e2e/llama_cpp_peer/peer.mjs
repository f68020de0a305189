// llama.cpp's answer to a GGUF file: node peer.mjs PACKAGE_FOLDER MODEL.gguf < {"prompts": [[ids]], "count": n, "texts": [...]}
// prints {"greedy": [[ids]], "tokens": [[ids], ...]}.
// One thread: llama.cpp's threads spin, so that on a busy machine two are far slower than one.
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';
import {readFileSync} from 'node:fs';
import path from 'node:path';

const [folder, modelPath] = process.argv.slice(2);
const ask = JSON.parse(readFileSync(0, 'utf8'));
const resolve = createRequire(path.join(path.resolve(folder), 'index.js')).resolve;
let entry;
try { entry = resolve('node-llama-cpp'); } catch { entry = path.join(path.resolve(folder), 'node_modules/node-llama-cpp/dist/index.js'); }
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const llama = await getLlama({gpu: false, build: 'never', skipDownload: true, maxThreads: 1, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath});
const tokens = ask.texts.map((text) => Array.from(model.tokenize(text, false)));
const greedy = [];
const context = await model.createContext({contextSize: Math.max(...ask.prompts.map((p) => p.length)) + ask.count + 8, threads: 1});
const sequence = context.getSequence();
for (const prompt of ask.prompts) {
  await sequence.clearHistory();
  greedy.push([]);
  for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    greedy.at(-1).push(token);
    if (greedy.at(-1).length === ask.count) break;
  }
}
console.log('ANSWER ' + JSON.stringify({greedy, tokens}));
process.exit(0);
