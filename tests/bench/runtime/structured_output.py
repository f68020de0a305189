#!/usr/bin/env python3
"""What response_format costs: tokens/s of one client over HTTP with and without a JSON schema, in turns; medians. The
first request with the schema finds its masks, later ones have them.

    tests/bench/runtime/structured_output.py --retort build/release/bin --model MODEL.gguf [--tokens 300] [--rounds 7]
"""
import argparse
import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

SCHEMA = {"type": "array", "minItems": 4096, "items": {
    "type": "object", "additionalProperties": False, "required": ["name", "level", "on"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "level": {"type": "integer", "minimum": 0, "maximum": 100},
                   "on": {"type": "boolean"}, "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3}}}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retort", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port_file = pathlib.Path(folder) / "port"
        server = subprocess.Popen([args.retort / "retort-serve", args.model, "--port", "0", "--port-file", port_file, "--threads", "1"],
                                  stderr=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if server.poll() is not None:
                    sys.exit("retort-serve ended")
                time.sleep(0.01)
            port = int(port_file.read_text())
            rates = {"free": [], "schema": []}
            for turn in range(args.rounds + 1):
                for kind, seen in rates.items():
                    body = {"prompt": "Once upon a time", "max_tokens": args.tokens, "temperature": 0.8, "seed": turn}
                    if kind == "schema":
                        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
                    begin = time.monotonic()
                    connection.request("POST", "/v1/completions", json.dumps(body))
                    answer = json.loads(connection.getresponse().read())
                    seconds = time.monotonic() - begin
                    rate = answer["usage"]["completion_tokens"] / seconds
                    if turn == 0:
                        print(f"{kind:7} first request: {seconds * 1000:.1f} ms for {answer['usage']['completion_tokens']} tokens")
                    else:
                        seen.append(rate)
            for kind, seen in rates.items():
                print(f"{kind:7} {statistics.median(seen):8.0f} tokens/s (of {args.rounds}: {min(seen):.0f} to {max(seen):.0f})")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
