#!/usr/bin/env python3
"""Serving beside llama-server, the same file and threads: total tokens/s of N clients at once over HTTP, time from
exec to the first token of an 8-token prompt, and private dirty memory.

  serving_vs_llama_server.py --retort build/release/bin --llama-cpp DIR --model MODEL.gguf [--clients 1,8]
"""
import argparse
import concurrent.futures
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# llama-server's own path takes the text of a model with random weights; its OpenAI path checks what it says.
PATHS = {"retort": "/v1/completions", "llama": "/completion"}


def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        sys.exit(f"{response.status}: {text[:300]}")
    return json.loads(text)


class Server:
    def __init__(self, kind, command, port):
        self.path, self.port, self.begin = PATHS[kind], port, time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)

    def first_token(self, body):
        """Seconds from exec to the answer of one token."""
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                connection.request("POST", self.path, json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                if response.status == 200:
                    return time.monotonic() - self.begin
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{self.process.args} ended")
            time.sleep(0.0002)

    def private_dirty(self):
        with open(f"/proc/{self.process.pid}/smaps_rollup", encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("Private_Dirty")).split()[1]) * 1024

    def total_speed(self, clients, tokens, rounds):
        def client(number):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            made = 0
            for turn in range(rounds):
                answer = post(connection, self.path,
                              {"prompt": f"the client number {number} asks {turn} ", "max_tokens": tokens,
                               "n_predict": tokens, "temperature": 0, "ignore_eos": True})
                made += answer["usage"]["completion_tokens"] if "usage" in answer else answer["tokens_predicted"]
            return made
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            made = sum(pool.map(client, range(clients)))
        return made / (time.monotonic() - begin)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retort", required=True)
    parser.add_argument("--llama-cpp", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server")
    args = parser.parse_args()
    clients = [int(n) for n in args.clients.split(",")]
    eight = {"prompt": "the rat in th", "max_tokens": 1, "n_predict": 1, "temperature": 0}

    with tempfile.TemporaryDirectory() as cache:
        def retort():
            port = free_port()
            return Server("retort", [os.path.join(args.retort, "retort-serve"), args.model, "--port", str(port), "--threads",
                           str(args.threads), "--pack-cache", cache], port)

        def llama():
            port = free_port()
            return Server("llama", [os.path.join(args.llama_cpp, "llama-server"), "-m", args.model, "--port", str(port), "-t",
                           str(args.threads), "-np", "8", "--no-webui"], port)

        results = {name: {"first": [], "dirty": [], **{n: [] for n in clients}} for name in ("retort", "llama")}
        warm = retort()  # packs the weights
        warm.first_token(eight)
        warm.stop()
        for _ in range(args.rounds):
            for name, start in (("retort", retort), ("llama", llama)):
                server = start()
                results[name]["first"].append(server.first_token(eight))
                results[name]["dirty"].append(server.private_dirty())
                for n in clients:
                    results[name][n].append(server.total_speed(n, args.tokens, 4))
                server.stop()
    print(f"{os.path.basename(args.model)}, {args.threads} threads, medians of {args.rounds}\n")
    print("| | retort-serve | llama-server | ratio |\n|---|---|---|---|")
    middle = lambda name, key: statistics.median(results[name][key])
    print(f"| exec to first token, ms | {middle('retort', 'first') * 1e3:.1f} | {middle('llama', 'first') * 1e3:.1f} "
          f"| {middle('llama', 'first') / middle('retort', 'first'):.1f}× |")
    print(f"| private dirty memory, MB | {middle('retort', 'dirty') / 1e6:.1f} | {middle('llama', 'dirty') / 1e6:.1f} | |")
    for n in clients:
        print(f"| {n} clients, tokens/s | {middle('retort', n):,.0f} | {middle('llama', n):,.0f} "
              f"| {middle('retort', n) / middle('llama', n):.1f}× |")


if __name__ == "__main__":
    main()
