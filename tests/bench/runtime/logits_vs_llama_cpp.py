#!/usr/bin/env python3
"""Log probabilities of the next token, over the whole vocabulary, beside llama.cpp's on the same file.

  logits_vs_llama_cpp.py --retort build/release/bin --llama-cpp DIR [--prompts 60] MODEL.gguf …

DIR holds llama-server. Prompts are random ids, or pieces of a text, of random lengths. For each file: the largest difference of
a log probability, relative to the largest of its row, and the mean and largest KL divergence (nats) from llama.cpp's
distribution to ours; with F32 caches for a file of F32, F16 caches for others, on both sides.
"""
import argparse
import http.client
import json
import math
import random
import subprocess
import sys
import time

from serving_vs_llama_server import free_port


def facts(retort, model):
    told = json.loads(subprocess.run([f"{retort}/retort-serve", "info", model, "--json"], check=True, capture_output=True,
                                     stdin=subprocess.DEVNULL, text=True).stdout)
    return told["n_vocab"], told["n_ctx"], "f32" if told["bits_per_weight"] > 16 else "f16"


def of_retort(retort, model, cache, prompts):
    done = subprocess.run([f"{retort}/logits", model, cache], input=json.dumps(prompts), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


LLAMA_CACHES = {"f32": "f32", "f16": "f16", "q8": "q8_0"}


class Llama:
    """llama-server with a model, without flash attention: that one rounds queries to 16 bits even with an F32 cache."""

    def __init__(self, folder, model, cache, n_ctx):
        self.port = free_port()
        self.process = subprocess.Popen(
            [f"{folder}/llama-server", "-m", model, "--port", str(self.port), "-t", "1", "-c", str(n_ctx), "-np", "1", "-fa",
             "off", "-ctk", LLAMA_CACHES[cache], "-ctv",
             LLAMA_CACHES[cache], "--no-warmup"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)

    def ask(self, path, body):
        until = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read()
                if response.status == 200:
                    return json.loads(answer)
                if response.status != 503:
                    sys.exit(f"llama-server: {response.status} {answer[:300]}")
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit("llama-server does not answer")
            time.sleep(0.05)

    def tokens(self, text):
        return self.ask("/tokenize", {"content": text})["tokens"]

    def log_probabilities(self, prompt, n_vocab):
        answer = self.ask("/completion", {"prompt": prompt, "n_predict": 1, "n_probs": n_vocab, "cache_prompt": False,
                                          "temperature": 1.0, "samplers": []})
        row = [-math.inf] * n_vocab
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        return row

    def stop(self):
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retort", required=True, help="folder with retort-serve and logits")
    parser.add_argument("--llama-cpp", required=True, help="folder with llama-server")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--cache", choices=["f32", "f16", "q8"], help="of both sides, instead")
    parser.add_argument("--text", help="prompts are pieces of this file instead of random ids")
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    print("| file | prompts, tokens | log probability, relative | KL, mean | KL, largest | same likeliest |")
    print("|---|---|---|---|---|---|")
    for model in options.models:
        n_vocab, n_ctx, cache = facts(options.retort, model)
        cache = options.cache or cache
        chance = random.Random(1)
        lengths = [chance.randrange(2, n_ctx - 1) for _ in range(options.prompts)]
        llama = Llama(options.llama_cpp, model, cache, n_ctx)
        try:
            if options.text:
                ids = llama.tokens(open(options.text, encoding="utf-8").read(200000))
                starts = [chance.randrange(len(ids) - n) for n in lengths]
                prompts = [ids[at:at + n] for at, n in zip(starts, lengths)]
            else:
                prompts = [[chance.randrange(n_vocab) for _ in range(n)] for n in lengths]
            theirs = [llama.log_probabilities(prompt, n_vocab) for prompt in prompts]
        finally:
            llama.stop()
        ours = of_retort(options.retort, model, cache, prompts)
        worst, kls, same = 0.0, [], 0
        for a, b in zip(ours, theirs):
            size = max(abs(x) for x in b if x > -math.inf)
            worst = max(worst, max(abs(x - y) / size for x, y in zip(a, b) if y > -math.inf))
            kls.append(sum(math.exp(y) * (y - x) for x, y in zip(a, b) if y > -math.inf))
            same += max(range(n_vocab), key=a.__getitem__) == max(range(n_vocab), key=b.__getitem__)
        print(f"| {model.split('/')[-1]} | {len(prompts)} of {min(map(len, prompts))} to {max(map(len, prompts))} "
              f"| {worst:.1e} | {sum(kls) / len(kls):.1e} | {max(kls):.1e} | {same} of {len(prompts)} |", flush=True)


if __name__ == "__main__":
    main()
