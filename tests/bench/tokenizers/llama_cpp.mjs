// Ids by llama.cpp through its Node binding (npm node-llama-cpp): node llama_cpp.mjs MODEL.gguf < texts > ids
// Special tokens in the text are understood; what the tokenizer adds around a text is not added.
import { createRequire } from 'node:module';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const folder = path.resolve(process.env.RETORT_NPM_FOLDER);
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(path.join(folder, 'node_modules/node-llama-cpp/dist/index.js')));
const llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, maxThreads: 1, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: process.argv[2], vocabOnly: true });
for await (const line of createInterface({ input: process.stdin }))
  console.log(JSON.stringify(Array.from(model.tokenize(JSON.parse(line), true))));
process.exit(0);
