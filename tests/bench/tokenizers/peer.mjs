// Ids by Hugging Face's Rust library for Node (npm @anush008/tokenizers): node peer.mjs tokenizer.json < texts > ids
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const require = createRequire(process.env.RETORT_NPM_FOLDER + '/');
const { Tokenizer } = require('@anush008/tokenizers');
const tokenizer = Tokenizer.fromFile(process.argv[2]);
for await (const line of createInterface({ input: process.stdin }))
  console.log(JSON.stringify((await tokenizer.encode(JSON.parse(line))).getIds()));
